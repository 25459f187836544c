"""What a drill found: pure arithmetic over what the writers saw and what the database holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Ack:
    """One commit that a writer was told had happened. Times: seconds of one clock, common to all processes."""

    writer: int
    uid: str
    tid: str  # hexadecimal
    begun: float
    acknowledged: float


@dataclass(frozen=True, slots=True)
class Gap:
    """What one kill cost, in seconds. `client`: the longest wait of any one writer between two of its own
    acknowledged commits; `service`: the longest time in which no writer at all was acknowledged."""

    client: float
    service: float


@dataclass(frozen=True, slots=True)
class Report:
    """A drill's outcome. `ok` is what the exit code says."""

    kills: int
    writers: int
    seconds: float
    acknowledged: int
    committed: int  # unique ids in the database
    lost: tuple[str, ...]  # acknowledged, but not in the database
    doubled: tuple[str, ...]  # in more than one transaction
    misplaced: tuple[str, ...]  # there, but not at the tid that was acknowledged
    retries: int  # commits that a writer had to try again after an error
    gaps: tuple[Gap, ...]

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.misplaced) and self.acknowledged > 0

    def as_json(self) -> dict[str, Any]:
        client, service = [g.client for g in self.gaps], [g.service for g in self.gaps]
        return {
            "ok": self.ok,
            "kills": self.kills,
            "writers": self.writers,
            "seconds": round(self.seconds, 3),
            "commits_acknowledged": self.acknowledged,
            "commits_in_database": self.committed,
            "commits_lost": len(self.lost),
            "commits_doubled": len(self.doubled),
            "commits_at_wrong_tid": len(self.misplaced),
            "commits_retried": self.retries,
            "lost": list(self.lost[:100]),
            "doubled": list(self.doubled[:100]),
            "write_gap_seconds": {
                "p50": round(percentile(client, 50), 4),
                "max": round(max(client, default=0.0), 4),
                "each": [round(gap, 4) for gap in client],
            },
            "service_gap_seconds": {
                "p50": round(percentile(service, 50), 4),
                "max": round(max(service, default=0.0), 4),
                "each": [round(gap, 4) for gap in service],
            },
        }


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile; 0.0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def longest_gap(times: Sequence[float], start: float, end: float) -> float:
    """Longest interval without one of the sorted `times` that ends after `start`, cut off at `end`.

    The first interval begins at the last time before `start` (at `start` when there is none).
    """
    inside = [t for t in times if start <= t <= end]
    before = max((t for t in times if t < start), default=start)
    return max(b - a for a, b in pairwise([before, *inside, end]))


def gaps(acks: Sequence[Ack], kills: Sequence[float], end: float) -> tuple[Gap, ...]:
    """For each kill the gap that clients saw between it and the next kill (or `end`).

    A writer that had no commit acknowledged before a kill was not there yet and is left out for it.
    """
    ordered = sorted(ack.acknowledged for ack in acks)
    by_writer: dict[int, list[float]] = {}
    for ack in sorted(acks, key=lambda a: a.acknowledged):
        by_writer.setdefault(ack.writer, []).append(ack.acknowledged)
    result = []
    for start, stop in pairwise([*kills, end]):
        seen = [longest_gap(times, start, stop) for times in by_writer.values() if times[0] < start]
        result.append(Gap(max(seen, default=stop - start), longest_gap(ordered, start, stop)))
    return tuple(result)


def analyse(
    acks: Sequence[Ack],
    kills: Sequence[float],
    committed: Mapping[str, Sequence[str]],
    *,
    end: float,
    seconds: float,
    writers: int,
    retries: int = 0,
) -> Report:
    """Compares what was acknowledged with `committed`: unique id -> tids (hexadecimal) in the database."""
    return Report(
        kills=len(kills),
        writers=writers,
        seconds=seconds,
        acknowledged=len({ack.uid for ack in acks}),
        committed=len(committed),
        lost=tuple(sorted({ack.uid for ack in acks if ack.uid not in committed})),
        doubled=tuple(sorted(uid for uid, tids in committed.items() if len(tids) > 1)),
        misplaced=tuple(
            sorted({ack.uid for ack in acks if ack.uid in committed and ack.tid not in committed[ack.uid]})
        ),
        retries=retries,
        gaps=gaps(acks, kills, end),
    )
