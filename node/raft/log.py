"""The log as the core sees it: the durable part behind a LogReader, and a tail that is not durable yet."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from .types import Entry, LogReader, RaftInvariantError


class RaftLog:
    """Entries up to `stable` are durable (in the reader); later ones are held in memory.

    A write that is under way is remembered with the last index that it still makes durable. Replacing a suffix
    lowers that, so that the end of an old write is never taken for the durability of entries that came later at
    the same place, not even of equal ones (ABA): another write to that place may stand between the two.
    """

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._tail: list[Entry] = []
        self._unwritten = reader.last_index() + 1  # first index that was not handed out for writing
        self._writes: deque[list[int]] = deque()  # [ticket, last index that it makes durable]
        self.stable = reader.last_index()

    @property
    def first_index(self) -> int:
        return self._reader.first_index()

    @property
    def last_index(self) -> int:
        return self.stable + len(self._tail)

    @property
    def last_term(self) -> int:
        return self.term(self.last_index)

    @property
    def has_unwritten(self) -> bool:
        return self._unwritten <= self.last_index

    def term(self, index: int) -> int:
        """Term of the entry at `index`, 0 for index 0. IndexError when it is not there."""
        if index == 0:
            return 0
        if index > self.stable:
            return self._tail[index - self.stable - 1].term
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
        self._unwritten = min(self._unwritten, index)
        for write in self._writes:
            write[1] = min(write[1], index - 1)

    def take_unwritten(self, ticket: int) -> tuple[Entry, ...]:
        """What no write was made for yet; `ticket` is the write that takes it."""
        # Not below the tail: what is durable needs no writing.
        entries = tuple(self._tail[self._unwritten - self.stable - 1 :])
        self._unwritten = self.last_index + 1
        self._writes.append([ticket, self.last_index])
        return entries

    def written(self, ticket: int) -> None:
        """All writes up to `ticket` are durable."""
        while self._writes and self._writes[0][0] <= ticket:
            last = self._writes.popleft()[1]
            if last > self.stable:
                del self._tail[: last - self.stable]
                self.stable = last

    def entries(self, low: int, high: int, max_bytes: int, max_count: int) -> tuple[Entry, ...]:
        """Entries low <= index < high: at least one when there is one, then up to both bounds."""
        high = min(high, self.last_index + 1, low + max_count)
        if low >= high:
            return ()
        found: list[Entry] = []
        if low <= self.stable:
            found.extend(self._reader.entries(low, min(high, self.stable + 1), max_bytes))
        size = sum(len(entry.data) for entry in found)
        while self.stable < (index := low + len(found)) < high:
            entry = self._tail[index - self.stable - 1]
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return tuple(found)

    def last_with_term_at_most(self, index: int, term: int) -> int:
        """The largest index <= `index` whose term is <= `term` (fast back-up, Raft paper 5.3); 0 at worst."""
        index = min(index, self.last_index)
        low = self.first_index if self.first_index > 1 else 0
        # Terms never fall along a log.
        return low + bisect_right(range(low, index + 1), term, key=self.term) - 1
