"""Where each entry is: shared by the thread that writes and the one that reads."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from raftstorage.node.raft.types import Entry
from raftstorage.node.wal import format as fmt

_OFFSET_BITS = 40
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
#: What an Entry in the cache takes beside its data, in bytes.
_OVERHEAD = 200


@dataclass(frozen=True, slots=True)
class Place:
    """A record on disk: its segment's sequence, its offset there, its length; all in bytes."""

    sequence: int
    offset: int
    length: int


class EntryIndex:
    """Place and term of each entry from index 1 on, and the newest entries whole, up to `cache_bytes`.

    The lock is held for memory operations only.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._places = array("Q")
        self._lengths = array("Q")
        self._terms = array("Q")
        # The cached entries are _recent_low .. last index.
        self._recent: dict[int, Entry] = {}
        self._recent_low = 1
        self._recent_bytes = 0
        self._lock = threading.Lock()

    def last_index(self) -> int:
        return len(self._terms)

    def term(self, index: int) -> int:
        """IndexError when there is no such entry."""
        if index < 1:
            raise IndexError(index)
        return self._terms[index - 1]  # one bytecode: what another thread does is before or after it

    def publish(self, placed: Sequence[tuple[Entry, Place]]) -> None:
        """All at once for readers. Each entry replaces what there is from its index on."""
        with self._lock:
            for entry, place in placed:
                self._put(entry.index, entry.term, place)
                self._recent[entry.index] = entry
                self._recent_bytes += len(entry.data) + _OVERHEAD
            while self._recent_bytes > self._cache_bytes:
                self._forget(self._recent_low)
                self._recent_low += 1

    def recovered(self, entry: Entry, place: Place) -> None:
        """As `publish`, without keeping the entry in memory."""
        self._put(entry.index, entry.term, place)
        self._recent_low = self.last_index() + 1

    def _put(self, index: int, term: int, place: Place) -> None:
        position = index - 1
        if position < len(self._terms):
            for each in range(max(index, self._recent_low), len(self._terms) + 1):
                self._forget(each)
            self._recent_low = min(self._recent_low, index)
            del self._places[position:], self._lengths[position:], self._terms[position:]
        self._places.append(place.sequence << _OFFSET_BITS | place.offset)
        self._lengths.append(place.length)
        self._terms.append(term)

    def _forget(self, index: int) -> None:
        self._recent_bytes -= len(self._recent.pop(index).data) + _OVERHEAD

    def locate(self, low: int, high: int, max_bytes: int) -> list[tuple[int, Entry | Place]]:
        """(index, entry or where it is), low <= index < high: at least one, then at most `max_bytes` of data.

        IndexError when one of them is not there.
        """
        found: list[tuple[int, Entry | Place]] = []
        size = 0
        with self._lock:
            if low < high and not 1 <= low <= high - 1 <= len(self._terms):
                raise IndexError(low if not 1 <= low <= len(self._terms) else high - 1)
            for index in range(low, high):
                length = self._lengths[index - 1]
                size += length - fmt.HEAD_BYTES - fmt.ENTRY_HEAD_BYTES
                if found and size > max_bytes:
                    break
                if index >= self._recent_low:
                    found.append((index, self._recent[index]))
                else:
                    at = self._places[index - 1]
                    found.append((index, Place(at >> _OFFSET_BITS, at & _OFFSET_MASK, length)))
        return found
