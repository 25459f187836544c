"""The coordinator with transactions in parts: compared in slices, proposed in one run, reserved as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from raftstorage.node import examination, works
from raftstorage.node.engine.api import Z64, Conflict
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.examination import Examination
from raftstorage.node.raft.types import Entry, EntryKind, NotLeader
from raftstorage.node.transactions import Coordinator
from raftstorage.node.works import CoordinatorLimits
from raftstorage.proto import storage_pb2 as pb

from tests.unit.pieces import gathered, pieces

NOW = 1_700_000_000.0
A, B, C, D = (letter * 16 for letter in (b"A", b"B", b"C", b"D"))
WIDE = 12


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "SLICE", 4)
    monkeypatch.setattr(works, "WIDE", WIDE)


def oid(number: int) -> bytes:
    return number.to_bytes(8, "big")


def change(*writes: int, checks: Sequence[int] = (), base: bytes = Z64, tid: bytes = b"") -> pb.Transaction:
    transaction = pb.Transaction(user=b"me", tid=tid)
    for number in writes:
        transaction.records.add(oid=oid(number), base_serial=base, data=b"data %d" % number)
    for number in checks:
        transaction.checks.add(oid=oid(number), serial=Z64)
    return transaction


class Node:
    def __init__(self, limits: CoordinatorLimits | None = None) -> None:
        self.engine = MemoryEngine()
        self.log: list[bytes] = []
        self.leads = True
        self.coordinator = Coordinator(
            self.engine,
            lambda data: self.propose([data]),
            lambda: 1,
            lambda: NOW,
            30.0,
            limits,
            propose_many=self.propose,
        )

    def propose(self, data: Sequence[bytes]) -> int:
        if not self.leads:
            raise NotLeader("no")
        self.log += data
        return self.engine.applied_index + len(self.log) - len(data) + 1

    def apply(self) -> None:
        batch = []
        for data in self.log:
            index = self.engine.applied_index + 1
            entry = Entry(1, index, EntryKind.COMMAND, data)
            batch.append((entry, self.engine.apply(entry)))
        self.log.clear()
        self.coordinator.applied(batch, NOW)

    def ask(self, how: str, identity: bytes, transaction: pb.Transaction, large: bool = True) -> list[pb.Event]:
        answers: list[pb.Event] = []
        call = getattr(self.coordinator, how)
        if large:
            bodies, rest = pieces(transaction, [3] * 100)
            parts = gathered(identity, bodies, rest)
            call("me", identity, pb.Transaction.FromString(rest), rest, NOW, answers.append, parts)
        else:
            call("me", identity, transaction, transaction.SerializeToString(), NOW, answers.append)
        return answers

    def vote(self, identity: bytes, transaction: pb.Transaction, large: bool = True) -> list[pb.Event]:
        return self.ask("vote", identity, transaction, large)

    def commit(self, identity: bytes, transaction: pb.Transaction, large: bool = True) -> list[pb.Event]:
        return self.ask("commit", identity, transaction, large)

    def small(self, identity: bytes, *writes: int, **more: Any) -> list[pb.Event]:
        """Voted for."""
        return self.ask("vote", identity, change(*writes, **more), large=False)

    def finish(self, identity: bytes) -> list[pb.Event]:
        answers: list[pb.Event] = []
        self.coordinator.finish(identity, NOW, answers.append)
        return answers

    def turn(self, count: int = 1000) -> int:
        """Lets the coordinator go on; how often it had to."""
        for number in range(count):
            if not self.coordinator.unfinished:
                return number
            self.coordinator.advance(NOW)
        return count


@pytest.fixture
def node() -> Node:
    return Node()


def reserved(answers: list[pb.Event]) -> bool:
    return answers == [pb.Event(vote=pb.VoteReply())]


def test_a_large_vote_is_looked_at_in_slices_and_committed_in_one_run(node: Node) -> None:
    answers = node.vote(A, change(*range(1, 11), checks=(50,)))
    assert not answers
    assert node.turn() == 2
    assert reserved(answers)
    committed = node.finish(A)
    assert len(node.log) == 5
    commands = [pb.Command.FromString(data) for data in node.log]
    assert [each.WhichOneof("kind") for each in commands] == ["fragment"] * 4 + ["commit"]
    assert commands[-1].commit.fragments == 4 and commands[0].fragment.tid == commands[-1].commit.tid
    node.apply()
    tid = committed[0].committed.tid
    assert tid == node.engine.last_tid
    assert [node.engine.load_serial(oid(n), tid) for n in range(1, 11)] == [b"data %d" % n for n in range(1, 11)]
    assert node.commit(A, change(*range(1, 11)))[0].committed.tid == tid


def test_one_with_few_objects_is_decided_at_once(node: Node) -> None:
    assert reserved(node.vote(A, change(1, 2)))
    answers = node.commit(B, change(3, 4))
    node.apply()
    assert answers[0].HasField("committed")


def test_what_is_applied_between_the_slices_counts(node: Node) -> None:
    """Of the objects that were looked at, and of those that were not."""
    answers = node.vote(A, change(*range(1, 13)))
    node.turn(1)
    for identity, number in ((b"1" * 16, 1), (b"2" * 16, 12)):
        node.commit(identity, change(number), large=False)
        node.apply()
    node.turn()
    (answer,) = answers
    assert [(each.oid, each.data) for each in answer.vote.conflicts] == [
        (oid(1), b"data 1"),
        (oid(12), b"data 12"),
    ]
    assert not node.coordinator._examined


def test_a_commit_between_the_slices_is_found_in_the_end(node: Node) -> None:
    """Its own first attempt comes out of another leader's log while the second one is looked at."""
    transaction = change(*range(1, 11))
    command = pb.CommitCommand(transaction_id=A, tid=oid(77), transaction=transaction.SerializeToString())
    answers = node.commit(A, transaction)
    node.log.append(pb.Command(commit=command).SerializeToString())
    node.apply()
    node.turn()
    assert answers[0].committed.tid == oid(77)
    assert node.vote(A, transaction)[0].HasField("vote")


