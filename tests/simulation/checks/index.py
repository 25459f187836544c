"""What several checks look up: revisions by oid and tid, the highest tid known at a time, names for messages."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from tests.simulation.history import Commit, Committed, Event, Opened, Read, Told, Value

Z64 = b"\0" * 8

#: Read-only (oid -> (tids, their data)), the tids rising.
Revisions: TypeAlias = dict[bytes, tuple[list[bytes], list[bytes | None]]]


class Index:
    """The truth, by tid and by oid."""

    def __init__(self, truth: Sequence[Committed]) -> None:
        self.truth = truth
        self.positions = {each.tid: position for position, each in enumerate(truth)}
        self._revisions: Revisions = {}
        for each in truth:
            for oid, data in each.records.items():
                tids, versions = self._revisions.setdefault(oid, ([], []))
                tids.append(each.tid)
                versions.append(data)

    def at(self, oid: bytes, snapshot: bytes) -> Value:
        """The latest revision of `oid` with a tid of at most `snapshot`."""
        found = self._revisions.get(oid)
        position = bisect_right(found[0], snapshot) if found is not None else 0
        if found is None or position == 0:
            return None
        data, tid = found[1][position - 1], found[0][position - 1]
        return None if data is None else (data, tid)


class Highest:
    """The highest tid of all facts up to a time. Facts come in the order of their times."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._best: list[tuple[bytes, Event]] = []

    def add(self, time: float, tid: bytes, event: Event) -> None:
        if self._times:
            time = max(time, self._times[-1])
            if self._best[-1][0] >= tid:
                return
        self._times.append(time)
        self._best.append((tid, event))

    def before(self, time: float) -> tuple[bytes, Event] | None:
        """Of the facts strictly before `time`."""
        position = bisect_left(self._times, time)
        return self._best[position - 1] if position else None

    def until(self, time: float) -> tuple[bytes, Event] | None:
        """Of the facts before or at `time`."""
        position = bisect_right(self._times, time)
        return self._best[position - 1] if position else None


def name(event: Event) -> str:
    """Who did what, for messages."""
    match event:
        case Opened():
            return f"client {event.client}'s opening at {event.at:.4f} with tid {event.tid.hex()}"
        case Told():
            return f"what client {event.client} was told at {event.at:.4f}, tid {event.tid.hex()},"
        case Read():
            kind = "linearizable read" if event.linearizable else "read"
            return f"client {event.client}'s {kind} of {event.begun:.4f} at snapshot {event.snapshot.hex()}"
        case Commit():
            tid = f", acknowledged with tid {event.tid.hex()}" if event.tid is not None else f" ({event.outcome})"
            return f"client {event.client}'s commit {event.identity.hex()} of {event.begun:.4f}{tid}"


def show(value: Value) -> str:
    return "no object" if value is None else f"{value[0]!r} of tid {value[1].hex()}"


def difference(promised: Mapping[bytes, bytes | None], seen: Mapping[bytes, bytes | None]) -> str:
    """In words, oid by oid."""
    return "; ".join(
        f"oid {oid.hex()}: {promised.get(oid)!r} was promised, {seen.get(oid)!r} is there"
        for oid in sorted({*promised, *seen})
        if promised.get(oid) != seen.get(oid)
    )
