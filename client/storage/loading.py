"""Loading objects: from what this client knows, else from a replica."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from raftstorage.proto import storage_pb2 as pb
from ZODB import POSException

from ..cache import RecordCache
from ..cluster import Call, Cluster
from ..cluster.errors import RequestRefused
from .errors import as_zodb
from .reading import MANY, after

log = logging.getLogger(__name__)

Z64 = b"\0" * 8


class Loading:
    """For a storage with `cluster` and the methods of a ClientStorage. `cache` is told of every change in tid
    order, before lastTransaction() moves to it."""

    cluster: Cluster
    cache: RecordCache
    _packed_away: Callable[[bytes], None]

    def loadBefore(self, oid: bytes, tid: bytes) -> tuple[bytes, bytes, bytes | None] | None:  # noqa: N802
        """(data, serial, next serial or None); None when the object is younger, or what it was then was packed
        away: then a connection raises ReadConflictError. POSKeyError; PackedAway when the object is gone, too.

        Nothing newer than lastTransaction() is returned, whatever `tid`: what is not invalidated yet is not there.
        """
        before, clamped = self._until(tid)
        cached = self.cache.load_before(oid, before)
        if cached is not None:
            return cached if not clamped else (cached.data, cached.serial, None)
        # Whether there is such an object at all, says only who has applied what this client has seen.
        at_least = self.cluster.feed.last if before == Z64 else _as_of(before)
        call = Call("load_before", pb.LoadBefore(oid=oid, before=before, at_least=at_least))
        try:
            with as_zodb(oid, but={pb.PACKED}):
                record = self.cluster.read(call, at_least).record
        except RequestRefused:
            self._packed_away(oid)
            return None
        if not record.serial:
            return None
        later = record.next_serial or None
        self.cache.store(oid, record.data, record.serial, later, at_least)
        if clamped:
            later = None  # it is the current one at this snapshot
        return record.data, record.serial, later

    def _until(self, tid: bytes) -> tuple[bytes, bool]:
        """The tid to read below, and whether that is less than `tid`."""
        last = self.cluster.feed.last
        if tid > after(last):
            last = self.cluster.feed.last_transaction()
            if tid > after(last):
                return after(last), True
        return tid, False

    def load(self, oid: bytes, version: str = "") -> tuple[bytes, bytes]:
        """(data, serial) of the current revision. POSKeyError."""
        found = self.loadBefore(oid, b"\x7f" + b"\xff" * 7)
        if found is None:
            raise POSException.POSKeyError(oid)
        return found[:2]

    def getTid(self, oid: bytes) -> bytes:  # noqa: N802
        return self.load(oid)[1]

    def loadSerial(self, oid: bytes, serial: bytes) -> bytes:  # noqa: N802
        cached = self.cache.load_serial(oid, serial)
        if cached is not None:
            return cached
        at_least = min(serial, self.cluster.feed.last)
        with as_zodb(oid):
            call = Call("load_serial", pb.LoadSerial(oid=oid, serial=serial, at_least=at_least))
            return self.cluster.read(call, at_least).record.data

    def prefetch(self, oids: Iterable[bytes], tid: bytes) -> None:
        """Has the newest revisions below `tid` brought into the cache, and does not wait for them; see
        IPrefetchStorage. What cannot be brought is loaded when it is wanted, and only then an error."""
        before, _ = self._until(tid)
        wanted = (oid for oid in oids if not self.cache.has(oid, before))
        while some := list(islice(wanted, MANY)):
            self._bring(some, before)

    def _bring(self, oids: list[bytes], before: bytes) -> None:
        as_of = _as_of(before)

        def arrived(event: pb.Event) -> None:
            for one in event.records.records:
                record = one.record
                if record.serial:
                    self.cache.store(one.oid, record.data, record.serial, record.next_serial or None, as_of)

        call = Call("load_many", pb.LoadMany(oids=oids, before=before, at_least=as_of))
        self.cluster.read_soon(call, as_of, arrived)

    def _committed(self, tid: bytes, records: Iterable[Any]) -> None:
        """`records` (of `bodies`) are what this client has just committed."""
        for record in records:
            if not record.no_data:
                self.cache.store(record.oid, record.data, tid, None, tid)


def _as_of(before: bytes) -> bytes:
    """What a replica must have applied to say what was below `before`."""
    return before if before == Z64 else (int.from_bytes(before) - 1).to_bytes(8)