def test_nobody_waits_for_one_that_is_being_looked_at(node: Node) -> None:
    answers = node.vote(A, change(*range(1, 11)))
    assert reserved(node.small(B, 3))
    node.turn()
    assert not answers and A in node.coordinator._waiting
    node.finish(B)
    node.apply()
    node.turn()
    assert [each.oid for each in answers[0].vote.conflicts] == [oid(3)]


def test_it_hears_of_everything_while_it_waits(node: Node) -> None:
    answers = node.vote(A, change(*range(1, 11)))
    node.small(B, 3)
    node.turn()
    for number in range(20, 40):
        node.commit(b"%016d" % number, change(number), large=False)
    node.commit(C, change(9), large=False)
    node.apply()
    assert node.coordinator.unfinished
    node.coordinator.abort(B, NOW)
    assert not answers, "there is more to look at"
    node.turn()
    assert [each.oid for each in answers[0].vote.conflicts] == [oid(9)]


def test_an_abort_and_the_end_of_a_session_end_the_look(node: Node) -> None:
    first, second = node.vote(A, change(*range(1, 11))), node.commit(B, change(*range(1, 11)))
    node.coordinator.abort(A, NOW)
    assert first[0].failure.reason == pb.BUSY
    node.coordinator.session_closed("me", NOW)
    assert not second and not node.coordinator.unfinished and not node.coordinator._preparing
    assert node.coordinator._preparing.weight == 0


def test_the_same_id_replaces_it(node: Node) -> None:
    first = node.vote(A, change(*range(1, 11)))
    second = node.vote(A, change(*range(20, 31)))
    assert first[0].failure.reason == pb.BUSY
    node.turn()
    assert reserved(second) and reserved(node.small(B, 1))


def test_lost_leadership_answers_it(node: Node) -> None:
    answers = node.vote(A, change(*range(1, 11)))
    node.coordinator.lost_leadership()
    assert answers[0].failure.reason == pb.NOT_LEADER and not node.coordinator.unfinished


def test_a_node_that_cannot_propose_answers_and_holds_nothing(node: Node) -> None:
    answers = node.commit(A, change(*range(1, 30)))
    node.leads = False
    node.turn()
    assert answers[0].failure.reason == pb.NOT_LEADER
    node.leads = True
    assert reserved(node.small(B, 5))


def test_a_finish_that_could_not_be_proposed_can_be_repeated(node: Node) -> None:
    node.vote(A, change(1, 2, 3, 4))
    node.leads = False
    assert node.finish(A)[0].failure.reason == pb.NOT_LEADER
    node.leads = True
    answers = node.finish(A)
    node.apply()
    assert answers[0].HasField("committed") and node.engine.load_serial(oid(4), node.engine.last_tid)


def test_large_restores_keep_their_place_among_small_ones(node: Node) -> None:
    tids = [n.to_bytes(8, "big") for n in (1000, 2000, 3000)]
    answers = [
        node.commit(A, change(1, tid=tids[0]), large=False),
        node.commit(B, change(*range(1, 30), tid=tids[1])),
        node.commit(C, change(1, tid=tids[2]), large=False),
    ]
    node.apply()
    assert [each[0].committed.tid for each in answers] == tids


# ---- wide ones ------------------------------------------------------------------------------------------------


def test_a_wide_one_is_reserved_as_a_whole(node: Node) -> None:
    wide = node.vote(A, change(*range(1, 21), checks=range(30, 40)))
    node.turn()
    assert reserved(wide)
    writers = node.coordinator._reservations.writers
    assert len(writers) == 1
    waiting = [node.small(B, 7), node.small(C, 99, checks=(8,)), node.small(D, 35)]
    assert waiting == [[], [], []]
    assert reserved(node.small(b"E" * 16, 98, checks=(36,))), "checks are shared"
    assert reserved(node.small(b"F" * 16, 100))
    node.coordinator.abort(A, NOW)
    assert all(map(reserved, waiting))
    assert A not in writers.values()


