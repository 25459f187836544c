"""The rules of membership changes, one test each: Raft paper, section 6; thesis 4.1, 4.2.1, 4.3."""

from __future__ import annotations

import pytest
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.membership import Change, Member, MemberRole, Membership
from raftstorage.node.raft.types import (
    Config,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    RaftInvariantError,
    Role,
)

from tests.unit.raft.changes import (
    add_learner,
    kinds,
    led,
    live,
    membership_entry,
    promote,
    remove,
    voters_of,
)
from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.one_node import ELECTION, hear, role, said
from tests.unit.raft.raft_cluster import Cluster, Timeouts

APPEND, ACK = MessageType.APPEND, MessageType.APPEND_REPLY


# ---- in effect when appended (4.1) ---------------------------------------------------------------------------


def test_a_server_uses_the_latest_membership_in_its_log_committed_or_not() -> None:
    """Thesis 4.1; paper, section 6."""
    cluster = led(3, (4,))
    cluster.isolate(3)
    assert cluster.change(1, promote(4)) == 2
    assert voters_of(cluster, 1) == [[1, 2, 3, 4], [1, 2, 3]]
    cluster.deliver(lambda message: message.type is APPEND and message.to_node == 2)
    assert cluster[2].commit_index == 1
    assert voters_of(cluster, 2) == [[1, 2, 3, 4], [1, 2, 3]], "before it is even on disk"
    assert voters_of(cluster, 3) == [[1, 2, 3]]
    assert cluster[2].membership_index == 2


def test_a_server_falls_back_to_the_one_before_when_the_entry_is_cut_off() -> None:
    """Thesis 4.1: also over two of them; and it says so."""
    cluster = Cluster()
    own = (membership_entry(1, 1, 1, 2, 3, 4), Entry(1, 2, EntryKind.COMMAND), membership_entry(1, 3, 1, 5))
    hear(cluster, APPEND, 2, 1, entries=own)
    assert (voters_of(cluster, 1), cluster[1].membership_index) == ([[1, 5]], 3)
    command = Entry(2, 3, EntryKind.COMMAND)
    hear(cluster, APPEND, 3, 2, log_index=2, log_term=1, entries=(command,))
    assert (voters_of(cluster, 1), cluster[1].membership_index) == ([[1, 2, 3, 4]], 1)
    core = cluster[1]
    core.step(Message(APPEND, 2, 1, 3, entries=(Entry(3, 1, EntryKind.COMMAND),)))
    assert core.take_output().membership == Membership.initial((1, 2, 3))


def test_after_a_restart_the_log_behind_what_was_applied_is_searched() -> None:
    """Thesis 4.1: the log is where the membership is; what was applied tells the one before."""
    state = HardState(1)
    entries = [
        membership_entry(1, 1, 1, 2, 3, 4),
        *(Entry(1, index, EntryKind.COMMAND, b"xxxx") for index in range(2, 2000)),
        membership_entry(1, 2000, 1, 5),
        Entry(1, 2001, EntryKind.COMMAND),
    ]

    def core(applied: int, membership: Membership | None, count: int = 2001) -> RaftCore:
        config = Config(1, frozenset({1, 2, 3}), max_apply_bytes=100)
        return RaftCore(config, MemoryLog(entries[:count], state), state, applied, Timeouts(1), membership)

    assert core(0, None).voters == (frozenset({1, 5}),)
    assert core(0, None, 1999).voters == (frozenset({1, 2, 3, 4}),)
    assert core(0, None, 0).voters == (frozenset({1, 2, 3}),)
    known = Membership.initial((1, 2, 3, 4))
    assert (core(1999, known, 1999).voters, core(1999, known, 1999).membership_index) == (
        (frozenset({1, 2, 3, 4}),),
        1999,
    )
    assert core(1999, known).membership_index == 2000


def test_an_entry_of_ones_own_log_that_cannot_be_read_ends_the_node() -> None:
    broken = MemoryLog([Entry(1, 1, EntryKind.MEMBERSHIP, b"{}")], HardState(1))
    with pytest.raises(RaftInvariantError, match="entry 1 cannot be read"):
        Cluster(logs={1: broken})


