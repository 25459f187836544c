"""A log in memory, with what a disk would hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raftstorage.node.raft.types import Entry, HardState, SnapshotBase


class Violation(AssertionError):
    """One of Raft's guarantees was broken."""


class MemoryLog:
    """A LogReader. `base`: index and term of the entry before the first one."""

    def __init__(
        self, entries: Iterable[Entry] = (), hard_state: HardState | None = None, base: tuple[int, int] = (0, 0)
    ) -> None:
        self._entries = list(entries)
        self.base = base
        self.hard_state = hard_state or HardState()

    def write(
        self, hard_state: HardState | None, entries: Sequence[Entry], snapshot: SnapshotBase | None = None
    ) -> None:
        if hard_state is not None:
            self.hard_state = hard_state
        if snapshot is not None:
            self._begin_behind(snapshot.index, snapshot.term)
        if entries:
            first = entries[0].index
            if not self.base[0] < first <= self.last_index() + 1:
                raise Violation(f"a write leaves a gap before {first}, or goes below {self.base[0]}")
            self._entries[first - self.base[0] - 1 :] = entries

    def _begin_behind(self, index: int, term: int) -> None:
        if self.matches(index, term):
            self.cut(index)
        else:
            self._entries = []
            self.base = (index, term)

    def cut(self, index: int) -> None:
        """Forgets the entries up to `index`; a state covers them."""
        if index > self.base[0]:
            base = (index, self.term(index))
            del self._entries[: index - self.base[0]]
            self.base = base

    def first_index(self) -> int:
        return self.base[0] + 1

    def last_index(self) -> int:
        return self.base[0] + len(self._entries)

    def term(self, index: int) -> int:
        if index == self.base[0]:
            return self.base[1]
        if index == 0:
            return 0
        if not self.base[0] < index <= self.last_index():
            raise IndexError(index)
        return self._entries[index - self.base[0] - 1].term

    def matches(self, index: int, term: int) -> bool:
        return self.base[0] <= index <= self.last_index() and self.term(index) == term

    def covers(self, index: int, term: int) -> bool:
        """Is the entry there, or covered by the state that the log begins behind?"""
        return index < self.base[0] or self.matches(index, term)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        if not self.base[0] < low < high <= self.last_index() + 1:
            raise IndexError((low, high))
        found: list[Entry] = []
        size = 0
        for entry in self._entries[low - self.base[0] - 1 : high - self.base[0] - 1]:
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return found
