"""Does a measured series drift? Pure arithmetic, robust against outliers: medians of slopes (Theil and Sen).

A series is judged over its second half, when caches are filled and connections made. Where a restart begins it
anew, each lifetime has a second half of its own, and the slopes of all are taken together.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

#: (seconds, value)
Point = tuple[float, float]

HOUR = 3600.0
#: More points than this are condensed first: slopes are taken of all pairs.
MAX_POINTS = 300
#: Fewer points say nothing.
MIN_POINTS = 8
#: Of all pairs of points that differ, this share must go the wrong way before anything is called a drift: of noise
#: and saw teeth about a half does.
WRONG_WAY = 0.65


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse a series may be at the end of what is judged than at its beginning.

    `step` (in the series' unit) and `share` (of its level there) are always allowed, whichever is more: one
    segment, one table, noise. `per_hour` (unit) and `share_per_hour` are allowed for each hour on top.
    `least_seconds`: what lives shorter is not judged. `falling`: it is a fall that is bad.
    """

    step: float = 0.0
    share: float = 0.0
    per_hour: float = 0.0
    share_per_hour: float = 0.0
    least_seconds: float = 0.0
    falling: bool = False

    def allowed(self, seconds: float, level: float) -> float:
        hours = seconds / HOUR
        always = max(self.step, self.share * level)
        return always + max(self.per_hour, self.share_per_hour * level) * hours


@dataclass(frozen=True, slots=True)
class Verdict:
    """`change` and `allowed`: over `seconds`, the longest stretch that was judged; a change for the worse is above
    zero. `level`: the median. `why`: not empty when it was not judged."""

    drifts: bool = False
    why: str = ""
    seconds: float = 0.0
    level: float = 0.0
    per_hour: float = 0.0
    change: float = 0.0
    allowed: float = 0.0

    @property
    def word(self) -> str:
        return "not judged" if self.why else "drifts" if self.drifts else "steady"

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.word,
            "why": self.why,
            "judged_seconds": round(self.seconds, 1),
            "level": self.level,
            "per_hour": self.per_hour,
            "change": self.change,
            "allowed": self.allowed,
        }


def condense(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points: medians of neighbours, the time of each their middle one's."""
    if len(points) <= most:
        return list(points)
    result = []
    for number in range(most):
        some = points[number * len(points) // most : (number + 1) * len(points) // most]
        result.append((some[len(some) // 2][0], statistics.median(value for _, value in some)))
    return result


def slopes(points: Sequence[Point]) -> Iterator[float]:
    """Of all pairs of points, a second. `points` rise in time."""
    for (at, value), (later, other) in combinations(points, 2):
        if later > at:
            yield (other - value) / (later - at)


def theil_sen(points: Sequence[Point]) -> float:
    """The median of all slopes, a second: nearly a third of the points may be anything. 0.0 of fewer than two."""
    found = list(slopes(points))
    return statistics.median(found) if found else 0.0


def second_half(points: Sequence[Point]) -> list[Point]:
    if not points:
        return []
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]


def judge(lives: Sequence[Sequence[Point]], tolerance: Tolerance) -> Verdict:
    """Looks at the second half of each of `lives`, each rising in time; one life for what no restart touches."""
    long = [life for life in lives if life and life[-1][0] - life[0][0] >= tolerance.least_seconds]
    if not long:
        lived = max((life[-1][0] - life[0][0] for life in lives if life), default=0.0)
        return Verdict(why=f"{tolerance.least_seconds:.0f} s are needed, the longest life had {lived:.0f} s")
    longest = max(len(life) for life in long)
    most = max(MIN_POINTS, MAX_POINTS * longest // sum(len(life) for life in long))
    halves = [half for life in long if len(half := condense(second_half(life), most)) >= MIN_POINTS]
    if not halves:
        return Verdict(why=f"fewer than {MIN_POINTS} samples in the second half")
    found = [slope for half in halves for slope in slopes(half)]
    slope = statistics.median(found)
    worse = -slope if tolerance.falling else slope
    wrong = sum((each < 0) if tolerance.falling else (each > 0) for each in found)
    differ = sum(each != 0 for each in found)
    seconds = max(half[-1][0] - half[0][0] for half in halves)
    level = statistics.median(value for half in halves for _, value in half)
    change = worse * seconds
    allowed = tolerance.allowed(seconds, max(0.0, level - slope * seconds / 2))
    drifts = change > allowed and wrong >= WRONG_WAY * differ
    return Verdict(drifts, "", seconds, level, slope * HOUR, change, allowed)