@pytest.mark.parametrize("data", [b"", b"{}", Membership().encode()])
def test_a_message_with_what_is_no_membership_is_not_taken(data: bytes) -> None:
    cluster = Cluster()
    assert hear(cluster, APPEND, 2, 1, entries=(Entry(1, 1, EntryKind.MEMBERSHIP, data),)) == []
    assert (cluster[1].term, cluster[1].last_index) == (0, 0)


# ---- joint consensus (paper, section 6; 4.3) ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("holders", "committed"), [((2,), False), ((4, 5), False), ((2, 4), True), ((3, 5), True), ((2, 3), True)]
)
def test_while_joint_an_entry_needs_a_majority_of_both_sets(holders: tuple[int, ...], committed: bool) -> None:
    """Paper, section 6: here of {1,2,3} and of {1,2,3,4,5}."""
    cluster = led(3, (4, 5))
    cluster.change(1, promote(4, 5))
    cluster.settle(frozen={2, 3, 4, 5} - set(holders))
    assert (cluster[1].commit_index >= 2) is committed


@pytest.mark.parametrize(("granting", "wins"), [((4, 5), False), ((2,), False), ((2, 4), True), ((2, 3), True)])
def test_while_joint_an_election_needs_a_majority_of_both_sets(granting: tuple[int, ...], wins: bool) -> None:
    """Paper, section 6, and thesis 9.6: votes and pre-votes; sets {1,2,3} and {1,2,3,4,5}, the candidate is 1."""
    joint = Membership(tuple(Member(node) for node in (1, 2, 3, 4, 5)), frozenset({1, 2, 3}), highest_id=5)
    stages = (
        (MessageType.PRE_VOTE_REPLY, Role.PRE_CANDIDATE, Role.CANDIDATE),
        (MessageType.VOTE_REPLY, Role.CANDIDATE, Role.LEADER),
    )
    for kind, before, after in stages:
        log = MemoryLog([Entry(1, 1, EntryKind.MEMBERSHIP, joint.encode())], HardState(1))
        cluster = Cluster(logs={1: log})
        cluster.time_out(1)
        for node in (2, 4) if before is Role.CANDIDATE else ():
            hear(cluster, MessageType.PRE_VOTE_REPLY, node, 2)
        said(cluster)
        assert role(cluster) is before
        for node in granting:
            hear(cluster, kind, node, 2)
        assert role(cluster) is (after if wins else before)


def test_while_joint_a_candidate_asks_the_voters_of_both_sets_and_no_learner() -> None:
    """Thesis 4.2.1 and 4.3."""
    members = (Member(1), Member(2, MemberRole.LEAVING), Member(4), Member(5, MemberRole.LEARNER))
    joint = Membership(members, frozenset({1, 2}), highest_id=5)
    log = MemoryLog([Entry(1, 1, EntryKind.MEMBERSHIP, joint.encode())], HardState(1))
    cluster = Cluster((1, 2, 3, 4, 5), logs={1: log})
    cluster.time_out(1)
    assert {message.to_node for message in said(cluster)} == {2, 4}


def test_while_joint_a_read_needs_a_majority_of_both_sets() -> None:
    """Thesis 6.4 with 4.3."""
    cluster = led(3, (4, 5))
    cluster.change(1, promote(4, 5))
    cluster.settle(lambda message: message.type is not APPEND)
    cluster.read(1, 7)
    replies = MessageType.HEARTBEAT_REPLY
    cluster.settle(lambda message: message.type is MessageType.HEARTBEAT or message.from_node in (4, 5))
    assert cluster.nodes[1].reads == [], "a majority of the new set only"
    cluster.settle(lambda message: message.type is replies)
    assert [read.request for read in cluster.nodes[1].reads] == [7]


def test_while_joint_a_leader_steps_down_without_a_majority_of_one_set() -> None:
    """Thesis 6.2 with 4.3."""
    cluster = led(3, (4, 5))
    cluster.change(1, promote(4, 5))
    cluster.isolate(2)
    cluster.isolate(3)
    live(cluster, 3 * ELECTION)
    assert role(cluster) is not Role.LEADER, "three of five, but one of three"


