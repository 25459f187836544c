"""The rules of log replication, one test each: Raft paper 5.3, 5.4, 5.5, 6, 8; thesis 4.2.1, 10.2.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from raftstorage.node.raft.quorum import committed_index, has_quorum
from raftstorage.node.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    NotLeader,
    RaftInvariantError,
    Role,
)

from tests.unit.raft.one_node import disk, hear
from tests.unit.raft.raft_cluster import Cluster, MemoryLog

APPEND, ACK = MessageType.APPEND, MessageType.APPEND_REPLY


def entries(first: int, *terms: int) -> tuple[Entry, ...]:
    """Commands from index `first` on, the same as those of `disk`."""
    return tuple(Entry(term, i, EntryKind.COMMAND, b"%d" % i) for i, term in enumerate(terms, first))


def terms_of(log: MemoryLog) -> list[int]:
    return [log.term(index) for index in range(1, log.last_index() + 1)]


def replicated(size: int = 3, **options: Any) -> Cluster:
    """Node 1 leads in term 1, everybody has its no-op and knows that it is committed."""
    cluster = Cluster(range(1, size + 1), **options)
    cluster.elect(1)
    assert [cluster[node].commit_index for node in cluster.nodes] == [1] * size
    return cluster


def appends(cluster: Cluster, to: int) -> list[Message]:
    return [message for message in cluster.flying if message.type is APPEND and message.to_node == to]


def to(*nodes: int) -> Callable[[Message], bool]:
    return lambda message: message.to_node in nodes


# ---- the leader (5.3) ------------------------------------------------------------------------------------


def test_a_leader_appends_commands_to_its_log_and_sends_them_to_all() -> None:
    """Paper 5.3: with its term and the next indexes, and with index and term of the entry before."""
    cluster = replicated()
    assert cluster.propose(1, b"x", b"y") == 2
    wanted = (Entry(1, 2, EntryKind.COMMAND, b"x"), Entry(1, 3, EntryKind.COMMAND, b"y"))
    assert cluster.nodes[1].log()[1:] == list(wanted)
    for peer in (2, 3):
        (message,) = appends(cluster, peer)
        assert message == Message(APPEND, 1, peer, 1, log_index=1, log_term=1, entries=wanted, commit=1)


def test_only_a_leader_takes_commands_and_others_name_it() -> None:
    """Paper 5.1 and section 8: a client is sent on to the leader."""
    cluster = replicated()
    with pytest.raises(NotLeader, match="leader is 1"):
        cluster[2].propose([b"x"])
    assert cluster[2].last_index == 1


def test_a_new_leader_begins_its_term_with_a_no_op() -> None:
    """Paper, section 8; thesis 6.4: a blank entry, so that it learns what is committed."""
    cluster = Cluster(logs={node: disk(1, 1, 2) for node in (1, 2, 3)})
    cluster.elect(1)
    assert cluster.nodes[1].log()[3:] == [Entry(3, 4, EntryKind.NOOP)]
    assert cluster[1].commit_index == 4


def test_a_leader_never_overwrites_its_own_log() -> None:
    """Figure 3, leader append-only; 5.2: nobody else leads in its term."""
    cluster = replicated()
    cluster.propose(1, b"x")
    before = cluster.nodes[1].log()
    assert hear(cluster, APPEND, 2, 1, entries=entries(1, 1, 1, 1)) == []
    assert (cluster[1].role, cluster.nodes[1].log()) == (Role.LEADER, before)


def test_a_leader_sends_an_append_again_until_the_follower_has_it() -> None:
    """Paper 5.3: for ever, also when the command was committed and answered long ago."""
    cluster = replicated()
    cluster.cut(1, 3)
    cluster.propose(1, b"x")
    for _ in range(30):
        cluster.tick(1)
        cluster.settle()
    assert cluster[1].commit_index == 2
    assert cluster[3].last_index == 1
    cluster.heal()
    cluster.tick(1)
    cluster.settle()
    assert cluster.nodes[3].applied == cluster.nodes[1].applied
    assert len(cluster.nodes[3].applied) == 2


# ---- the consistency check (5.3) -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_index", "log_term", "refused"),
    [(0, 0, False), (1, 1, False), (2, 2, False), (1, 2, True), (2, 1, True), (2, 3, True), (3, 2, True)],
)
def test_a_follower_refuses_an_append_unless_it_has_the_entry_before(
    log_index: int, log_term: int, refused: bool
) -> None:
    """Paper 5.3; figure 2, AppendEntries 2: same index and same term."""
    cluster = Cluster(logs={1: disk(1, 2, term=3)})
    (reply,) = hear(cluster, APPEND, 2, 3, log_index=log_index, log_term=log_term)
    assert (reply.type, reply.reject, reply.log_index) == (ACK, refused, log_index)
    assert terms_of(cluster.nodes[1].disk) == [1, 2], "the check alone changes nothing"


@pytest.mark.parametrize(
    ("own", "log_index", "log_term", "new", "wanted"),
    [
        ((), 0, 0, (1, 1), [1, 1]),
        ((1, 2), 2, 2, (3,), [1, 2, 3]),
        ((1, 2), 1, 1, (3, 4), [1, 3, 4]),
        ((1, 2), 0, 0, (1,), [1, 2]),
        ((1, 2), 0, 0, (3,), [3]),
        ((1, 2, 2, 2), 1, 1, (2, 3), [1, 2, 3]),
        ((1, 2, 2, 2), 1, 1, (2,), [1, 2, 2, 2]),
    ],
)
def test_a_follower_drops_what_conflicts_and_appends_what_it_lacks(
    own: tuple[int, ...], log_index: int, log_term: int, new: tuple[int, ...], wanted: list[int]
) -> None:
    """Paper 5.3; figure 2, AppendEntries 3 and 4: all behind a conflict goes, nothing goes without one."""
    cluster = Cluster(logs={1: disk(*own, term=4)})
    sent = entries(log_index + 1, *new)
    (reply,) = hear(cluster, APPEND, 2, 4, log_index=log_index, log_term=log_term, entries=sent)
    assert (reply.reject, reply.log_index) == (False, log_index + len(new))
    assert terms_of(cluster.nodes[1].disk) == wanted
    assert list(cluster.nodes[1].log()) == cluster.nodes[1].disk.entries(1, len(wanted) + 1, 1 << 20)


def test_an_append_that_comes_twice_is_answered_the_same_and_changes_nothing() -> None:
    """Paper 5.5: the requests are idempotent."""
    cluster = Cluster(logs={1: disk(1)})
    message: dict[str, Any] = {"log_index": 1, "log_term": 1, "entries": entries(2, 1, 2)}
    first = hear(cluster, APPEND, 2, 2, **message)
    assert hear(cluster, APPEND, 2, 2, **message) == first
    assert terms_of(cluster.nodes[1].disk) == [1, 1, 2]


FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}
LEADER_OF_FIGURE_7 = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)


@pytest.mark.parametrize("follower", FIGURE_7)
def test_a_leader_makes_the_log_of_each_follower_of_figure_7_its_own(follower: str) -> None:
    """Paper 5.3, figure 7: missing entries come, extra ones go, and a refusal passes over whole terms."""
    own = FIGURE_7[follower]
    logs = {1: disk(*LEADER_OF_FIGURE_7, term=7), 2: disk(*own, term=7), 3: disk(*LEADER_OF_FIGURE_7, term=7)}
    cluster = Cluster(logs=logs)
    cluster.cut(1, 2)
    cluster.elect(1)
    assert terms_of(cluster.nodes[2].disk) == list(own)
    cluster.heal()
    refused: set[int] = set()
    for _ in range(20):
        cluster.tick(1)
        cluster.write(2, 9)
        refused |= {message.log_index for message in cluster.flying if message.reject}
        cluster.deliver()
    cluster.settle()
    assert terms_of(cluster.nodes[2].disk) == [*LEADER_OF_FIGURE_7, 8]
    assert cluster.nodes[2].applied == cluster.nodes[1].applied == cluster.nodes[1].log()
    assert len(refused) <= 1, "one is enough in each of these"
    cluster.checks.logs()


# ---- commitment (5.3, 5.4) -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "holders", "committed"),
    [
        (1, (1,), True),
        (2, (1,), False),
        (3, (2,), False),
        (3, (1, 2), True),
        (3, (2, 3), True),
        (4, (1, 2), False),
        (4, (1, 2, 4), True),
        (5, (1, 2), False),
        (5, (3, 4, 5), True),
    ],
)
def test_an_entry_is_committed_when_a_majority_has_it_on_disk(
    size: int, holders: tuple[int, ...], committed: bool
) -> None:
    """Paper 5.3; thesis 10.2.1: the leader's own disk is one among equals."""
    cluster = replicated(size)
    index = cluster.propose(1, b"x")
    cluster.settle(frozen=set(cluster.nodes) - set(holders))
    assert cluster[1].commit_index == (index if committed else index - 1)


