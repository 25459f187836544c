from __future__ import annotations

import random
import time

import pytest
from persistent.timestamp import TimeStamp
from raftstorage.node.engine.api import Z64
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.raft.types import Entry, EntryKind, NotLeader
from raftstorage.node.tids import LAST_GIVEN, timestamp_tid
from raftstorage.node.transactions import Coordinator
from raftstorage.node.works import CoordinatorLimits
from raftstorage.proto import storage_pb2 as pb

NOW = 1_700_000_000.0
A, B = b"A" * 16, b"B" * 16


def oid(number: int) -> bytes:
    return number.to_bytes(8, "big")


def change(*writes: int, base: bytes = Z64, checks: tuple[int, ...] = (), tid: bytes = b"") -> pb.Transaction:
    transaction = pb.Transaction(tid=tid)
    for number in writes:
        transaction.records.add(oid=oid(number), base_serial=base, data=b"data %d" % number)
    for number in checks:
        transaction.checks.add(oid=oid(number), serial=Z64)
    return transaction


class Node:
    """A coordinator with an engine and a log that holds proposals back until `apply`."""

    def __init__(self, limits: CoordinatorLimits | None = None) -> None:
        self.engine = MemoryEngine()
        self.log: list[bytes] = []
        self.leads = True
        self.term = 1
        self.wall = NOW
        self.coordinator = Coordinator(
            self.engine, self.propose, lambda: self.term, lambda: self.wall, 30.0, limits
        )

    def propose(self, data: bytes) -> int:
        if not self.leads:
            raise NotLeader("no")
        self.log.append(data)
        return self.engine.applied_index + len(self.log)

    def apply(self, now: float = NOW, term: int | None = None) -> None:
        batch = []
        for data in self.log:
            index = self.engine.applied_index + 1
            entry = Entry(term or self.term, index, EntryKind.COMMAND, data)
            batch.append((entry, self.engine.apply(entry)))
        self.log.clear()
        self.coordinator.applied(batch, now)

    def vote(
        self, identity: bytes, transaction: pb.Transaction, now: float = NOW, owner: object = None
    ) -> list[pb.Event]:
        answers: list[pb.Event] = []
        body = transaction.SerializeToString()
        self.coordinator.vote(owner, identity, transaction, body, now, answers.append)
        return answers

    def commit(self, identity: bytes, transaction: pb.Transaction, now: float = NOW) -> list[pb.Event]:
        answers: list[pb.Event] = []
        body = transaction.SerializeToString()
        self.coordinator.commit(None, identity, transaction, body, now, answers.append)
        return answers

    def finish(self, identity: bytes, now: float = NOW) -> list[pb.Event]:
        answers: list[pb.Event] = []
        self.coordinator.finish(identity, now, answers.append)
        return answers

    def oids(self, count: int) -> list[pb.Event]:
        answers: list[pb.Event] = []
        self.coordinator.allocate_oids(count, answers.append)
        return answers


@pytest.fixture
def node() -> Node:
    return Node()


def test_timestamps_are_those_of_persistent() -> None:
    rng = random.Random(7)
    for _ in range(500):
        now = rng.uniform(0, 4e9)
        parts = time.gmtime(now)
        assert timestamp_tid(now) == TimeStamp(*parts[:5], now % 60).raw()


@pytest.mark.parametrize("wall", [-1e12, -1.0, 4e10, 1e18])
def test_a_clock_that_is_wrong_leaves_tids_for_others(node: Node, wall: float) -> None:
    node.wall = wall
    first = node.commit(A, change(1))
    node.apply()
    node.wall = NOW
    second = node.commit(B, change(2))
    node.apply()
    assert first[0].committed.tid < second[0].committed.tid
    assert first[0].committed.tid <= LAST_GIVEN


def test_a_clock_that_jumps_ends_no_lease(node: Node) -> None:
    node.vote(A, change(1))
    node.wall += 1e6
    node.coordinator.tick(NOW + 1)
    answers = node.finish(A, now=NOW + 1)
    node.apply()
    assert answers[0].HasField("committed")