def test_a_wide_one_waits_for_what_is_held(node: Node) -> None:
    for held, checks in (((5,), ()), ((), (6,)), ((45,), ())):
        node.ask("vote", B, change(*held, checks=checks), large=False)
        wide = node.vote(A, change(*range(1, 21), checks=range(40, 50)))
        node.turn()
        assert not wide
        node.coordinator.abort(B, NOW)
        node.turn()
        assert reserved(wide)
        node.coordinator.abort(A, NOW)
    node.small(B, 99, checks=(45,))
    wide = node.vote(A, change(*range(1, 21), checks=range(40, 50)))
    node.turn()
    assert reserved(wide), "checks are shared"


def test_wide_ones_take_turns(node: Node) -> None:
    answers = [node.vote(name, change(*range(at, at + 20))) for at, name in ((100, A), (200, B), (300, C))]
    node.turn()
    assert reserved(answers[0]) and not answers[1] and not answers[2]
    committed = node.finish(A)
    node.turn()
    node.apply()
    assert committed[0].committed.tid and not answers[2]
    node.turn()
    assert reserved(answers[1]) and not answers[2]
    node.coordinator.session_closed("me", NOW)
    assert not node.coordinator._reservations.writers and node.coordinator._reservations.wide is None


def test_a_wide_ones_lease_runs_out(node: Node) -> None:
    node.vote(A, change(*range(1, 21)))
    node.turn()
    waiting = node.small(B, 3)
    node.coordinator.tick(NOW + 31)
    assert reserved(waiting) and node.finish(A)[0].failure.reason == pb.LEASE_EXPIRED


# ---- bounds ---------------------------------------------------------------------------------------------------


def test_votes_and_waiting_commits_are_bounded_in_bytes() -> None:
    node = Node(CoordinatorLimits(held=5000))
    assert reserved(node.small(A, *range(1, 11)))
    waiting = node.commit(B, change(*range(1, 11)), large=False)
    assert not waiting
    (refused,) = node.vote(C, change(*range(100, 110)))
    assert (refused.failure.reason, refused.failure.code) == (pb.BUSY, 8) and refused.failure.retry_after_ms
    refused_commit = node.commit(C, change(*range(100, 110)), large=False)
    assert refused_commit[0].failure.reason == pb.BUSY
    restored = node.commit(D, change(50, tid=b"\1" * 8), large=False)
    assert not restored, "restores come in order; one that is refused would be too late"
    node.coordinator.abort(A, NOW)
    node.apply()
    assert waiting[0].HasField("committed") and restored
    node.vote(C, change(*range(100, 110)))
    node.turn()
    assert C in node.coordinator._voted


def test_what_is_proposed_counts_until_it_is_applied() -> None:
    node = Node(CoordinatorLimits(held=5000))
    first = node.commit(A, change(*range(1, 21)), large=False)
    assert node.small(B, *range(30, 41))[0].failure.reason == pb.BUSY
    node.apply()
    assert first[0].HasField("committed") and reserved(node.small(B, *range(30, 41)))
    node.coordinator.lost_leadership()
    assert node.coordinator._flying_weight == 0


def test_one_that_is_larger_than_the_bound_gets_in_alone() -> None:
    node = Node(CoordinatorLimits(held=1000))
    answers = node.vote(A, change(*range(1, 41)))
    node.turn()
    assert reserved(answers)


# ---- one examination ------------------------------------------------------------------------------------------


def test_an_examination_tells_what_the_engine_would_whatever_comes_in_between() -> None:
    for moment in range(8):
        engine = MemoryEngine()
        transaction = change(*range(1, 13), checks=(20, 21, 22))
        bodies, rest = pieces(transaction, [4] * 3)
        look = Examination(engine, gathered(A, bodies, rest))
        for number, writes in enumerate(([2, 20], [11], [2, 22], [30]), 1):
            for _ in range(moment % 3):
                look.step()
            commit = pb.CommitCommand(transaction_id=b"%016d" % number, tid=oid(1000 + number))
            base = oid(1001) if number == 3 else Z64
            commit.transaction = change(*writes, tid=oid(1000 + number), base=base).SerializeToString()
            data = pb.Command(commit=commit).SerializeToString()
            outcome = engine.apply(Entry(1, engine.applied_index + 1, EntryKind.COMMAND, data))
            assert outcome.tid
            if number > moment // 3:
                look.changed(outcome.tid, outcome.oids)
            else:  # applied before it began
                look = Examination(engine, gathered(A, bodies, rest))
        while not look.step():
            pass
        assert sorted(look.conflicts, key=key) == sorted(engine.conflicts(transaction), key=key)
        assert len(look.conflicts) == 4


def key(conflict: Conflict) -> tuple[bytes, bool]:
    return conflict.oid, conflict.reading


def test_it_stops_at_enough_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "MOST_CONFLICTS", 6)
    bodies, rest = pieces(change(*range(1, 101), base=oid(9)), [10] * 10)
    look = Examination(MemoryEngine(), gathered(A, bodies, rest))
    steps = 1
    while not look.step():
        steps += 1
    assert len(look.conflicts) == 8 and steps == 2