def test_a_leader_sends_entries_while_it_writes_them_itself() -> None:
    """Thesis 10.2.1: its own write and those of the followers are under way together."""
    cluster = replicated()
    cluster.propose(1, b"x")
    assert len(appends(cluster, 2)) == len(appends(cluster, 3)) == 1
    cluster.settle(frozen={1})
    assert cluster.nodes[1].disk.last_index() == 1
    assert cluster[1].commit_index == 2
    assert len(cluster.nodes[1].applied) == 1, "applied here only when it is on disk here"
    cluster.settle()
    assert len(cluster.nodes[1].applied) == 2


@pytest.mark.parametrize("before", [(), (1,), (1, 1), (1, 2, 2)])
def test_an_entry_commits_all_entries_before_it(before: tuple[int, ...]) -> None:
    """Paper 5.3 and 5.4.2: also those that former leaders made."""
    cluster = Cluster(logs={1: disk(*before), 2: disk(*before[:1], term=before[-1] if before else 0)})
    cluster.elect(1, to(1, 2))
    cluster.propose(1, b"x")
    cluster.settle(to(1, 2))
    assert cluster[1].commit_index == len(before) + 2
    assert cluster.nodes[1].applied == cluster.nodes[1].log()


def test_a_leader_does_not_commit_entries_of_former_terms_by_counting() -> None:
    """Paper 5.4.2: on every disk, and yet not committed before an entry of its own term is."""
    cluster = Cluster(logs={node: disk(1, 2) for node in (1, 2, 3)}, max_message_entries=1)
    cluster.elect(1, lambda message: message.type is not APPEND)
    for follower in (2, 3):
        assert {message.log_index for message in appends(cluster, follower)} == {2}
    cluster.drop()
    for follower in (2, 3):
        cluster.step(Message(ACK, follower, 1, 3, log_index=2))
    assert [cluster[1].progress()[node].match for node in (2, 3)] == [2, 2]
    assert cluster[1].commit_index == 0
    cluster.settle()
    assert cluster[1].commit_index == 3