def test_vote_and_finish_commit(node: Node) -> None:
    (answer,) = node.vote(A, change(1))
    assert answer.WhichOneof("kind") == "vote" and not answer.vote.conflicts
    answers = node.finish(A)
    joined = node.finish(A)
    assert answers == []
    node.apply()
    assert answers[0].committed.tid == node.engine.last_tid == timestamp_tid(NOW)
    assert joined[0].committed.tid == node.engine.last_tid
    assert node.engine.load_serial(oid(1), node.engine.last_tid) == b"data 1"
    assert node.commit(A, change(1))[0].committed.tid == node.engine.last_tid


def test_a_clock_that_goes_back_does_not_take_tids_back(node: Node) -> None:
    first = node.commit(A, change(1))
    node.wall -= 1000
    second = node.commit(B, change(2))
    node.apply()
    assert int.from_bytes(second[0].committed.tid, "big") == int.from_bytes(first[0].committed.tid, "big") + 1


def test_conflict_tells_the_committed_record(node: Node) -> None:
    node.commit(A, change(1))
    node.apply()
    (conflict,) = node.vote(B, change(1))[0].vote.conflicts
    assert (conflict.reason, conflict.oid, conflict.data) == (pb.CONFLICT, oid(1), b"data 1")
    assert conflict.serial == node.engine.last_tid and conflict.expected_serial == Z64
    assert node.commit(B, change(2, checks=(1,)))[0].failure.reason == pb.READ_CONFLICT
    assert node.vote(B, change(2))[0].WhichOneof("kind") == "vote"  # nothing stayed reserved


def test_a_vote_waits_for_anothers_oids_and_then_conflicts(node: Node) -> None:
    node.vote(A, change(1, 2))
    second = node.vote(B, change(2, 3))
    assert second == []
    node.finish(A)
    assert second == []
    node.apply()
    assert second[0].vote.conflicts[0].oid == oid(2)


def test_a_waiting_vote_gets_what_an_abort_releases(node: Node) -> None:
    node.vote(A, change(1))
    second = node.vote(B, change(1))
    node.coordinator.abort(A, NOW)
    assert second[0].WhichOneof("kind") == "vote" and not second[0].vote.conflicts
    assert node.finish(A)[0].failure.reason == pb.UNKNOWN_VOTE


def test_checks_are_shared_and_a_waiting_writer_is_not_passed(node: Node) -> None:
    assert node.vote(A, change(1, checks=(9,)))
    assert node.vote(B, change(2, checks=(9,)))
    writer = node.vote(b"C" * 16, change(9))
    reader = node.vote(b"D" * 16, change(3, checks=(9,)))
    assert writer == [] and reader == []
    node.coordinator.abort(A, NOW)
    assert writer == []
    node.coordinator.abort(B, NOW)
    assert len(writer) == 1 and reader == []
    node.coordinator.abort(b"C" * 16, NOW)
    assert len(reader) == 1


def test_dropping_a_waiting_writer_lets_readers_behind_it_go(node: Node) -> None:
    node.vote(A, change(1, checks=(9,)))
    writer = node.vote(b"C" * 16, change(9))
    reader = node.vote(b"D" * 16, change(3, checks=(9,)))
    node.coordinator.abort(b"C" * 16, NOW)
    assert writer[0].failure.reason == pb.BUSY
    assert reader[0].WhichOneof("kind") == "vote"


def test_the_same_id_replaces_its_vote(node: Node) -> None:
    node.vote(A, change(1))
    node.vote(A, change(2))
    assert node.vote(B, change(1))
    assert node.vote(b"C" * 16, change(2)) == []


def test_a_lease_runs_out(node: Node) -> None:
    node.vote(A, change(1))
    waiting = node.vote(B, change(1), now=NOW + 10)
    node.coordinator.tick(NOW + 29)
    assert waiting == []
    node.coordinator.tick(NOW + 30)
    assert not waiting[0].vote.conflicts
    assert node.finish(A, NOW + 31)[0].failure.reason == pb.LEASE_EXPIRED


def test_a_lease_does_not_end_what_is_proposed(node: Node) -> None:
    node.vote(A, change(1))
    answers = node.finish(A)
    waiting = node.vote(B, change(1))
    node.coordinator.tick(NOW + 1000)
    assert waiting == []
    node.apply()
    assert answers[0].committed.tid and waiting[0].vote.conflicts


