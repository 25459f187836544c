"""Which replica to ask, when to ask another one, and when to give up. Pure: no clock, no socket, no loop.

A call is a generator (a flow) that yields `Step`s (send this there; wake me after so many seconds) and is sent
what happened (`Answer`, `Broken`, `Signal`). It returns the answer or raises. Whoever drives it (the client's
loop, a simulator) hands in the clock and the randomness.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raftstorage.proto import storage_pb2 as pb

from .bodies import NO_PARTS, Body, LargeBody, Parts
from .errors import ClientDisconnected
from .refusals import TOO_MUCH, Attempts, Random, refused, rest_seconds

Z64 = b"\0" * 8

#: Another replica, or the same one later, may answer a read that was refused for one of these.
RETRY_READ = frozenset({pb.LAGGING, pb.BUSY, pb.STOPPING, pb.NOT_LEADER, pb.LEADERSHIP_LOST, pb.INTERNAL})
#: A leader's call that was refused for one of these may be sent again, to whoever leads then.
RETRY_LEAD = frozenset({pb.NOT_LEADER, pb.STOPPING, pb.LEADERSHIP_LOST}) | TOO_MUCH
#: After one of these the outcome of a commit is not known.
UNSURE = frozenset({pb.STOPPING, pb.LEADERSHIP_LOST, pb.INTERNAL})


class Call(NamedTuple):
    """A request without its id: the field of `Request` that it goes into, and the message.

    `parts` go before it on the same stream, in order (Vote and Commit of a large transaction); a failure that
    answers one of them answers the call.
    """

    kind: str
    message: Any
    parts: Parts = NO_PARTS


def vote(transaction_id: bytes, body: Body) -> Call:
    """First phase of the transaction that `body` carries."""
    if isinstance(body, LargeBody):
        message = pb.Vote(transaction_id=transaction_id, transaction=body.rest, parts=len(body.parts))
        return Call("vote", message, body.parts)
    return Call("vote", pb.Vote(transaction_id=transaction_id, transaction=body))


def commit(transaction_id: bytes, body: Body) -> Call:
    """Both phases in one."""
    if isinstance(body, LargeBody):
        message = pb.Commit(transaction_id=transaction_id, transaction=body.rest, parts=len(body.parts))
        return Call("commit", message, body.parts)
    return Call("commit", pb.Commit(transaction_id=transaction_id, transaction=body))


class Send(NamedTuple):
    """`attempt` comes back in the answer, so that a late answer to an earlier attempt is known as one."""

    address: str
    call: Call
    attempt: int = 0


class Step(NamedTuple):
    """What a flow wants: a request sent (or None), and to be woken after `wake` seconds if nothing happens."""

    send: Send | None
    wake: float


class Answer(NamedTuple):
    address: str
    event: pb.Event
    attempt: int = 0


class Broken(NamedTuple):
    """The stream to `address` ended before it answered."""

    address: str
    attempt: int = 0


class Signal(enum.Enum):
    WOKE = "the time asked for has passed"
    CHANGED = "a replica came or went, or another one leads"


Happened = Answer | Broken | Signal
Flow = Generator[Step, Happened, pb.Event]


@dataclass(slots=True)
class Replica:
    """What is known of one replica. `applied`: the newest tid seen on its stream; `latency`: seconds, smoothed."""

    address: str
    node_id: int = 0
    connected: bool = False
    suspect: bool = False
    outstanding: int = 0
    applied: bytes = Z64
    latency: float = 0.001
    turn: int = 0


@dataclass(slots=True)
class Book:
    """What a client knows about its cluster. Changed by connections and events only."""

    replicas: dict[str, Replica] = field(default_factory=dict)
    term: int = 0
    leader_id: int = 0
    leader_address: str = ""
    _turn: int = 0

    def add(self, address: str) -> Replica:
        return self.replicas.setdefault(address, Replica(address))

    def learn_leader(self, leader: pb.Leader) -> bool:
        """Takes over news about the leader; True when it says something new. Old news is ignored."""
        if leader.term < self.term or (leader.term == self.term and not leader.node_id):
            return False
        news = (leader.term, leader.node_id, leader.address)
        if news == (self.term, self.leader_id, self.leader_address):
            return False
        self.term, self.leader_id, self.leader_address = news
        return True

    def leader(self) -> Replica | None:
        """The replica that leads as far as is known, connected or not."""
        if not self.leader_id:
            return None
        for replica in self.replicas.values():
            if replica.node_id == self.leader_id:
                return replica
        return self.replicas.get(self.leader_address)

    def connected(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.connected]

    def reader(self, at_least: bytes, exclude: set[str], *, leader_first: bool = False) -> Replica | None:
        """The connected replica to read from next: no suspect, not lagging, a follower, least busy, in turn."""
        best: Replica | None = None
        best_rank: tuple[bool, bool, bool, int, int] | None = None
        leader = self.leader_id
        for replica in self.replicas.values():
            if not replica.connected or replica.address in exclude:
                continue
            rank = (
                replica.suspect,
                replica.applied < at_least,
                (replica.node_id == leader) != leader_first,
                replica.outstanding,
                replica.turn,
            )
            if best_rank is None or rank < best_rank:
                best, best_rank = replica, rank
        if best is not None:
            self._turn += 1
            best.turn = self._turn
        return best

    def hedge_delay(self, replica: Replica) -> float:
        """Seconds to wait for a read's answer before another replica is asked too."""
        return min(1.0, max(0.1, 8 * replica.latency))


