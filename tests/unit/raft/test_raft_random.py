"""Random clusters: loss, repetition, reordering, crashes that lose what was not written, restarts, transfers.

Every guarantee is checked by `raft_cluster.Cluster` all along. That the checks see something is shown by mutants:
each is a classic mistake built into the core, and the same runs must find it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from unittest import mock

import pytest
from raft_cluster import Cluster, MemoryLog, Violation
from raftstorage.node.raft import core as core_module
from raftstorage.node.raft import election, following, leading
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.log import RaftLog
from raftstorage.node.raft.outbox import Outbox
from raftstorage.node.raft.quorum import committed_index
from raftstorage.node.raft.types import (
    Entry,
    HardState,
    Message,
    MessageType,
    NotLeader,
    RaftInvariantError,
    Role,
)


class Chaos:
    """One random run over a cluster."""

    def __init__(self, seed: str) -> None:
        self.rng = rng = random.Random(seed)
        size = rng.choice((1, 2, 3, 3, 3, 4, 5, 5))
        learners = (9,) if rng.random() < 0.2 else ()
        self.cluster = Cluster(
            range(1, size + 1),
            learners,
            random=lambda node: random.Random(f"{seed}/{node}"),
            election_ticks=rng.choice((3, 4, 6)),
            max_message_entries=rng.choice((1, 2, 64)),
            max_message_bytes=rng.choice((4, 64, 1024)),
            max_inflight_messages=rng.choice((1, 3, 16)),
            max_inflight_bytes=rng.choice((8, 1024)),
            max_apply_bytes=rng.choice((1, 100)),
        )
        self.loss = rng.choice((0.0, 0.02, 0.15))
        self.repeat = rng.choice((0.0, 0.05))
        self.reorder = rng.random() < 0.6
        self.slow_disk = rng.choice((0.2, 0.5, 0.9))
        self.crashes = rng.choice((0.0, 0.004, 0.04))
        self.coups = rng.choice((0.0, 0.0, 0.03))
        self.storms = rng.choice((0.0, 0.01, 0.03))
        self.blinks = rng.choice((0.0, 0.5, 1.0))
        self.ticks = rng.choice((0.1, 0.2, 0.4))
        self.requests = 0

    def run(self, steps: int) -> None:
        cluster, rng = self.cluster, self.rng
        for step in range(steps):
            node = rng.choice(list(cluster.nodes))
            it = cluster.nodes[node]
            if not it.up:
                if rng.random() < 0.1:
                    cluster.restart(node, rng.randint(0, len(it.applied)))
                continue
            chance = rng.random()
            if chance < self.ticks:
                cluster.tick(node, rng.choice((1, 1, 1, 4)))
            elif chance < self.ticks + 0.06:
                self.ask(node)
            if rng.random() < self.crashes:
                self.crash(node)
                continue
            if it.writes and rng.random() > self.slow_disk:
                cluster.write(node, rng.randint(1, len(it.writes)))
            for _ in range(rng.randint(0, 6)):
                self.deliver_one()
            if rng.random() < 0.02:
                self.partition()
            if rng.random() < self.coups:
                for leader in [other for other in cluster.nodes if cluster[other].role is Role.LEADER]:
                    self.crash(leader)
            if rng.random() < self.storms:
                self.storm()
            if step % 50 == 0:
                cluster.check_logs()
        cluster.check_logs()

    def ask(self, node: int) -> None:
        cluster, rng = self.cluster, self.rng
        core = cluster[node]
        kind = rng.random()
        self.requests += 1
        if kind < 0.3:
            cluster.read(node, self.requests)
        elif core.role is Role.LEADER:
            if kind < 0.35:
                cluster.transfer(node, rng.choice(list(cluster.nodes)))
            else:
                try:
                    cluster.propose(node, *(b"%d.%d" % (self.requests, i) for i in range(rng.randint(1, 3))))
                except NotLeader:
                    assert core.transferring_to

    def deliver_one(self) -> None:
        cluster, rng = self.cluster, self.rng
        if not cluster.flying:
            return
        position = rng.randrange(len(cluster.flying)) if self.reorder else 0
        message = cluster.flying[position]
        if rng.random() >= self.repeat:
            del cluster.flying[position]
        if rng.random() >= self.loss and (message.from_node, message.to_node) not in cluster.cuts:
            cluster.step(message)
        if len(cluster.flying) > 200:
            del cluster.flying[rng.randrange(len(cluster.flying))]

    def partition(self) -> None:
        cluster, rng = self.cluster, self.rng
        if cluster.cuts and rng.random() < 0.7:
            cluster.heal()
        else:
            cluster.cut(*rng.choices(list(cluster.nodes), k=2), both=rng.random() < 0.7)
            if rng.random() < 0.5:
                cluster.isolate(rng.choice(list(cluster.nodes)))

    def crash(self, node: int) -> None:
        """Often it is back before anybody noticed."""
        self.cluster.crash(node)
        if self.rng.random() < self.blinks:
            self.cluster.restart(node, self.rng.randint(0, len(self.cluster.nodes[node].applied)))

    def storm(self) -> None:
        """Everybody loses patience at once: several candidates in one term."""
        for node, it in self.cluster.nodes.items():
            if it.up and it.core.role is not Role.LEADER:
                self.cluster.tick(node, 2 * it.config.election_ticks)

    def recover(self) -> None:
        """When the faults end, a leader comes, commits what is proposed, and every read is answered or lost."""
        cluster = self.cluster
        cluster.heal()
        for node, it in cluster.nodes.items():
            if not it.up:
                cluster.restart(node)
        for _ in range(40):
            cluster.settle()
            for node in cluster.nodes:
                cluster.tick(node)
        cluster.settle()
        leaders = [node for node in cluster.nodes if cluster[node].role is Role.LEADER]
        assert len(leaders) == 1, "no leader after the faults ended"
        cluster.propose(leaders[0], b"last")
        cluster.settle()
        for it in cluster.nodes.values():
            assert it.applied[-1].data == b"last"
            assert it.applied == cluster.committed


def run(seed: str, steps: int = 2_500) -> Chaos:
    chaos = Chaos(seed)
    chaos.run(steps)
    chaos.recover()
    return chaos


@pytest.mark.parametrize("part", range(10))
def test_random_clusters_keep_every_guarantee(part: int, seed: int) -> None:
    for number in range(12):
        run(f"{seed}/{part}/{number}")


@pytest.mark.soak
def test_random_clusters_for_long(seed: int) -> None:
    for number in range(5_000):
        run(f"{seed}/soak/{number}", 1_000)


def test_the_runs_do_something() -> None:
    runs = [run(f"fixed/{number}") for number in range(30)]
    assert sum(len(each.cluster.committed) for each in runs) > 1_000
    assert sum(len(each.cluster.leaders) for each in runs) > 150
    answered = sum(len(it.reads) for each in runs for it in each.cluster.nodes.values())
    assert answered > 100


# ---- mutants -----------------------------------------------------------------------------------------


def commits_older_terms() -> AbstractContextManager[object]:
    def advance_commit(core: RaftCore) -> None:
        index = committed_index(
            core.voters, lambda node: core.log.stable if node == core.node_id else core.peers[node].match
        )
        core.commit_to(index)

    return mock.patch.object(leading, "advance_commit", advance_commit)


def counts_own_unwritten_entries() -> AbstractContextManager[object]:
    def advance_commit(core: RaftCore) -> None:
        index = committed_index(
            core.voters, lambda node: core.log.last_index if node == core.node_id else core.peers[node].match
        )
        if index > core.commit_index and core.log.term(index) == core.term:
            core.commit_to(index)

    return mock.patch.object(leading, "advance_commit", advance_commit)


def acknowledges_before_the_write() -> AbstractContextManager[object]:
    return mock.patch.object(Outbox, "put_after_write", Outbox.put)


def forgets_its_vote() -> AbstractContextManager[object]:
    original = MemoryLog.write

    def write(self: MemoryLog, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        original(self, hard_state and HardState(hard_state.term, 0), entries)

    return mock.patch.object(MemoryLog, "write", write)


def votes_twice_in_a_term() -> AbstractContextManager[object]:
    original = election.on_request

    def on_request(core: RaftCore, message: Message) -> None:
        if message.type is MessageType.VOTE and core.role is not Role.LEADER:
            core.vote = core.leader = 0
        original(core, message)

    return mock.patch.object(election, "on_request", on_request)


def votes_for_any_log() -> AbstractContextManager[object]:
    original = election.on_request

    def on_request(core: RaftCore, message: Message) -> None:
        with mock.patch.object(RaftLog, "last_term", 0), mock.patch.object(RaftLog, "last_index", 0):
            original(core, message)

    return mock.patch.object(election, "on_request", on_request)


def majority_is_half() -> AbstractContextManager[object]:
    return mock.patch("raftstorage.node.raft.quorum.majority", lambda voters: max(1, len(voters) // 2))


def cuts_without_conflict() -> AbstractContextManager[object]:
    original = following.on_append

    def on_append(core: RaftCore, message: Message) -> None:
        last = message.log_index + len(message.entries)
        if core.commit_index <= last < core.last_index and core.log.matches(message.log_index, message.log_term):
            core.log.truncate(max(message.log_index, core.commit_index) + 1, core.commit_index)
        original(core, message)

    return mock.patch.object(following, "on_append", on_append)


def ignores_the_entry_before() -> AbstractContextManager[object]:
    original = following.on_append

    def on_append(core: RaftCore, message: Message) -> None:
        with mock.patch.object(RaftLog, "matches", _matches_blindly):
            original(core, message)

    return mock.patch.object(following, "on_append", on_append)


def _matches_blindly(self: RaftLog, index: int, term: int) -> bool:
    return index < self.last_index or (index == self.last_index and self.term(index) == term)


def reads_without_a_round() -> AbstractContextManager[object]:
    def start_read_round(core: RaftCore) -> None:
        if core.reads.wants_round and core.has_own_term_commit:
            reads, core.reads.waiting = core.reads.waiting, []
            for read in reads:
                core.answer_read(read, core.commit_index)

    return mock.patch.object(leading, "start_read_round", start_read_round)


def reads_before_the_noop() -> AbstractContextManager[object]:
    return mock.patch.object(RaftCore, "has_own_term_commit", property(lambda core: core.role is Role.LEADER))


def takes_an_old_write_for_new_entries() -> AbstractContextManager[object]:
    original = RaftLog.truncate

    def truncate(self: RaftLog, index: int, commit: int) -> None:
        writes = [list(write) for write in self._writes]
        original(self, index, commit)
        self._writes.clear()
        self._writes.extend(writes)

    return mock.patch.object(RaftLog, "truncate", truncate)


def applies_what_is_not_durable() -> AbstractContextManager[object]:
    def take(core: RaftCore) -> tuple[Entry, ...]:
        low = core._given_to_apply + 1
        entries = core.log.entries(low, core.commit_index + 1, 1 << 20, 1 << 20)
        core._given_to_apply = entries[-1].index if entries else core._given_to_apply
        return entries

    return mock.patch.object(core_module.RaftCore, "_take_applicable", take)


# Chance seldom plays these two stories through, so they are told.


def figure_8() -> None:
    """The paper's figure 8, up to (d): an entry of an old term is on a majority and is overwritten all the same."""
    cluster = Cluster(range(1, 6), max_message_entries=1)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.settle(lambda message: message.to_node in (1, 2), frozen=(3, 4, 5))
    cluster.crash(1)
    cluster.flying.clear()
    cluster.elect(5, lambda message: message.type is not MessageType.APPEND)
    cluster.crash(5)
    cluster.flying.clear()
    cluster.restart(1)
    cluster.elect(1, lambda message: message.type is not MessageType.APPEND)
    third = cluster.nodes[3].disk

    def old_entries_to_third(message: Message) -> bool:
        if message.type is MessageType.APPEND and message.to_node == 3 and third.matches(message.log_index, 1):
            return all(entry.term == 1 for entry in message.entries)
        return message.to_node in (1, 2, 3)

    cluster.settle(old_entries_to_third)
    assert [entry.term for entry in cluster.nodes[3].disk.entries(1, 3, 1 << 20)] == [1, 1]
    assert {node for node, it in cluster.nodes.items() if it.disk.matches(2, 1)} >= {1, 2, 3}
    cluster.crash(1)
    cluster.flying.clear()
    cluster.restart(5)
    cluster.elect(5)
    assert [entry.term for entry in cluster.nodes[3].disk.entries(1, 3, 1 << 20)] == [1, 2]


