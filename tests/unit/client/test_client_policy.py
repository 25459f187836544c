"""The failover policy as a pure thing: scripted answers in, requests out, with a clock of our own."""

from __future__ import annotations

import random
from typing import Any

import pytest
from raftstorage.client.cluster.errors import ClientDisconnected, CommitOutcomeUnknown
from raftstorage.client.cluster.policy import (
    Answer,
    Backoff,
    Book,
    Broken,
    Call,
    Flow,
    Happened,
    Send,
    Signal,
    Step,
    lead,
    read,
)
from raftstorage.proto import storage_pb2 as pb

Z64 = b"\0" * 8
LOAD = Call("load_before", pb.LoadBefore())
FINISH = Call("finish", pb.Finish())
COMMIT = Call("commit", pb.Commit())
RECORD = pb.Event(record=pb.Record(data=b"data", serial=b"12345678"))
COMMITTED = pb.Event(committed=pb.Committed(tid=b"12345678"))


def failure(reason: int) -> pb.Event:
    return pb.Event(failure=pb.Failure(reason=reason))  # type: ignore[arg-type]


class World:
    """Drives one flow and keeps its clock: waking it moves the clock by what it asked for."""

    def __init__(self, *connected: str, leader: int = 1) -> None:
        self.now = 100.0
        self.book = Book()
        for address in ("a", "b", "c"):
            replica = self.book.add(address)
            replica.node_id = ord(address) - ord("a") + 1
            replica.connected = address in (connected or ("a", "b", "c"))
        self.book.learn_leader(pb.Leader(term=1, node_id=leader, address="abc"[leader - 1]))
        self.step: Step = Step(None, 0.0)
        self.result: Any = None
        self.retries = 0
        self.told_off: list[int] = []

    def clock(self) -> float:
        return self.now

    def retried(self) -> None:
        self.retries += 1

    def read(self, at_least: bytes = Z64, **options: Any) -> Flow:
        return read(
            self.book,
            LOAD,
            at_least,
            self.now + 5,
            self.clock,
            random.Random(1),
            retry=self.retried,
            told_off=self.told_off.append,
            **options,
        )

    def lead(self, call: Call = COMMIT, **options: Any) -> Flow:
        return lead(
            self.book,
            call,
            self.now + 5,
            self.clock,
            random.Random(1),
            retry=self.retried,
            told_off=self.told_off.append,
            **options,
        )

    def start(self, flow: Flow) -> Send | None:
        self.flow = flow
        self.step = next(flow)
        return self.step.send

    def tell(self, happened: Happened) -> Send | None:
        if happened is Signal.WOKE:
            self.now += self.step.wake
        try:
            self.step = self.flow.send(happened)
        except StopIteration as stop:
            self.result = stop.value
            return None
        return self.step.send

    def wake_until_sent(self) -> Send:
        for _ in range(1000):
            send = self.tell(Signal.WOKE)
            if send is not None:
                return send
        raise AssertionError("nothing was sent")


def test_reads_are_spread_over_followers() -> None:
    world = World()
    asked = []
    for _ in range(4):
        send = world.start(world.read())
        assert send is not None
        asked.append(send.address)
        world.tell(Answer(send.address, RECORD))
        assert world.result is RECORD
    assert asked == ["b", "c", "b", "c"]


def test_a_read_prefers_who_has_applied_the_snapshot_and_is_no_suspect() -> None:
    world = World()
    world.book.replicas["b"].applied = world.book.replicas["a"].applied = b"\0" * 7 + b"\5"
    first = world.start(world.read(b"\0" * 7 + b"\5"))
    assert first is not None and first.address == "b"
    world.book.replicas["b"].suspect = True
    second = world.start(world.read(b"\0" * 7 + b"\5"))
    assert second is not None and second.address == "a"


def test_a_slow_read_is_hedged_and_the_first_answer_wins() -> None:
    world = World()
    first = world.start(world.read())
    assert world.step.wake == pytest.approx(0.1)
    second = world.tell(Signal.WOKE)
    assert first is not None and second is not None and first.address != second.address
    world.tell(Answer(first.address, RECORD))
    assert world.result is RECORD
    assert world.retries == 1


@pytest.mark.parametrize("trouble", [Broken("b"), Answer("b", failure(pb.LAGGING)), Answer("b", failure(pb.BUSY))])
def test_a_read_that_is_refused_or_lost_goes_on_at_once(trouble: Happened) -> None:
    world = World()
    first = world.start(world.read())
    assert first is not None and first.address == "b"
    second = world.tell(trouble)
    assert second is not None and second.address == "c"


def test_a_definite_answer_is_not_asked_for_twice() -> None:
    world = World()
    world.start(world.read())
    missing = failure(pb.NO_SUCH_OBJECT)
    world.tell(Answer("b", missing))
    assert world.result is missing


def test_a_damaged_record_is_read_elsewhere_but_an_error_everywhere_is_told() -> None:
    world = World("b", "c")
    world.start(world.read())
    broken = failure(pb.INTERNAL)
    assert world.tell(Answer("b", broken)) is not None
    assert world.tell(Answer("c", broken)) is None and world.result is None
    send = world.wake_until_sent()
    world.tell(Answer(send.address, broken))
    assert world.result is broken


