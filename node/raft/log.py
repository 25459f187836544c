"""The log as the core sees it: the durable part behind a LogReader, and a tail that is not durable yet."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .types import Entry, LogReader, RaftInvariantError, SnapshotBase


@dataclass(slots=True)
class _Write:
    """A write under way; `last`: the last index that it makes durable, 0 for none. `base`: it replaces the log."""

    ticket: int
    last: int
    base: SnapshotBase | None = None


class RaftLog:
    """Entries up to `stable` are durable (in the reader); later ones are held in memory.

    A write that is under way is remembered with the last index that it still makes durable. Replacing a suffix
    lowers that, so that the end of an old write is never taken for the durability of entries that came later at
    the same place, not even of equal ones (ABA): another write to that place may stand between the two.

    A snapshot's base counts at once, and is durable when the write that takes it has ended. Until then the tail
    begins behind it, and `stable` stays below it unless the reader had the log around it anyway.
    """

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._tail: list[Entry] = []
        self._tail_base = reader.last_index()  # index before the tail
        self._unwritten = self._tail_base + 1  # first index that was not handed out for writing
        self._writes: deque[_Write] = deque()
        self._restoring: SnapshotBase | None = None  # the base that is not durable yet
        self._base_unwritten = False
        self.stable = self._tail_base

    @property
    def base(self) -> int:
        """Index of the entry before the first one; 0 in a log that was never cut. Its term is known."""
        if self._restoring is not None:
            return self._restoring.index
        return self._reader.first_index() - 1

    @property
    def last_index(self) -> int:
        return self._tail_base + len(self._tail)

    @property
    def last_term(self) -> int:
        return self.term(self.last_index)

    @property
    def has_unwritten(self) -> bool:
        return self._unwritten <= self.last_index or self._base_unwritten

    @property
    def is_restoring(self) -> bool:
        """Is there a base that is not durable yet?"""
        return self._restoring is not None

    def term(self, index: int) -> int:
        """Term of the entry at `index`, or of the base; 0 for index 0. IndexError when it is not there."""
        if index == 0:
            return 0
        if index > self._tail_base:
            return self._tail[index - self._tail_base - 1].term
        if self._restoring is not None and index <= self._restoring.index:
            if index < self._restoring.index:
                raise IndexError(index)
            return self._restoring.term
        return self._reader.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Is there an entry at `index` with this term, or is it the base?"""
        return (index == 0 or self.base <= index <= self.last_index) and self.term(index) == term

    def append(self, entries: Sequence[Entry]) -> None:
        """Puts consecutive entries behind the last one."""
        self._tail.extend(entries)

    def truncate(self, index: int, commit: int) -> None:
        """Forgets the entries from `index` on. RaftInvariantError at or below the commit index."""
        if index <= commit:
            raise RaftInvariantError(f"asked to cut committed entry {index}; committed up to {commit}")
        if index > self._tail_base:
            del self._tail[index - self._tail_base - 1 :]
        else:
            self._tail.clear()
            self.stable = self._tail_base = index - 1
        self._unwritten = min(self._unwritten, index)
        for write in self._writes:
            write.last = min(write.last, index - 1)

    def restore(self, base: SnapshotBase) -> None:
        """The log begins behind `base`, which is behind all that is committed here. What follows that entry is
        kept if the log has it, else everything goes."""
        index = base.index
        if not self.matches(index, base.term):
            self._tail.clear()
            self._tail_base = index
            self.stable = min(self.stable, index - 1)
            self._unwritten = index + 1
            for write in self._writes:
                write.last = 0
        elif index > self._tail_base:
            # What is under way still makes durable what it holds of the suffix. The rest up to the base need not
            # be written any more.
            del self._tail[: index - self._tail_base]
            self._tail_base = index
            self._unwritten = max(self._unwritten, index + 1)
        self._restoring = base
        self._base_unwritten = True

    def take_base(self) -> SnapshotBase | None:
        """A base that no write was made for yet; to be taken before the entries."""
        return self._restoring if self._base_unwritten else None

    def take_unwritten(self, ticket: int) -> tuple[Entry, ...]:
        """What no write was made for yet; `ticket` is the write that takes it, and the base if there is one."""
        # Not below the tail: what is durable needs no writing.
        entries = tuple(self._tail[self._unwritten - self._tail_base - 1 :])
        self._unwritten = self.last_index + 1
        self._writes.append(_Write(ticket, self.last_index, self.take_base()))
        self._base_unwritten = False
        return entries

    def written(self, ticket: int) -> None:
        """All writes up to `ticket` are durable."""
        while self._writes and self._writes[0].ticket <= ticket:
            write = self._writes.popleft()
            if write.base is not None and write.base is self._restoring:
                self._restoring = None
            if write.last > self._tail_base:
                del self._tail[: write.last - self._tail_base]
                self._tail_base = write.last
            self.stable = max(self.stable, write.last)

    def entries(self, low: int, high: int, max_bytes: int, max_count: int) -> tuple[Entry, ...]:
        """Entries low <= index < high: at least one when there is one, then up to both bounds."""
        high = min(high, self.last_index + 1, low + max_count)
        if low >= high:
            return ()
        if low <= self.base:
            raise IndexError(low)
        found: list[Entry] = []
        if low <= self._tail_base:
            found.extend(self._reader.entries(low, min(high, self._tail_base + 1), max_bytes))
        size = sum(len(entry.data) for entry in found)
        while self._tail_base < (index := low + len(found)) < high:
            entry = self._tail[index - self._tail_base - 1]
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return tuple(found)

    def last_with_term_at_most(self, index: int, term: int) -> int:
        """The largest index <= `index` whose term is <= `term` (fast back-up, Raft paper 5.3); 0 at worst, or the
        one before the base: whatever is before that is not known any more."""
        low, index = self.base, min(index, self.last_index)
        # Terms never fall along a log.
        return low + bisect_right(range(low, index + 1), term, key=self.term) - 1
