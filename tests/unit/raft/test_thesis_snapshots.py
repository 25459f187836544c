"""The rules of logs that were cut, one test each: Raft paper, section 7; thesis, chapter 5."""

from __future__ import annotations

import pytest
from raftstorage.node.raft.tracker import ProgressState
from raftstorage.node.raft.types import (
    FetchSnapshot,
    HardState,
    Message,
    MessageType,
)

from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.one_node import ELECTION, hear
from tests.unit.raft.raft_cluster import Cluster
from tests.unit.raft.snapshot_clusters import beat, behind, commands, core_on

APPEND, ACK, OFFER = MessageType.APPEND, MessageType.APPEND_REPLY, MessageType.SNAPSHOT


# ---- what the leader does ------------------------------------------------------------------------------------


def test_a_follower_that_needs_what_was_cut_is_offered_a_snapshot() -> None:
    """Thesis 5: the leader's log begins behind the entry that the offer names."""
    cluster = behind()
    cluster.tick(1)
    cluster.settle(lambda message: message.type is not OFFER)
    (offer,) = (message for message in cluster.flying if message.type is OFFER)
    assert offer == Message(OFFER, 1, 3, 1, log_index=6, log_term=1)
    assert cluster[1].progress()[3].state is ProgressState.SNAPSHOT
    cluster.settle()
    assert cluster.nodes[3].fetch == FetchSnapshot(1, 6, 1)
    assert cluster[3].commit_index == 1, "an offer is not the thing"


def test_nothing_else_is_sent_to_it_but_heartbeats_and_the_offer_again() -> None:
    """The offer may be lost, and what is behind it can be cut off meanwhile: it names the newest."""
    cluster = behind()
    beat(cluster)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.compact(1)
    cluster.tick(1)
    seen: list[Message] = []
    while cluster.flying or any(it.writes for it in cluster.nodes.values()):
        seen += [message for message in cluster.flying if message.to_node == 3]
        cluster.deliver()
        for node in cluster.nodes:
            cluster.write(node, 9)
    assert {message.type for message in seen} == {MessageType.HEARTBEAT, OFFER}
    assert cluster.nodes[3].fetch == FetchSnapshot(1, 7, 1)


def test_from_the_snapshot_on_it_gets_entries_again() -> None:
    """Thesis 5.1."""
    cluster = behind()
    beat(cluster)
    assert cluster.install(3)
    cluster.propose(1, b"x")
    cluster.settle()
    assert cluster[1].progress()[3].state is ProgressState.REPLICATE
    assert cluster.nodes[3].applied == cluster.nodes[1].applied == cluster.committed
    assert cluster.nodes[3].disk.base == (6, 1)


def test_a_snapshot_that_is_older_than_the_leaders_log_by_now_is_not_enough() -> None:
    cluster = behind()
    beat(cluster)
    old = cluster.download(3)
    cluster.propose(1, b"x", b"y")
    cluster.settle()
    cluster.compact(1)
    assert old is not None
    assert cluster.install(3, old)
    cluster.settle()
    peer = cluster[1].progress()[3]
    assert (peer.state, peer.match) == (ProgressState.SNAPSHOT, 6)
    beat(cluster)
    assert cluster.install(3)
    cluster.settle()
    assert cluster[1].progress()[3].state is ProgressState.REPLICATE
    assert cluster.nodes[3].applied == cluster.committed


@pytest.mark.parametrize("reject", [False, True])
def test_old_answers_do_not_end_the_wait_for_the_snapshot(reject: bool) -> None:
    cluster = behind()
    beat(cluster)
    hear(cluster, ACK, 3, 1, log_index=5 if reject else 4, reject=reject, hint_index=1, hint_term=1)
    assert cluster[1].progress()[3].state is ProgressState.SNAPSHOT


def test_a_pipeline_whose_entries_were_cut_ends_in_an_offer() -> None:
    """What is in flight was lost, and cannot be read again."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(3)
    for number in range(3):
        cluster.propose(1, b"%d" % number)
    cluster.settle()
    assert cluster[1].progress()[3].state is ProgressState.REPLICATE
    cluster.compact(1)
    cluster.heal()
    beat(cluster, 2)
    assert cluster.nodes[3].fetch == FetchSnapshot(1, 4, 1)


def test_a_log_may_be_cut_up_to_the_entry_that_a_follower_has() -> None:
    """The term of the base is known: what follows it can be sent."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.crash(3)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.compact(1, 1)
    cluster.restart(3)
    beat(cluster, 2)
    assert cluster.nodes[3].fetch is None
    assert cluster.nodes[3].applied == cluster.committed


