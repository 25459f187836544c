"""An MVCC cache of records in memory.

A revision is kept with the serial of the one that followed it, or as the current one. What is known of a revision
that has a successor is true for ever. What is known of a current one is true up to `known`, the tid up to which
all changes were told of, in tid order and before anybody may read what they changed. So a lookup up to `known`
needs no more than the entry.

What a replica answers as current was so at the tid that it was asked to have applied, `as_of`, and perhaps no
longer: a change that was told of before the question, to which the replica had not come yet, or one that overtook
the answer, may have ended it. It is kept as current only when no change of the object above `as_of` is known, and
all of those would be: the newest changes are remembered, and `_forgotten` is the tid up to which they are not.

What a pack removes stays here until it is evicted: it is what was, and no snapshot that may read it sees anything
else. Eviction is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) by bytes: a
lookup takes no lock and moves nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

DEFAULT_BYTES = 64 << 20
#: Of memory for an entry beside its data, about: the entry itself, its places in a queue and by its oid.
OVERHEAD_BYTES = 350
#: Objects whose newest change is remembered.
REMEMBERED = 20_000
#: A single record larger than this part of the cache is not kept.
_LARGEST_PART = 8
_SMALL_PART = 10  # of the bytes are for what was asked for once
_MOST_USES = 3
_Z64 = b"\0" * 8
_NEVER = b"\xff" * 8


class Revision(NamedTuple):
    """`next_serial` None: it is the current one."""

    data: bytes
    serial: bytes
    next_serial: bytes | None


class Figures(NamedTuple):
    """Of now: `entries` and `bytes`; since the cache was made: all else."""

    entries: int
    bytes: int
    hits: int
    misses: int
    evictions: int


class _Entry:
    __slots__ = ("data", "next_serial", "oid", "serial", "size", "uses")

    def __init__(self, oid: bytes, data: bytes, serial: bytes, next_serial: bytes | None) -> None:
        self.oid = oid
        self.data = data
        self.serial = serial
        self.next_serial = next_serial
        self.size = len(data) + OVERHEAD_BYTES
        self.uses = 0


class RecordCache:
    """For any number of threads. `max_bytes`: of data and overhead together, 0: nothing is kept; `remembered`: see
    REMEMBERED."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES, remembered: int = REMEMBERED) -> None:
        self.max_bytes = max_bytes
        self._most_remembered = remembered
        self._lock = threading.Lock()
        self._entries: dict[bytes, tuple[_Entry, ...]] = {}  # by oid, newest first; replaced, never changed
        self._small: deque[_Entry] = deque()
        self._main: deque[_Entry] = deque()
        self._small_bytes = 0
        self._bytes = 0
        self._count = 0
        self._ghosts: OrderedDict[tuple[bytes, bytes], None] = OrderedDict()  # evicted from `_small` not long ago
        self._changed: OrderedDict[bytes, bytes] = OrderedDict()  # oid -> tid of its newest change, rising
        self._known = self._forgotten = _Z64
        self._hits = self._misses = self._evictions = 0

    # ---- what is known ---------------------------------------------------------------------------------

    @property
    def known(self) -> bytes:
        """The tid up to which all changes were told of."""
        return self._known

    def start(self, tid: bytes) -> None:
        """Changes are told of from here on. Those before are taken as not remembered."""
        with self._lock:
            self._known = self._forgotten = max(tid, self._known)

    def invalidate(self, tid: bytes, oids: Iterable[bytes]) -> None:
        """The next transaction, `tid`, changed `oids`. To be told before a snapshot of `tid` is read."""
        with self._lock:
            if self._forgotten == _NEVER:
                self._forgotten = tid
            entries, changed = self._entries, self._changed
            for oid in oids:
                changed[oid] = tid
                changed.move_to_end(oid)
                held = entries.get(oid)
                if held is not None and held[0].next_serial is None and held[0].serial < tid:
                    held[0].next_serial = tid
                if len(changed) > self._most_remembered:
                    self._forgotten = max(self._forgotten, changed.popitem(last=False)[1])
            self._known = max(self._known, tid)

    # ---- lookups ---------------------------------------------------------------------------------------

    def load_before(self, oid: bytes, before: bytes) -> Revision | None:
        """The newest revision below the tid `before`, if it is known here. `before` is at most `known` + 1."""
        for entry in self._entries.get(oid, ()):
            if entry.serial < before:
                next_serial = entry.next_serial
                if next_serial is not None and next_serial < before:
                    break
                if entry.uses < _MOST_USES:
                    entry.uses += 1
                self._hits += 1
                return Revision(entry.data, entry.serial, next_serial)
        self._misses += 1
        return None

    def load_serial(self, oid: bytes, serial: bytes) -> bytes | None:
        """That revision's data, if it is here."""
        for entry in self._entries.get(oid, ()):
            if entry.serial == serial:
                if entry.uses < _MOST_USES:
                    entry.uses += 1
                self._hits += 1
                return entry.data
        self._misses += 1
        return None

    def has(self, oid: bytes, before: bytes) -> bool:
        """Whether `load_before` would find it. Counts for nothing."""
        return any(
            entry.serial < before and (entry.next_serial is None or entry.next_serial >= before)
            for entry in self._entries.get(oid, ())
        )

    # ---- filling ---------------------------------------------------------------------------------------

    def store(self, oid: bytes, data: bytes, serial: bytes, next_serial: bytes | None, as_of: bytes) -> None:
        """Takes a revision over. Without `next_serial` it was the current one at `as_of`, at least."""
        if (len(data) + OVERHEAD_BYTES) * _LARGEST_PART > self.max_bytes:
            return
        with self._lock:
            if next_serial is None:
                newest = self._changed.get(oid, _Z64)
                if as_of < self._forgotten or newest > max(as_of, serial):
                    return
            held = self._entries.get(oid, ())
            for entry in held:
                if entry.serial == serial:
                    if entry.next_serial is None:
                        entry.next_serial = next_serial
                    return
            if next_serial is None and held and (held[0].serial > serial):
                return  # a newer one is known
            entry = _Entry(oid, data, serial, next_serial)
            position = sum(each.serial > serial for each in held)
            self._entries[oid] = (*held[:position], entry, *held[position:])
            self._bytes += entry.size
            self._count += 1
            if self._ghosts.pop((oid, serial), _Z64) is None:
                self._main.append(entry)
            else:
                self._small.append(entry)
                self._small_bytes += entry.size
            while self._bytes > self.max_bytes:
                self._evict()

    def missed(self) -> None:
        """Changes before the next one that is told were left out: what was asked for by then may be old."""
        self.clear()
        with self._lock:
            self._forgotten = _NEVER

    def clear(self) -> None:
        """Nothing is known any more but what changed."""
        with self._lock:
            self._entries.clear()
            self._small.clear()
            self._main.clear()
            self._ghosts.clear()
            self._small_bytes = self._bytes = self._count = 0

    def _evict(self) -> None:
        """One entry goes, or is moved on."""
        if self._small and (self._small_bytes * _SMALL_PART > self.max_bytes or not self._main):
            entry = self._small.popleft()
            self._small_bytes -= entry.size
            if entry.uses:
                entry.uses = 0
                self._main.append(entry)
                return
            self._ghosts[entry.oid, entry.serial] = None
            if len(self._ghosts) > max(1000, self._count):
                self._ghosts.popitem(last=False)
        else:
            entry = self._main.popleft()
            if entry.uses:
                entry.uses -= 1
                self._main.append(entry)
                return
        self._drop(entry)
        self._evictions += 1

    def _drop(self, entry: _Entry) -> None:
        held = self._entries[entry.oid]
        if len(held) == 1:
            del self._entries[entry.oid]
        else:
            self._entries[entry.oid] = tuple(each for each in held if each is not entry)
        self._bytes -= entry.size
        self._count -= 1

    # ---- as a whole ------------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """Hits and misses are counted without a lock, and may be some short."""
        return Figures(self._count, self._bytes, self._hits, self._misses, self._evictions)

    def contents(self) -> tuple[bytes, Sequence[tuple[bytes, Revision]]]:
        """`known`, and all revisions as of then, the least wanted first."""
        with self._lock:
            found = [
                (entry.oid, Revision(entry.data, entry.serial, entry.next_serial))
                for queue in (self._small, self._main)
                for entry in queue
            ]
            return self._known, found

    def restore(self, known: bytes, contents: Iterable[tuple[bytes, Revision]]) -> None:
        """What `contents` gave, into a cache that was just made; changes are told of from `known` on."""
        self.start(known)
        for oid, (data, serial, next_serial) in contents:
            self.store(oid, data, serial, next_serial, known)

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._entries))
