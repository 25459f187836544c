"""A large transaction compared with the engine a slice at a time, while the engine goes on. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from raftstorage.node.engine.api import Z64, Conflict, Engine
from raftstorage.node.parts import Parts

#: Objects that are compared in one step: a few milliseconds.
SLICE = 256
#: With so many conflicts found the client has enough to do before it asks again.
MOST_CONFLICTS = 1000


class Examination:
    """Finds what `Engine.conflicts` would, in steps. `done` speaks of the engine as it is now, provided that
    `changed` was told of every transaction that was applied since the beginning: what was looked at before is
    looked at again in those alone. `slice_objects`: in one step; 0: SLICE.
    """

    def __init__(self, engine: Engine, parts: Parts, slice_objects: int = 0) -> None:
        self._engine = engine
        self._slice = slice_objects or SLICE
        self._parts = parts
        self._news: deque[tuple[bytes, Iterator[bytes]]] = deque()
        self._objects = self._all_objects()
        self._left = len(parts.written) + len(parts.checked)
        self._found: dict[tuple[bytes, bool], Conflict] = {}

    @property
    def done(self) -> bool:
        return not self._news and (not self._left or len(self._found) >= MOST_CONFLICTS)

    @property
    def conflicts(self) -> list[Conflict]:
        """All, or MOST_CONFLICTS of them. To be read when `done`."""
        return list(self._found.values())

    def changed(self, tid: bytes, oids: Iterable[bytes]) -> None:
        """A transaction was applied."""
        self._news.append((tid, iter(oids)))

    def step(self) -> bool:
        """Looks at some objects; returns `done`."""
        left = self._slice
        while self._news and left > 0:
            tid, oids = self._news[0]
            looked = 0
            for oid in islice(oids, left):
                looked += 1
                self._changed_to(oid, tid)
            if looked < left:
                self._news.popleft()
            left -= looked
        while left > 0 and not self.done:
            some = list(islice(self._objects, left))
            self._left -= len(some)
            left -= len(some)
            for oid, expected, reading in some:
                self._compare(oid, self._engine.current_serial(oid) or Z64, expected, reading)
        return self.done

    def _all_objects(self) -> Iterator[tuple[bytes, bytes, bool]]:
        for oid, expected in self._parts.written.items():
            yield oid, expected, False
        for oid, expected in self._parts.checked.items():
            yield oid, expected, True

    def _changed_to(self, oid: bytes, serial: bytes) -> None:
        for expected, reading in ((self._parts.written.get(oid), False), (self._parts.checked.get(oid), True)):
            if expected is not None:
                self._compare(oid, serial, expected, reading)

    def _compare(self, oid: bytes, serial: bytes, expected: bytes, reading: bool) -> None:
        if serial != expected:
            self._found[oid, reading] = Conflict(oid, serial, expected, reading)
        else:
            self._found.pop((oid, reading), None)
