"""The log as the core sees it: the durable part behind a LogReader, and a tail that is not durable yet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from .types import Entry, LogReader, RaftInvariantError


class RaftLog:
    """Entries up to `stable` are durable (in the reader); later ones are held in memory.

    `stable` only counts entries that are still part of this log: overwriting a suffix moves it back.
    """

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._tail: list[Entry] = []
        self.stable = reader.last_index()

    @property
    def last_index(self) -> int:
        return self._tail[-1].index if self._tail else self.stable

    @property
    def last_term(self) -> int:
        return self.term(self.last_index)

    def term(self, index: int) -> int:
        """Term of the entry at `index`, 0 for index 0. IndexError when it is not there."""
        if index == 0:
            return 0
        if index > self.stable:
            position = index - self.stable - 1
            if position >= len(self._tail):
                raise IndexError(index)
            return self._tail[position].term
        return self._reader.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Is there an entry at `index` with this term?"""
        return 0 <= index <= self.last_index and self.term(index) == term

    def append(self, entries: Sequence[Entry]) -> None:
        """Puts consecutive entries behind the last one."""
        self._tail.extend(entries)

    def truncate(self, index: int, commit: int) -> None:
        """Forgets the entries from `index` on. RaftInvariantError at or below the commit index."""
        if index <= commit:
            raise RaftInvariantError(f"asked to cut committed entry {index}; committed up to {commit}")
        if index > self.stable:
            del self._tail[index - self.stable - 1 :]
        else:
            self._tail.clear()
            self.stable = index - 1

    def made_durable(self, index: int, term: int) -> None:
        """The log was durable up to `index` with this term; ignored if that entry was replaced since (ABA)."""
        if index > self.stable and index <= self.last_index and self.term(index) == term:
            del self._tail[: index - self.stable]
            self.stable = index

    def entries(self, low: int, high: int, max_bytes: int, max_count: int) -> tuple[Entry, ...]:
        """Entries low <= index < high: at least one when there is one, then up to both bounds."""
        high = min(high, self.last_index + 1, low + max_count)
        if low >= high:
            return ()
        found: list[Entry] = []
        if low <= self.stable:
            found.extend(self._reader.entries(low, min(high, self.stable + 1), max_bytes))
        size = sum(len(entry.data) for entry in found)
        while (index := low + len(found)) < high and index > self.stable:
            entry = self._tail[index - self.stable - 1]
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return tuple(found)

    def first_of_term_at_most(self, index: int, term: int) -> int:
        """The largest index <= `index` whose term is <= `term` (fast back-up, raft paper 5.3); 0 at worst."""
        index = min(index, self.last_index)
        # Terms never fall along a log.
        return bisect_right(range(index + 1), term, key=self.term) - 1