def test_a_read_waits_for_a_replica_until_its_deadline() -> None:
    world = World()
    for replica in world.book.replicas.values():
        replica.connected = False
    assert world.start(world.read()) is None
    world.book.replicas["c"].connected = True
    send = world.tell(Signal.CHANGED)
    assert send is not None and send.address == "c"
    world.book.replicas["c"].connected = False
    world.tell(Broken("c"))
    with pytest.raises(ClientDisconnected):
        for _ in range(1000):
            world.tell(Signal.WOKE)
    assert world.now == pytest.approx(105.0)


def test_a_write_follows_the_hint() -> None:
    world = World(leader=2)
    world.book.replicas["b"].node_id = 0  # not known yet which node it is
    send = world.start(world.lead())
    assert send is not None and send.address == "b"
    world.book.learn_leader(pb.Leader(term=2, node_id=3, address="c"))  # came with the refusal
    again = world.tell(Answer("b", failure(pb.NOT_LEADER), send.attempt))
    assert again is not None and again.address == "c"
    world.tell(Answer("c", COMMITTED, again.attempt))
    assert world.result is COMMITTED


def test_without_a_known_leader_all_are_asked_in_turn() -> None:
    world = World()
    world.book.learn_leader(pb.Leader(term=2, node_id=0))
    asked = []
    send = world.start(world.lead())
    for _ in range(3):
        assert send is not None
        asked.append(send.address)
        world.tell(Answer(send.address, failure(pb.NOT_LEADER), send.attempt))
        send = world.wake_until_sent()
    assert sorted(asked) == ["a", "b", "c"]


@pytest.mark.parametrize("reason", [pb.LEADERSHIP_LOST, pb.STOPPING, pb.INTERNAL, pb.UNKNOWN_VOTE])
def test_after_an_unsure_finish_the_commit_is_sent(reason: int) -> None:
    world = World()
    first = world.start(world.lead(FINISH, again=COMMIT, start_at="a", committing=True))
    assert first is not None and (first.address, first.call) == ("a", FINISH)
    again = world.tell(Answer("a", failure(reason), first.attempt)) or world.wake_until_sent()
    assert again.call is COMMIT


def test_a_finish_goes_to_the_voter_or_becomes_a_commit() -> None:
    world = World(leader=2)
    send = world.start(world.lead(FINISH, again=COMMIT, start_at="a", committing=True))
    assert send is not None and (send.address, send.call) == ("a", FINISH)
    world.book.replicas["a"].connected = False
    send = world.start(world.lead(FINISH, again=COMMIT, start_at="a", committing=True))
    assert send is not None and (send.address, send.call) == ("b", COMMIT)


def test_late_answers_to_earlier_attempts_do_not_count_unless_committed() -> None:
    world = World()
    first = world.start(world.lead(FINISH, again=COMMIT, start_at="a", committing=True))
    assert first is not None
    world.book.learn_leader(pb.Leader(term=2, node_id=2, address="b"))
    second = world.tell(Signal.CHANGED)
    assert second is not None and (second.address, second.call) == ("b", COMMIT)
    assert world.tell(Answer("a", failure(pb.LEASE_EXPIRED), first.attempt)) is None
    assert world.tell(Broken("a", first.attempt)) is None
    assert world.result is None
    world.tell(Answer("a", COMMITTED, first.attempt))
    assert world.result is COMMITTED


def test_news_of_no_leader_does_not_end_the_wait_for_the_old_one() -> None:
    world = World()
    world.start(world.lead(committing=True))
    world.book.learn_leader(pb.Leader(term=2, node_id=0))
    assert world.tell(Signal.CHANGED) is None
    world.tell(Answer("a", COMMITTED, 1))
    assert world.result is COMMITTED


def test_an_unknown_outcome_is_told_as_such_only_when_it_was_sent() -> None:
    world = World()
    world.start(world.lead(committing=True))
    with pytest.raises(CommitOutcomeUnknown):
        for _ in range(1000):
            world.tell(Signal.WOKE)
    world = World()
    for replica in world.book.replicas.values():
        replica.connected = False
    world.start(world.lead(committing=True))
    with pytest.raises(ClientDisconnected) as caught:
        for _ in range(1000):
            world.tell(Signal.WOKE)
    assert not isinstance(caught.value, CommitOutcomeUnknown)


def test_definite_refusals_of_a_commit_end_it() -> None:
    for reason in (pb.CONFLICT, pb.LEASE_EXPIRED, pb.TOO_LARGE, pb.STALE_TID, pb.READ_ONLY):
        world = World()
        world.start(world.lead(committing=True))
        refused = failure(reason)
        world.tell(Answer("a", refused, 1))
        assert world.result is refused


def test_old_news_about_leaders_is_ignored() -> None:
    book = Book()
    assert book.learn_leader(pb.Leader(term=3, node_id=1, address="a"))
    assert not book.learn_leader(pb.Leader(term=2, node_id=2, address="b"))
    assert not book.learn_leader(pb.Leader(term=3, node_id=0))
    assert not book.learn_leader(pb.Leader(term=3, node_id=1, address="a"))
    assert book.learn_leader(pb.Leader(term=4, node_id=0))
    assert book.leader() is None


def test_pauses_grow_from_20_to_500_ms() -> None:
    backoff = Backoff(random.Random(1))
    pauses = [backoff.next() for _ in range(10)]
    assert 0.01 <= pauses[0] <= 0.02
    assert all(0.25 <= pause <= 0.5 for pause in pauses[-4:])
    backoff.reset()
    assert backoff.next() <= 0.02