def test_a_leader_whose_log_is_empty_leads() -> None:
    """Thesis 5: the term of the last entry of a snapshot serves for elections and for the consistency check."""
    disks = {node: MemoryLog([], HardState(3), (7, 2)) for node in (1, 2, 3)}
    for disk in disks.values():
        core = core_on(disk, 7)
        assert (core.last_index, core.commit_index, core.log.last_term) == (7, 7, 2)
    core = core_on(disks[1], 7)
    for _ in range(ELECTION):
        core.tick()
    assert {(m.type, m.log_index, m.log_term) for m in core.take_output().send} == {(MessageType.PRE_VOTE, 7, 2)}


# ---- what a follower does ------------------------------------------------------------------------------------


def test_an_offer_of_what_is_committed_here_is_answered_so() -> None:
    cluster = behind()
    (reply,) = hear(cluster, OFFER, 1, 1, to=2, log_index=4, log_term=1)
    assert (reply.type, reply.reject, reply.log_index) == (ACK, False, 6)
    assert cluster.nodes[2].fetch is None


def test_an_offer_of_an_entry_that_the_log_has_commits_it() -> None:
    """A state covers it, so that it was committed."""
    cluster = Cluster(logs={1: MemoryLog(commands(1, 1, 1, 2), HardState(2))})
    (reply,) = hear(cluster, OFFER, 2, 2, log_index=2, log_term=1)
    assert (reply.type, reply.reject, reply.log_index) == (ACK, False, 2)
    assert (cluster[1].commit_index, cluster.nodes[1].fetch) == (2, None)


@pytest.mark.parametrize(("index", "term"), [(2, 2), (4, 2), (9, 2)])
def test_an_offer_of_an_entry_that_the_log_lacks_is_taken_up(index: int, term: int) -> None:
    cluster = Cluster(logs={1: MemoryLog(commands(1, 1, 1, 2), HardState(2))})
    assert hear(cluster, OFFER, 2, 2, log_index=index, log_term=term) == []
    assert cluster.nodes[1].fetch == FetchSnapshot(2, index, term)
    assert (cluster[1].leader, cluster[1].commit_index, cluster[1].last_index) == (2, 0, 3)


@pytest.mark.parametrize(("index", "log_term"), [(0, 0), (0, 1), (3, 0), (3, 4)])
def test_offers_that_make_no_sense_are_ignored(index: int, log_term: int) -> None:
    cluster = Cluster()
    assert hear(cluster, OFFER, 2, 3, log_index=index, log_term=log_term) == []
    assert (cluster[1].term, cluster[1].leader, cluster.nodes[1].fetch) == (0, 0, None)


def test_a_stale_leader_that_offers_is_told_the_term() -> None:
    """Paper 5.1."""
    cluster = Cluster(logs={1: MemoryLog([], HardState(4))})
    (reply,) = hear(cluster, OFFER, 2, 3, log_index=3, log_term=1)
    assert (reply.type, reply.term, reply.reject) == (ACK, 4, True)
    assert cluster.nodes[1].fetch is None


def test_an_append_from_before_the_base_is_taken_from_there() -> None:
    """What is covered by the state is committed, and never looked at again."""
    cluster = Cluster()
    cluster.nodes[1].disk = MemoryLog(commands(6, 1), HardState(2), (5, 1))
    cluster.nodes[1].applied = commands(1, 1, 1, 1, 1, 1)
    cluster.restart(1)
    (reply,) = hear(cluster, APPEND, 2, 2, log_index=2, log_term=1, entries=tuple(commands(3, 1, 1)))
    assert (reply.reject, reply.log_index) == (False, 5)
    (reply,) = hear(cluster, APPEND, 2, 2, log_index=2, log_term=1, entries=tuple(commands(3, 1, 1, 1, 2)))
    assert (reply.reject, reply.log_index) == (False, 6)
    assert [entry.term for entry in cluster.nodes[1].log()] == [2], "behind the base it is the leader's"


def test_a_refusal_never_hints_below_the_base() -> None:
    """Paper 5.3: at the base the logs agree, as it was committed."""
    cluster = Cluster()
    cluster.nodes[1].disk = MemoryLog(commands(6, 4, 4), HardState(5), (5, 2))
    cluster.nodes[1].applied = commands(1, 1, 1, 1, 1, 2)
    cluster.restart(1)
    for log_term in (1, 2, 3):
        (reply,) = hear(cluster, APPEND, 2, 5, log_index=7, log_term=log_term)
        assert (reply.reject, reply.hint_index, reply.hint_term) == (True, 5, 2)
    (reply,) = hear(cluster, APPEND, 2, 5, log_index=9, log_term=5)
    assert (reply.hint_index, reply.hint_term) == (7, 4)
