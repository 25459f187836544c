"""How far a follower is behind its leader: entries, transactions, bytes, seconds. Pure: time is handed in."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import NamedTuple

#: Samples that are kept: who is further behind than the oldest is at least that far behind.
MOST_SAMPLES = 4096


class Lag(NamedTuple):
    entries: int
    transactions: int
    bytes: int
    seconds: float


class _Sample(NamedTuple):
    at: float
    end: int  # index of the last entry by then
    transactions: int
    bytes: int


class LagMeter:
    """Remembers where the leader's log stood when. One for each leadership; `clear` begins the next one."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=MOST_SAMPLES)

    def clear(self) -> None:
        self._samples.clear()

    def sample(self, at: float, index: int, transactions: int, size: int) -> None:
        """At `at` (seconds) the log ended with `index`; `transactions` and `size` (bytes) only rise."""
        if not self._samples or index > self._samples[-1].end:
            self._samples.append(_Sample(at, index, transactions, size))

    def lag(self, match: int, at: float) -> Lag:
        """Of a follower that has everything up to `match`; exact to a sample, at least what is known."""
        samples = self._samples
        if not samples or match >= samples[-1].end:
            return Lag(0, 0, 0, 0.0)
        newest = samples[-1]
        position = bisect_right(samples, match, key=lambda sample: sample.end)
        # What came between the last sample that it has whole and the next one may be partly there.
        known = samples[position - 1] if position else samples[0]
        return Lag(
            newest.end - match,
            newest.transactions - known.transactions,
            newest.bytes - known.bytes,
            max(0.0, at - samples[position].at),
        )
