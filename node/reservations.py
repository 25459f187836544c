"""Which objects votes and proposed commits hold, and who waits for them in which order. Pure.

A writer holds an object alone, checks share it. A wide transaction is not entered object by object: it is held as
a whole, one at a time, so that taking and releasing a million objects costs no more than one.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

from raftstorage.node.works import Work

#: Stands for all objects: each wide transaction writes it. No oid.
ALL = b"all"


class Reservations:
    """By oid: `writers` the transaction id that holds it, `readers` those that check it, `blocked` who waits."""

    def __init__(self) -> None:
        self.writers: dict[bytes, bytes] = {}
        self.readers: dict[bytes, set[bytes]] = {}
        self.blocked: dict[bytes, deque[Work]] = {}
        self.wide: Work | None = None

    def clear(self) -> None:
        self.writers.clear()
        self.readers.clear()
        self.blocked.clear()
        self.wide = None

    def taken(self, work: Work) -> bytes | None:
        """An oid that it has to wait for. Whoever waits already comes first, or readers could starve a writer."""
        if work.wide:
            return self._taken_of_wide(work)
        wide = self.wide
        for oid in work.written:
            if oid in self.writers or oid in self.readers or oid in self.blocked:
                return oid
            if wide is not None and wide.names(oid):
                return oid
        for oid in work.checked:
            if oid in self.writers or oid in self.blocked or (wide is not None and wide.writes(oid)):
                return oid
        return None

    def _taken_of_wide(self, work: Work) -> bytes | None:
        """By a look at all that is held or waited for: mostly less than what a wide one names."""
        if ALL in self.writers or ALL in self.blocked:
            return ALL
        for oid in chain(self.writers, self.blocked):
            if work.names(oid):
                return oid
        return next((oid for oid in self.readers if work.writes(oid)), None)

    def reserve(self, work: Work) -> None:
        if work.wide:
            self.wide = work
            self.writers[ALL] = work.identity
            return
        for oid in work.written:
            self.writers[oid] = work.identity
        for oid in work.checked:
            self.readers.setdefault(oid, set()).add(work.identity)

    def release(self, work: Work) -> list[bytes]:
        """Gives back what it holds; returns the oids that somebody may wait for."""
        if work.wide:
            if self.wide is not work:
                return []
            self.wide = None
            del self.writers[ALL]
            return [oid for oid in self.blocked if oid == ALL or work.names(oid)]
        freed = []
        for oid in work.written:
            if self.writers.get(oid) == work.identity:
                del self.writers[oid]
                freed.append(oid)
        for oid in work.checked:
            readers = self.readers.get(oid)
            if readers is not None:
                readers.discard(work.identity)
                if not readers:
                    del self.readers[oid]
                    freed.append(oid)
        return freed

    def wait(self, work: Work, oid: bytes) -> None:
        work.blocked_on = oid
        self.blocked.setdefault(oid, deque()).append(work)

    def leave(self, work: Work) -> None:
        """It waits no more."""
        line = self.blocked[work.blocked_on]
        line.remove(work)
        if not line:
            del self.blocked[work.blocked_on]