class Backoff:
    """Pauses that double from 20 ms to 500 ms, with jitter, so that clients do not come back in step."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._pause = 0.02

    def next(self) -> float:
        pause = self._pause
        self._pause = min(0.5, pause * 2)
        return pause * (0.5 + self._random.random() / 2)

    def reset(self) -> None:
        self._pause = 0.02


def _failure(event: pb.Event) -> int:
    """The reason of a failure, -1 when the event is none."""
    return event.failure.reason if event.WhichOneof("kind") == "failure" else -1


def read(
    book: Book,
    call: Call,
    at_least: bytes,
    deadline: float,
    clock: Callable[[], float],
    random: Random,
    *,
    leader_first: bool = False,
    retry: Callable[[], None] = lambda: None,
    told_off: Callable[[int], None] = lambda reason: None,
) -> Flow:
    """A call that any replica which has applied `at_least` can answer; the first answer wins.

    Refused, broken or slow: the next replica is asked (a slow one may still win). After a round over all of
    them: a pause, then the next round. A busy one is left alone for as long as it wants. At `deadline`
    ClientDisconnected, or StorageBusy. `retry` and `told_off` (with the reason): for counting.
    """
    backoff = Backoff(random)
    asked: set[str] = set()
    waiting: set[str] = set()
    internal: set[str] = set()
    resting: dict[str, float] = {}  # address of a busy replica -> when to ask it again
    last = pb.Failure()
    hedge = True
    first = True
    while True:
        left = deadline - clock()
        if left <= 0:
            if resting and not waiting:
                raise refused(last, call.kind)
            raise ClientDisconnected(f"no replica answered {call.kind} in time")
        target = book.reader(at_least, asked, leader_first=leader_first) if hedge else None
        if target is not None:
            if not first:
                retry()
            first = False
            asked.add(target.address)
            waiting.add(target.address)
            happened = yield Step(Send(target.address, call), min(left, book.hedge_delay(target)))
        elif waiting:
            happened = yield Step(None, min(left, 1.0))
        else:
            pause = backoff.next()
            if all(resting.get(replica.address, 0.0) > clock() for replica in book.connected()):
                pause = max(pause, min(resting.values(), default=0.0) - clock())
            happened = yield Step(None, min(left, pause))
            asked = _resting(resting, clock())
        hedge = True
        match happened:
            case Answer(address, event):
                waiting.discard(address)
                reason = _failure(event)
                if reason == pb.BUSY:
                    last = event.failure
                    told_off(reason)
                    resting[address] = clock() + rest_seconds(last, random)
                if reason not in RETRY_READ or (reason == pb.INTERNAL and address in internal):
                    return event
                if reason == pb.INTERNAL:
                    internal.add(address)  # a damaged record, perhaps: others may have it whole
            case Broken(address):
                waiting.discard(address)
            case Signal.CHANGED:
                hedge = not waiting
            case Signal.WOKE:
                if target is None:
                    # A full second of silence: the others may have come back.
                    asked = (asked & waiting) | _resting(resting, clock())


def _resting(resting: dict[str, float], now: float) -> set[str]:
    return {address for address, until in resting.items() if until > now}


def lead(
    book: Book,
    call: Call,
    deadline: float,
    clock: Callable[[], float],
    random: Random,
    *,
    again: Call | None = None,
    start_at: str = "",
    committing: bool = False,
    retry: Callable[[], None] = lambda: None,
    told_off: Callable[[int], None] = lambda reason: None,
) -> Flow:
    """A call that only the leader answers. It follows the leader, and asks around when none is known.

    `again`: what is sent in place of `call` once it was sent somewhere (Finish, then Commit), unless it was put
    off. `start_at`: the address of the leader that voted. `committing`: the call changes the database, so that at
    `deadline` CommitOutcomeUnknown is raised if anything that was sent may have done so; otherwise StorageBusy,
    StorageFull or ClientDisconnected. `retry`, `told_off`: as for `read`.
    """
    backoff = Backoff(random)
    again = again or call
    asked: set[str] = set()
    asked_in = book.term
    holder = start_at  # of the vote, as far as is known
    attempts = Attempts()
    attempt = 0
    pause = False
    rest = 0.0
    target: Replica | None = None
    while True:
        until = min(deadline, clock() + (rest or (backoff.next() if pause else 0.0)))
        while clock() < until:
            happened = yield Step(None, until - clock())
            if isinstance(happened, Answer) and happened.event.HasField("committed"):
                return happened.event
            if isinstance(happened, Answer):
                attempts.refused(happened.attempt, happened.event.failure)
            if happened is Signal.CHANGED:
                backoff.reset()
            if not rest or (book.leader() is not None and book.leader() is not target):
                break  # whoever wants to rest does not lead any more
        pause, rest = False, 0.0
        if deadline - clock() <= 0:
            raise attempts.error(call.kind, committing)
        if asked_in != book.term:
            asked.clear()
            asked_in = book.term
        if attempt and (leader := book.leader()) is not None and leader.address != holder:
            holder = ""
        target = leading(book, asked, holder)
        if target is None:
            asked.clear()
            pause = True
            continue
        if attempt:
            retry()
        if target.address != holder:
            holder = ""  # the leader that voted does not lead any more
        current = call if holder or not (start_at or attempt) else again
        attempt = attempts.sent()
        asked.add(target.address)
        send: Send | None = Send(target.address, current, attempt)
        put_off = False
        while True:
            happened = yield Step(send, max(0.0, min(deadline - clock(), 1.0)))
            send = None
            if isinstance(happened, Answer):
                if happened.event.HasField("committed"):
                    return happened.event  # true whichever attempt it answers
                attempts.refused(happened.attempt, happened.event.failure)
                if happened.attempt != attempt:
                    continue
                reason = _failure(happened.event)
                put_off = reason in TOO_MUCH
                if put_off:
                    told_off(reason)
                    rest = rest_seconds(happened.event.failure, random)
                if reason == pb.UNKNOWN_VOTE and current is not again:
                    asked.discard(target.address)
                elif reason in RETRY_LEAD or (committing and reason in UNSURE):
                    pause = reason != pb.NOT_LEADER or book.leader() in (None, target)
                    if reason != pb.NOT_LEADER:
                        asked.discard(target.address)
                else:
                    return happened.event
                break
            if isinstance(happened, Broken):
                if happened.attempt == attempt:
                    pause = True
                    break
            elif deadline - clock() <= 0:
                break
            elif book.term > asked_in and book.leader() not in (None, target):
                break  # another one leads now: the old one will never answer, or answers what we ask again
        if not put_off:
            holder = ""


def leading(book: Book, asked: set[str], start_at: str = "") -> Replica | None:
    """Whom to ask as the leader: the one that voted, the one that is known to lead, then any other."""
    if start_at:
        voter = book.replicas.get(start_at)
        if voter is not None and voter.connected:
            return voter
    leader = book.leader()
    if leader is not None and leader.connected and leader.address not in asked:
        return leader
    others = [r for r in book.connected() if r.address not in asked]
    return min(others, key=lambda r: (r.suspect, r.outstanding, r.turn), default=None)