def test_when_the_joint_entry_is_committed_the_leader_ends_it() -> None:
    """Paper, section 6, figure 11: C-new is appended once C-old,new is committed, and not before."""
    cluster = led(3, (4,))
    cluster.change(1, Change(promote=frozenset({4}), remove=frozenset({3})))
    cluster.settle(frozen={2, 4})
    assert (cluster[1].commit_index, cluster[1].last_index) == (1, 2)
    assert voters_of(cluster, 1) == [[1, 2, 4], [1, 2, 3]]
    cluster.settle()
    assert (cluster[1].commit_index, cluster[1].last_index) == (3, 3)
    for node in (1, 2, 4):
        assert voters_of(cluster, node) == [[1, 2, 4]]
        assert kinds(cluster, node) == [EntryKind.NOOP, EntryKind.MEMBERSHIP, EntryKind.MEMBERSHIP]


@pytest.mark.parametrize("committed", [False, True])
def test_a_new_leader_ends_what_another_one_began(committed: bool) -> None:
    """Paper, section 6, and 5.4.2: when its no-op commits the joint entry with it."""
    cluster = led(3, (4,))
    cluster.change(1, promote(4))
    cluster.deliver()
    for node in (2, 3, 4):
        cluster.write(node, 9)
    if committed:
        cluster.deliver()
    assert cluster[1].commit_index == (2 if committed else 1)
    cluster.drop()
    cluster.crash(1)
    cluster.elect(2)
    live(cluster, 2)
    assert role(cluster, 2) is Role.LEADER
    assert voters_of(cluster, 2) == voters_of(cluster, 3) == voters_of(cluster, 4) == [[1, 2, 3, 4]]
    assert cluster[2].commit_index == cluster[2].last_index == cluster[2].membership_index == 4


def test_the_end_of_a_change_waits_while_leadership_is_handed_over() -> None:
    """Thesis 3.10: a leader that hands over appends nothing; its successor ends the change, or it does later."""
    for successor_lives in (True, False):
        cluster = led(3, (4,))
        cluster.change(1, promote(4))
        cluster.settle(frozen={2, 3})
        cluster.transfer(1, 2)
        cluster.settle(lambda message: message.from_node == 3 or message.to_node != 2)
        cluster.settle(lambda message: message.type is not MessageType.TIMEOUT_NOW)
        assert (cluster[1].commit_index, cluster[1].last_index) == (2, 2)
        if not successor_lives:
            cluster.crash(2)
        cluster.settle()
        live(cluster, ELECTION + 3)
        leader = 2 if successor_lives else 1
        assert role(cluster, leader) is Role.LEADER
        assert voters_of(cluster, leader) == [[1, 2, 3, 4]]
        assert cluster[leader].commit_index == cluster[leader].last_index


def test_learners_come_and_go_in_one_step() -> None:
    """Thesis 4.2.1: they are in no majority, so that nothing has to be joint."""
    cluster = led()
    cluster.join(4)
    cluster.change(1, add_learner(4))
    live(cluster, 1)
    assert role(cluster, 4) is Role.LEARNER
    assert cluster.nodes[4].applied == cluster.nodes[1].applied
    assert kinds(cluster, 1) == [EntryKind.NOOP, EntryKind.MEMBERSHIP]
    cluster.change(1, remove(4))
    live(cluster, 1)
    assert kinds(cluster, 1) == [EntryKind.NOOP, EntryKind.MEMBERSHIP, EntryKind.MEMBERSHIP]
    assert cluster[4].membership.ids == {1, 2, 3}
    assert 4 not in cluster[1].progress()


def test_a_cluster_moves_to_other_nodes_in_one_change() -> None:
    """Paper, section 6: any set to any other; here without a node in common, the leader among those who go."""
    cluster = led(3)
    for node in (4, 5, 6):
        cluster.join(node)
        cluster.change(1, add_learner(node))
        live(cluster, 1)
    cluster.propose(1, b"x")
    live(cluster, 1)
    cluster.change(1, Change(promote=frozenset({4, 5, 6}), remove=frozenset({1, 2, 3})))
    live(cluster, 3 * ELECTION)
    for node in (1, 2, 3):
        cluster.crash(node)
    (leader,) = (node for node, it in cluster.nodes.items() if it.leads)
    cluster.propose(leader, b"y")
    live(cluster, 1)
    assert leader in (4, 5, 6)
    assert cluster.nodes[4].applied == cluster.nodes[5].applied == cluster.nodes[6].applied == cluster.committed
    assert cluster.committed[-1].data == b"y"