def test_followers_apply_in_log_order_what_the_leader_says_is_committed() -> None:
    """Paper 5.3: each entry once, when they learn of its commitment and not before."""
    cluster = replicated(max_apply_bytes=0)
    cluster.propose(1, b"x", b"y")
    cluster.propose(1, b"z")
    cluster.deliver()
    cluster.write(2, 9)
    assert cluster.nodes[2].disk.last_index() == 4
    assert len(cluster.nodes[2].applied) == 1
    cluster.settle()
    for it in cluster.nodes.values():
        assert [entry.data for entry in it.applied] == [b"", b"x", b"y", b"z"]


@pytest.mark.parametrize(
    ("new", "leader_commit", "wanted"),
    [((), 0, 0), ((), 1, 1), ((), 3, 1), ((1,), 1, 1), ((1,), 2, 2), ((1,), 3, 2), ((1, 1), 3, 3), ((1, 1), 9, 3)],
)
def test_a_follower_commits_no_further_than_the_last_entry_that_was_compared(
    new: tuple[int, ...], leader_commit: int, wanted: int
) -> None:
    """Figure 2, AppendEntries 5: the lesser of the leader's commit index and the last new entry."""
    cluster = Cluster(logs={node: disk(1, 1, 1, 1) for node in (1, 2, 3)})
    hear(cluster, APPEND, 2, 1, log_index=1, log_term=1, entries=entries(2, *new), commit=leader_commit)
    assert cluster[1].commit_index == len(cluster.nodes[1].applied) == wanted


def test_a_heartbeat_commits_nothing_that_was_not_compared() -> None:
    """Paper 5.3: the follower has an entry at the committed index, but it is another one."""
    cluster = Cluster(logs={1: disk(1, 3), 2: disk(1, 2, 2, term=3), 3: disk(1, 3)})
    cluster.elect(1, to(1, 3))
    cluster.settle(to(1, 3))
    assert cluster[1].commit_index == 3
    cluster.tick(1)
    assert cluster.deliver(lambda m: m.type is MessageType.HEARTBEAT and m.to_node == 2) == 1
    assert (cluster[2].leader, cluster[2].commit_index) == (1, 0)


@pytest.mark.parametrize("term", [2, 3])
def test_a_committed_entry_is_never_replaced(term: int) -> None:
    """Figure 3, state machine safety: whoever asks for it breaks Raft, and the node stops."""
    cluster = Cluster(logs={node: disk(1, 2) for node in (1, 2, 3)})
    hear(cluster, APPEND, 2, 2, log_index=2, log_term=2, commit=2)
    cluster[1].step(Message(APPEND, 2, 1, term, entries=entries(1, 1)))
    with pytest.raises(RaftInvariantError):
        cluster[1].step(Message(APPEND, 2, 1, term, entries=entries(1, 1, 1)))
    assert terms_of(cluster.nodes[1].disk) == [1, 2]