def a_voter_crashes_between_two_candidates() -> None:
    cluster = Cluster()
    cluster.time_out(1)
    cluster.time_out(2)
    votes = (MessageType.VOTE, MessageType.VOTE_REPLY)
    cluster.settle(lambda message: message.type not in votes)
    assert cluster[1].role is cluster[2].role is Role.CANDIDATE
    cluster.settle(lambda message: message.type in votes and 2 not in (message.from_node, message.to_node))
    assert cluster[1].role is Role.LEADER
    cluster.crash(3)
    cluster.restart(3)
    cluster.settle(lambda message: message.type in votes and 1 not in (message.from_node, message.to_node))
    assert cluster[2].role is not Role.LEADER


STORIES: dict[Callable[[], AbstractContextManager[object]], Callable[[], None]] = {
    commits_older_terms: figure_8,
    forgets_its_vote: a_voter_crashes_between_two_candidates,
}

MUTANTS: list[Callable[[], AbstractContextManager[object]]] = [
    counts_own_unwritten_entries,
    acknowledges_before_the_write,
    votes_twice_in_a_term,
    votes_for_any_log,
    majority_is_half,
    cuts_without_conflict,
    ignores_the_entry_before,
    reads_without_a_round,
    reads_before_the_noop,
    takes_an_old_write_for_new_entries,
    applies_what_is_not_durable,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught(mutant: Callable[[], AbstractContextManager[object]]) -> None:
    with mutant():
        for number in range(400):
            try:
                Chaos(f"mutant/{number}").run(2_500)
            except (Violation, RaftInvariantError, IndexError) as error:
                print(f"run {number}: {error}")
                return
    pytest.fail("400 runs did not find it")


@pytest.mark.parametrize("mutant", STORIES, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught_by_stories(mutant: Callable[[], AbstractContextManager[object]]) -> None:
    STORIES[mutant]()
    with mutant(), pytest.raises(Violation):
        STORIES[mutant]()
