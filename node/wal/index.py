"""Where each entry is: shared by the thread that writes and the one that reads."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from raftstorage.node.raft.types import Entry
from raftstorage.node.wal import format as fmt

_OFFSET_BITS = 40
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_PAGE_BITS = 12
_PAGE_MASK = (1 << _PAGE_BITS) - 1
_ROW = 3  # numbers of an entry in its page: place, length, term
_NUMBER_BYTES = 8
#: What an Entry in the cache takes beside its data, in bytes.
_OVERHEAD = 200
#: How many forgotten entries leave the cache for each that comes.
_FORGOTTEN_FOR_EACH = 8


@dataclass(frozen=True, slots=True)
class Place:
    """A record on disk: its segment's sequence, its offset there, its length; all in bytes."""

    sequence: int
    offset: int
    length: int


class EntryIndex:
    """Place and term of each entry behind the base, and the newest entries whole, up to `cache_bytes`.

    Places are in pages of 4096 entries, so that entries go from the front without moving the rest. The lock is
    held for memory operations only.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._base = (0, 0)
        self._last = 0
        self._pages: dict[int, array[int]] = {}
        # The cached entries are _recent_low .. last index; some may be in front of the base.
        self._recent: dict[int, Entry] = {}
        self._recent_low = 1
        self._recent_bytes = 0
        self._lock = threading.Lock()

    @property
    def base(self) -> tuple[int, int]:
        """Index and term of what the first entry follows."""
        return self._base

    @property
    def cached_bytes(self) -> int:
        """What the entries in memory take, about."""
        return self._recent_bytes

    def last_index(self) -> int:
        """The base's index when there is no entry."""
        with self._lock:
            return self._last

    def term(self, index: int) -> int:
        """Of the base as well. IndexError when there is no such entry."""
        with self._lock:
            base_index, base_term = self._base
            if index == base_index:
                return base_term
            if not base_index < index <= self._last:
                raise IndexError(index)
            return self._pages[index >> _PAGE_BITS][_ROW * (index & _PAGE_MASK) + 2]

    def publish(self, placed: Sequence[tuple[Entry, Place]]) -> None:
        """All at once for readers. Each entry replaces what there is from its index on; none is up to the base."""
        with self._lock:
            for entry, place in placed:
                self._put(entry.index, entry.term, place)
                self._recent[entry.index] = entry
                self._recent_bytes += len(entry.data) + _OVERHEAD
            # Some of what was forgotten goes each time: all at once would hold the lock for long.
            forgotten = min(self._base[0] + 1 - self._recent_low, _FORGOTTEN_FOR_EACH * len(placed))
            while forgotten > 0 or self._recent_bytes > self._cache_bytes:
                self._evict(self._recent_low)
                self._recent_low += 1
                forgotten -= 1

    def recovered(self, entry: Entry, place: Place) -> None:
        """As `publish`, without keeping the entry in memory."""
        self._put(entry.index, entry.term, place)
        self._recent_low = self._last + 1

    def restart(self, index: int, term: int) -> None:
        """No entries, and the base (index, term). All at once for readers."""
        pages, recent = self._pages, self._recent
        with self._lock:
            self._base = (index, term)
            self._last = index
            self._pages, self._recent = {}, {}
            self._recent_low, self._recent_bytes = index + 1, 0
        # Many small objects go here, and not under the lock.
        del pages, recent

    def forget(self, index: int, term: int | None = None) -> None:
        """Makes the entry at `index` the base; not when the base is behind it. `term`: of the entry, if known.

        What the cache holds of the forgotten entries goes with the entries that come.
        """
        with self._lock:
            base_index = self._base[0]
            if index < base_index or (index == base_index and term is None):
                return
            if term is None:
                term = self._pages[index >> _PAGE_BITS][_ROW * (index & _PAGE_MASK) + 2]
            self._base = (index, term)
            for number in range((base_index + 1) >> _PAGE_BITS, (index + 1) >> _PAGE_BITS):
                self._pages.pop(number, None)

    def _put(self, index: int, term: int, place: Place) -> None:
        if index <= self._last:
            self._cut(index)
        page = self._pages.get(index >> _PAGE_BITS)
        if page is None:
            # The first one may begin within a page: what is in front is never asked for.
            empty = bytes(_ROW * _NUMBER_BYTES * (index & _PAGE_MASK))
            page = self._pages[index >> _PAGE_BITS] = array("Q", empty)
        page.extend((place.sequence << _OFFSET_BITS | place.offset, place.length, term))
        self._last = index

    def _cut(self, index: int) -> None:
        """Takes out the entries from `index` on; there is one at `index`."""
        for each in range(max(index, self._recent_low), self._last + 1):
            self._evict(each)
        self._recent_low = min(self._recent_low, index)
        for number in range((index >> _PAGE_BITS) + 1, (self._last >> _PAGE_BITS) + 1):
            del self._pages[number]
        del self._pages[index >> _PAGE_BITS][_ROW * (index & _PAGE_MASK) :]

    def _evict(self, index: int) -> None:
        self._recent_bytes -= len(self._recent.pop(index).data) + _OVERHEAD

    def _place(self, index: int) -> int:
        return self._pages[index >> _PAGE_BITS][_ROW * (index & _PAGE_MASK)]

    def locate(self, low: int, high: int, max_bytes: int) -> list[tuple[int, Entry | Place]]:
        """(index, entry or where it is), low <= index < high: at least one, then at most `max_bytes` of data.

        IndexError when one of them is not there.
        """
        found: list[tuple[int, Entry | Place]] = []
        size = 0
        with self._lock:
            first = self._base[0] + 1
            if low < high and not first <= low <= high - 1 <= self._last:
                raise IndexError(low if not first <= low <= self._last else high - 1)
            for index in range(low, high):
                row = _ROW * (index & _PAGE_MASK)
                at, length, _term = self._pages[index >> _PAGE_BITS][row : row + _ROW]
                size += length - fmt.HEAD_BYTES - fmt.ENTRY_HEAD_BYTES
                if found and size > max_bytes:
                    break
                if index >= self._recent_low:
                    found.append((index, self._recent[index]))
                else:
                    found.append((index, Place(at >> _OFFSET_BITS, at & _OFFSET_MASK, length)))
        return found

    def first_sequence(self) -> int | None:
        """The segment that holds the first entry."""
        with self._lock:
            first = self._base[0] + 1
            return self._place(first) >> _OFFSET_BITS if first <= self._last else None

    def last_before(self, sequence: int, offset: int) -> int:
        """The last entry whose record begins in front of that place; the base's index if there is none."""
        place = sequence << _OFFSET_BITS | offset
        with self._lock:
            first = self._base[0] + 1
            # A later entry is never in front of an earlier one.
            return self._base[0] + bisect_left(range(first, self._last + 1), place, key=self._place)