def test_a_commit_index_is_learned_anew_after_a_restart() -> None:
    """Figure 2: term, vote and log are on disk; the commit index is not, and starts with what was applied."""
    cluster = replicated()
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.crash(2)
    cluster.restart(2, applied=0)
    assert (cluster[2].commit_index, cluster[2].last_index, cluster[2].term) == (0, 2, 1)
    cluster.tick(1)
    cluster.settle()
    assert cluster[2].commit_index == 2
    assert cluster.nodes[2].applied == cluster.nodes[1].applied


def test_a_learner_gets_every_entry_and_is_in_no_majority() -> None:
    """Thesis 4.2.1: a server that is being caught up has no vote in commitment either."""
    cluster = Cluster((1, 2, 3), (4, 5))
    cluster.elect(1)
    index = cluster.propose(1, b"x")
    cluster.settle(frozen=(2, 3))
    assert [cluster.nodes[node].disk.last_index() for node in (1, 4, 5)] == [index] * 3
    assert cluster[1].commit_index == index - 1
    cluster.settle()
    assert cluster.nodes[4].applied == cluster.nodes[1].log()


@pytest.mark.parametrize(
    ("match", "agreed"),
    [((9, 9, 0, 0, 0), 0), ((9, 9, 9, 0, 0), 0), ((0, 0, 9, 9, 9), 0), ((9, 2, 9, 5, 0), 5), ((9, 9, 3, 4, 1), 3)],
)
def test_a_joint_configuration_needs_a_majority_of_both(match: tuple[int, ...], agreed: int) -> None:
    """Paper, section 6: for votes as for entries; the old voters are 1, 2, 3 and the new ones 3, 4, 5."""
    both = (frozenset({1, 2, 3}), frozenset({3, 4, 5}))
    assert committed_index(both, lambda node: match[node - 1]) == agreed
    assert has_quorum(both, {node for node, index in enumerate(match, 1) if index}) is (agreed > 0)


# ---- the pipeline (thesis 10.2.1) ------------------------------------------------------------------------


def test_a_leader_sends_the_next_append_before_the_last_is_answered() -> None:
    """Thesis 10.2.1: the next index moves on as soon as something is sent; a window bounds it."""
    cluster = replicated(max_inflight_messages=3)
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    assert [message.log_index for message in appends(cluster, 2)] == [1, 2, 3]
    (first, *_) = appends(cluster, 2)
    cluster.settle(lambda m: m is first or (m.type is ACK and m.from_node == 2))
    assert [message.log_index for message in appends(cluster, 2)][:3] == [2, 3, 4]
    cluster.settle()
    assert cluster[1].commit_index == 6


@pytest.mark.parametrize("lost", [{0}, {1}, {2}, {0, 1, 2}])
def test_an_append_that_is_lost_in_the_pipeline_is_sent_again(lost: set[int]) -> None:
    """Thesis 10.2.1: the check of the next one fails, and the leader goes back to where the logs agree."""
    cluster = replicated()
    cluster.cut(1, 3)
    for number in range(3):
        cluster.propose(1, b"%d" % number)
    for position, message in enumerate(appends(cluster, 2)):
        if position in lost:
            cluster.flying.remove(message)
    cluster.settle()
    cluster.tick(1)  # nothing may follow what was lost: then a heartbeat's answer tells
    cluster.settle()
    assert cluster[1].commit_index == 4
    assert cluster.nodes[2].applied == cluster.nodes[1].log()


def test_appends_that_overtake_each_other_do_no_harm() -> None:
    """Thesis 10.2.1: the consistency check tells; what came too early is sent again."""
    cluster = replicated()
    for number in range(4):
        cluster.propose(1, b"%d" % number)
    for message in reversed(appends(cluster, 2)):
        cluster.flying.remove(message)
        cluster.step(message)
    cluster.settle()
    assert cluster.nodes[2].applied == cluster.nodes[1].log()
    assert len(cluster.nodes[2].applied) == 5


def test_until_the_logs_agree_one_append_at_a_time_is_under_way() -> None:
    """Paper 5.3: the leader looks for the place; thesis 10.2.1: only then it sends ahead."""
    cluster = Cluster()
    cluster.elect(1, lambda message: message.type is not APPEND)
    for number in range(3):
        cluster.propose(1, b"%d" % number)
    assert len(appends(cluster, 2)) == 1
    assert cluster.nodes[2].disk.hard_state == HardState(1, 1)
    cluster.settle()
    assert cluster[2].commit_index == 4