def test_too_many_waiting_are_busy() -> None:
    node = Node(CoordinatorLimits(waiting=1))
    node.vote(A, change(1))
    assert node.vote(B, change(1)) == []
    assert node.vote(b"C" * 16, change(1))[0].failure.reason == pb.BUSY


def test_lost_leadership_answers_everyone(node: Node) -> None:
    in_flight = node.commit(A, change(1))
    waiting = node.commit(B, change(1))
    node.vote(b"C" * 16, change(5))
    oids = node.oids(1)
    node.coordinator.lost_leadership()
    assert in_flight[0].failure.reason == pb.LEADERSHIP_LOST
    assert waiting[0].failure.reason == pb.NOT_LEADER
    assert oids[0].failure.reason == pb.NOT_LEADER
    assert node.finish(b"C" * 16)[0].failure.reason == pb.UNKNOWN_VOTE
    node.apply()  # it was committed after all
    assert node.commit(A, change(1))[0].committed.tid == node.engine.last_tid


def test_an_entry_of_another_term_is_not_ours(node: Node) -> None:
    answers = node.commit(A, change(1))
    node.log[:] = [b""]
    node.apply(term=2)
    assert answers[0].failure.reason == pb.LEADERSHIP_LOST


def test_a_node_that_cannot_propose_releases_the_commit(node: Node) -> None:
    node.leads = False
    assert node.commit(A, change(1))[0].failure.reason == pb.NOT_LEADER
    node.leads = True
    assert node.vote(B, change(1))


def test_restores_keep_their_tids_in_order(node: Node) -> None:
    first, second = (n.to_bytes(8, "big") for n in (1000, 2000))
    one, two = node.commit(A, change(1, tid=first)), node.commit(B, change(1, tid=second))
    assert node.vote(b"D" * 16, change(1, tid=second))[0].failure.reason == pb.STALE_TID
    late = node.commit(b"C" * 16, change(1, tid=second))
    assert not late, "what is in flight may never be committed"
    node.apply()
    assert (one[0].committed.tid, two[0].committed.tid) == (first, second)
    assert late[0].failure.reason == pb.STALE_TID
    assert node.commit(b"C" * 16, change(1, tid=second))[0].failure.reason == pb.STALE_TID


def test_a_deposed_leader_does_not_refuse_what_its_successor_may_have_committed(node: Node) -> None:
    """Seed 169: it had not applied the revision that the commit is based on, and called that a conflict."""
    node.commit(A, change(1))
    node.apply()
    successors = (int.from_bytes(node.engine.last_tid, "big") + 1).to_bytes(8, "big")
    answers = node.commit(B, change(1, base=successors))
    checked = node.commit(b"C" * 16, change(2, checks=(1,), base=Z64))
    assert checked[0].failure.reason == pb.READ_CONFLICT, "below: no later state can be without that"
    assert not answers
    node.coordinator.lost_leadership()
    assert answers[0].failure.reason == pb.LEADERSHIP_LOST


def test_a_commit_that_is_based_on_a_revision_of_the_future_is_refused_by_the_log(node: Node) -> None:
    node.commit(A, change(1))
    node.apply()
    answers = node.commit(B, change(1, base=b"\x7f" + bytes(7)))
    node.apply()
    assert answers[0].failure.reason == pb.CONFLICT


def test_oids_come_from_blocks_and_never_twice(node: Node) -> None:
    answers = [node.oids(count) for count in (100, 1, 4096, 10_000)]
    while node.log:
        node.apply()
    given: list[int] = []
    for (answer,) in answers:
        first = int.from_bytes(answer.oids.first, "big")
        given += range(first, first + answer.oids.count)
    assert len(given) == 14197 == len(set(given)) and 0 not in given


def test_restored_oids_are_taken_out_of_the_block(node: Node) -> None:
    node.oids(1)
    node.apply()
    node.commit(A, change(3000, tid=oid(77)))
    node.apply()
    assert int.from_bytes(node.oids(1)[0].oids.first, "big") > 3000


def test_a_closed_session_releases_its_votes(node: Node) -> None:
    mine, other = object(), object()
    node.vote(A, change(1), owner=mine)
    waiting = node.vote(B, change(1), owner=other)
    node.coordinator.session_closed(mine, NOW)
    assert len(waiting) == 1
