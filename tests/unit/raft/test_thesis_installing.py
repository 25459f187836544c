"""The rules of installing a snapshot, one test each: Raft paper, section 7; thesis, chapter 5."""

from __future__ import annotations

import pytest
from raftstorage.node.raft.log import RaftLog
from raftstorage.node.raft.membership import Change, Member, MemberRole, Membership
from raftstorage.node.raft.types import (
    Entry,
    EntryKind,
    FetchSnapshot,
    HardState,
    Message,
    MessageType,
    RaftInvariantError,
    Role,
    SnapshotBase,
)

from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.one_node import hear, role, said
from tests.unit.raft.raft_cluster import Cluster
from tests.unit.raft.snapshot_clusters import BEGIN, beat, behind, commands, core_on

APPEND, ACK, OFFER = MessageType.APPEND, MessageType.APPEND_REPLY, MessageType.SNAPSHOT


# ---- installing ----------------------------------------------------------------------------------------------


def test_an_installed_snapshot_is_acknowledged_when_it_is_durable() -> None:
    """Paper, section 7; figure 2: answers wait for the disk."""
    cluster = behind()
    beat(cluster)
    snapshot = cluster.download(3)
    assert snapshot is not None
    core = cluster[3]
    assert core.install_snapshot(snapshot.index, snapshot.term, snapshot.membership)
    output = core.take_output()
    assert output.send == ()
    (persist,) = output.persist
    assert persist.snapshot == SnapshotBase(6, 1, BEGIN)
    assert [(m.type, m.to_node, m.log_index) for m in persist.then_send] == [(ACK, 1, 6)]
    assert (core.commit_index, core.last_index, output.apply) == (6, 6, ())


def test_a_snapshot_from_before_what_is_committed_changes_nothing() -> None:
    cluster = behind()
    core = cluster[2]
    for index in (1, 5, 6):
        assert not core.install_snapshot(index, 1, Membership.initial((1, 2)))
    assert (core.last_index, core.membership, core.has_output()) == (6, BEGIN, False)


def test_a_leader_installs_nothing() -> None:
    """Paper 5.4, leader completeness: its log has all that was ever committed."""
    cluster = Cluster()
    cluster.elect(1, lambda message: message.type is not ACK)
    assert (role(cluster), cluster[1].commit_index) == (Role.LEADER, 0)
    assert not cluster[1].install_snapshot(1, 1, BEGIN)


