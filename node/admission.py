"""Whether a leader takes on more, and when whom it refuses shall ask again. Pure.

What was appended and is not applied yet is a line that drains in its order. New work joins it up to one bound;
what was voted for may still be finished up to a second, higher one, for its objects are held back from everybody
else until then. With half of a bound in use nobody gets more than an equal part of it, and one part is kept for
who comes next: so a session that asks for much is refused first, and one that asks for little finds room.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from raftstorage.node.disk_space import Room
from raftstorage.proto import storage_pb2 as pb

#: No refused client is told to come back sooner or later than this, in milliseconds.
LEAST_MS, MOST_MS = 20, 2_000
#: The disk is looked at once a second, and a leader without room hands over meanwhile.
FULL_MS = 1_000


class Amount(NamedTuple):
    """So many things, and the bytes of them together."""

    items: int
    bytes: int

    def reaches(self, bound: Amount) -> bool:
        return self.items >= bound.items or self.bytes >= bound.bytes

    def part(self, number: int) -> Amount:
        """One of so many equal parts, and never nothing."""
        return Amount(max(1, self.items // number), max(1, self.bytes // number))


class Tally:
    """An Amount that is counted up and down."""

    __slots__ = ("bytes", "items")

    def __init__(self) -> None:
        self.items = 0
        self.bytes = 0

    def add(self, size: int) -> None:
        self.items += 1
        self.bytes += size

    def remove(self, size: int) -> None:
        self.items -= 1
        self.bytes -= size

    def amount(self) -> Amount:
        return Amount(self.items, self.bytes)


class Rate(NamedTuple):
    """What is applied in a second."""

    items: float
    bytes: float


NOTHING = Amount(0, 0)
NEW, VOTED, HELD = Amount(5_000, 64 << 20), Amount(10_000, 128 << 20), Amount(10_000, 256 << 20)


@dataclass(frozen=True, slots=True)
class Bounds:
    """`new`: with so much appended and not applied, new work is refused; `voted`: what was voted for, too.

    `held`: votes that wait for their Finish; with so many, there are no new ones. A single piece of work goes
    through below a bound however large it is, so that at most one bound and one transaction are in memory.
    """

    new: Amount = NEW
    voted: Amount = VOTED
    held: Amount = HELD


class Work(enum.Enum):
    NEW = "a vote, a commit or a block of oids"
    VOTED = "the end of what was voted for"


@dataclass(frozen=True, slots=True)
class Load:
    """What a leader has taken on when a session asks for more.

    `backlog`: appended and not applied. `own`: writes of this session that are not answered yet, `sessions`: how
    many have any, this one included. `held`, `own_held`, `holders`: the same for votes without a Finish.
    """

    backlog: Amount
    own: Amount = NOTHING
    sessions: int = 1
    held: Amount = NOTHING
    own_held: Amount = NOTHING
    holders: int = 1
    room: Room = Room.AMPLE


class Refusal(NamedTuple):
    reason: pb.Reason
    message: str
    retry_after_ms: int


def decide(work: Work, load: Load, bounds: Bounds, rate: Rate) -> Refusal | None:
    """None: it is taken on. `rate`: how fast the backlog drains."""
    if load.room is Room.NONE or (load.room is Room.LOW and work is Work.NEW):
        return Refusal(pb.STORAGE_FULL, "the leader's disk is nearly full; it takes no writes", FULL_MS)
    limit = bounds.new if work is Work.NEW else bounds.voted
    if load.backlog.reaches(limit):
        message = f"{load.backlog.items} writes of {load.backlog.bytes} bytes wait here already"
    elif work is Work.VOTED:
        return None
    elif over_share(load.backlog, load.own, bounds.new, load.sessions):
        message = f"{load.own.items} writes of {load.own.bytes} bytes of this session wait here already"
    elif load.held.reaches(bounds.held) or over_share(load.held, load.own_held, bounds.held, load.holders):
        # Only their owners can finish them: how fast is not ours to know.
        message = f"{load.held.items} votes of {load.held.bytes} bytes wait for their end already"
        return Refusal(pb.BUSY, message, filled_ms(load.held, bounds.held))
    else:
        return None
    return Refusal(pb.BUSY, message, drained_ms(load.backlog, limit, rate))


def over_share(used: Amount, own: Amount, bound: Amount, sharers: int) -> bool:
    """Does somebody who uses `own` get no more of a bound that is not reached? `sharers` use it together."""
    return used.reaches(bound.part(2)) and own.reaches(bound.part(sharers + 1))


def drained_ms(waiting: Amount, bound: Amount, rate: Rate) -> int:
    """Milliseconds until half of the bound is free again."""
    half = bound.part(2)
    seconds = max(
        (waiting.items - half.items) / max(rate.items, 0.001),
        (waiting.bytes - half.bytes) / max(rate.bytes, 0.001),
    )
    return _within(seconds * 1000)


def filled_ms(waiting: Amount, bound: Amount) -> int:
    """Milliseconds for a line whose speed is not known: the fuller, the longer."""
    return _within(MOST_MS * max(waiting.items / bound.items, waiting.bytes / bound.bytes))


def _within(milliseconds: float) -> int:
    return round(min(MOST_MS, max(LEAST_MS, milliseconds)))


class DrainRate:
    """How fast the backlog drains, smoothed over about a second. Only what is busy shows how fast it can be."""

    SMOOTHING_SECONDS = 1.0

    def __init__(self) -> None:
        #: What is assumed before anything was seen.
        self.rate = Rate(1_000.0, 10e6)
        self._done = Tally()
        self._since = 0.0
        self._was_busy = False

    def applied(self, items: int, size: int) -> None:
        self._done.items += items
        self._done.bytes += size

    def tick(self, now: float, busy: bool) -> None:
        """`now`: seconds of a clock that is never set; `busy`: something waits now."""
        seconds = now - self._since
        if busy and self._was_busy and seconds > 0:
            weight = min(1.0, seconds / self.SMOOTHING_SECONDS)
            items, size = self.rate
            self.rate = Rate(
                items + weight * (self._done.items / seconds - items),
                size + weight * (self._done.bytes / seconds - size),
            )
        self._since, self._was_busy = now, busy
        self._done.items = self._done.bytes = 0