@pytest.mark.parametrize("before", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_a_candidate_that_installs_follows(before: Role) -> None:
    cluster = Cluster()
    cluster.time_out(1)
    if before is Role.CANDIDATE:
        hear(cluster, MessageType.PRE_VOTE_REPLY, 2, 1)
    assert role(cluster) is before
    assert cluster[1].install_snapshot(4, 1, BEGIN)
    assert (role(cluster), cluster[1].term, cluster[1].last_index) == (Role.FOLLOWER, 1, 4)


@pytest.mark.parametrize(
    ("own", "index", "term", "kept"),
    [
        ((1, 1, 1, 1), 2, 1, [3, 4]),
        ((1, 1, 1, 1), 4, 1, []),
        ((1, 1, 1, 1), 6, 1, []),
        ((1, 1, 2, 2), 2, 2, []),
        ((1, 2, 2, 2), 3, 2, [4]),
        ((), 3, 1, []),
    ],
)
@pytest.mark.parametrize("durable", [0, 2, 4])
def test_what_follows_the_snapshots_entry_is_kept_if_the_log_has_that(
    own: tuple[int, ...], index: int, term: int, kept: list[int], durable: int
) -> None:
    """Paper, figure 13, 6 and 7: in memory, and on the disk when both writes have ended."""
    entries = commands(1, *own)
    cluster = Cluster(logs={1: MemoryLog(entries[:durable], HardState(2))})
    cluster.step(Message(MessageType.HEARTBEAT, 2, 1, 2))
    if entries[durable:]:
        previous = entries[durable - 1].term if durable else 0
        cluster.step(Message(APPEND, 2, 1, 2, durable, previous, tuple(entries[durable:])))
    core = cluster[1]
    assert core.install_snapshot(index, term, BEGIN)
    it = cluster.nodes[1]
    it.applied = commands(1, *[term] * index)
    cluster.pump(1)
    assert [entry.index for entry in it.log()] == kept
    assert (core.log.base, core.log.term(index)) == (index, term)
    acknowledged = [message.log_index for message in said(cluster) if message.type is ACK]
    assert acknowledged[-1] == index
    assert it.disk.base == (index, term)
    assert [entry.index for entry in it.log()] == kept
    assert core.log.stable == it.disk.last_index() == core.last_index == index + len(kept)


def test_entries_behind_a_snapshot_wait_for_both_writes() -> None:
    """They are applied when the state that they follow is durable, and they are."""
    cluster = behind()
    beat(cluster)
    assert cluster.install(3)
    cluster.propose(1, b"x")
    cluster.settle(frozen={3})
    hear_entry = tuple(cluster.nodes[1].log())
    cluster.step(Message(APPEND, 1, 3, 1, 6, 1, hear_entry, 7))
    it = cluster.nodes[3]
    assert (it.core.commit_index, len(it.applied)) == (7, 6)
    cluster.write(3)
    assert len(it.applied) == 6
    cluster.write(3)
    assert len(it.applied) == 7


def test_a_second_snapshot_may_come_before_the_first_is_written() -> None:
    cluster = behind()
    beat(cluster)
    assert cluster.install(3)
    cluster.propose(1, b"x")
    cluster.settle(frozen={3})
    later = cluster.nodes[1].snapshot()
    assert cluster.install(3, later)
    cluster.write(3)
    assert (cluster[3].log.is_restoring, len(cluster.nodes[3].installing)) == (True, 1)
    cluster.settle()
    beat(cluster)
    assert cluster.nodes[3].disk.base == (7, 1)
    assert cluster.nodes[3].applied == cluster.committed


def test_a_crash_before_the_snapshot_is_written_leaves_what_was() -> None:
    cluster = behind()
    beat(cluster)
    assert cluster.install(3)
    cluster.crash(3)
    cluster.restart(3)
    assert (cluster[3].commit_index, cluster[3].last_index) == (1, 1)
    beat(cluster)
    assert cluster.install(3)
    cluster.settle()
    assert cluster.nodes[3].applied == cluster.committed


def test_a_snapshot_without_a_leader_is_acknowledged_to_nobody() -> None:
    """The next leader finds out."""
    core = core_on(MemoryLog(), 0)
    assert core.install_snapshot(5, 3, BEGIN)
    (persist,) = core.take_output().persist
    assert (persist.then_send, persist.hard_state) == ((), HardState(3)), (
        "nobody can be behind the snapshot's term"
    )


def test_what_was_not_written_yet_is_not_acknowledged_over_a_snapshot() -> None:
    """The snapshot contradicts it, and it will never be written."""
    core = core_on(MemoryLog(), 0)
    core.step(Message(APPEND, 2, 1, 1, entries=tuple(commands(1, 1, 1, 1))))
    assert core.install_snapshot(2, 2, BEGIN)
    (persist,) = core.take_output().persist
    assert (persist.entries, persist.then_send) == ((), ())


# ---- its membership ------------------------------------------------------------------------------------------


def test_a_snapshots_membership_is_in_effect_at_once() -> None:
    """Thesis 5.1: the latest one as of the snapshot's last entry is part of it."""
    core = core_on(MemoryLog(), 0)
    other = Membership.initial((2, 3, 4), (5,))
    assert core.install_snapshot(5, 1, other)
    assert (core.membership, core.membership_index, core.role) == (other, 5, Role.LEARNER)
    output = core.take_output()
    assert output.membership == other
    assert output.persist[0].snapshot == SnapshotBase(5, 1, other)


@pytest.mark.parametrize(("term", "voters"), [(1, {1, 4}), (2, {1, 2, 3, 4, 5})])
def test_a_membership_behind_the_snapshot_stays_if_its_entry_does(term: int, voters: set[int]) -> None:
    """Thesis 4.1: the newest in the log."""
    entries = commands(1, 1, 1)
    entries.append(Entry(1, 3, EntryKind.MEMBERSHIP, Membership.initial((1, 4)).encode()))
    core = core_on(MemoryLog(entries, HardState(2)), 0)
    assert core.voters == (frozenset({1, 4}),)
    assert core.install_snapshot(2, term, Membership.initial((1, 2, 3, 4, 5)))
    assert core.voters == (frozenset(voters),)


def test_a_snapshot_from_before_any_change_leaves_the_first_membership() -> None:
    core = core_on(MemoryLog(), 0)
    assert core.install_snapshot(5, 1, Membership())
    assert (core.membership, core.role) == (BEGIN, Role.FOLLOWER)


def test_a_node_that_joins_begins_with_a_snapshot() -> None:
    """Thesis 5.1 with 4.2.1: also with one in which it is not a member yet."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1, b"x", b"y")
    cluster.settle()
    for node in (1, 2, 3):
        cluster.compact(node)
    cluster.join(4)
    cluster.change(1, Change(add=(Member(4, MemberRole.LEARNER),)))
    beat(cluster, 2)
    assert cluster.nodes[4].fetch == FetchSnapshot(1, 3, 1)
    assert cluster.install(4)
    cluster.settle()
    beat(cluster)
    assert cluster.nodes[4].applied == cluster.committed
    assert (role(cluster, 4), cluster[4].membership) == (Role.LEARNER, cluster[1].membership)


# ---- hard limits ---------------------------------------------------------------------------------------------


def test_a_state_from_before_the_log_begins_ends_the_node() -> None:
    with pytest.raises(RaftInvariantError, match="applied 4, but the log begins behind entry 5"):
        core_on(MemoryLog(commands(6, 1), HardState(1), (5, 1)), 4)


def test_a_log_that_was_cut_knows_nothing_before_its_base() -> None:
    log = RaftLog(MemoryLog(commands(6, 2, 3), HardState(3), (5, 1)))
    assert [log.term(index) for index in (0, 5, 6, 7)] == [0, 1, 2, 3]
    assert (log.matches(5, 1), log.matches(4, 1), log.matches(8, 3)) == (True, False, False)
    for index in (1, 4):
        with pytest.raises(IndexError):
            log.term(index)
    with pytest.raises(IndexError):
        log.entries(5, 7, 100, 100)
    found = [log.last_with_term_at_most(7, term) for term in (3, 2, 1, 0)]
    assert found == [7, 6, 5, 4], "4: somewhere before the base"
    assert log.last_with_term_at_most(3, 1) == 4


def test_a_base_that_is_not_written_counts_at_once() -> None:
    log = RaftLog(MemoryLog(commands(1, 1, 1, 1), HardState(1)))
    log.restore(SnapshotBase(5, 2, BEGIN))
    assert (log.base, log.last_index, log.last_term, log.term(5)) == (5, 5, 2, 2)
    assert (log.stable, log.is_restoring, log.has_unwritten) == (3, True, True)
    with pytest.raises(IndexError):
        log.term(3)
    log.append(commands(6, 2, 2))
    assert log.take_base() == SnapshotBase(5, 2, BEGIN)
    assert [entry.index for entry in log.take_unwritten(1)] == [6, 7]
    assert (log.take_base(), log.has_unwritten) == (None, False)
    log.truncate(7, 5)
    assert [entry.index for entry in log.entries(6, 9, 100, 100)] == [6]
