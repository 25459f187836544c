"""Reading much of the state a page at a time. Every call does a bounded amount of work."""

from __future__ import annotations

from collections.abc import Iterator

from raftstorage.node.engine.api import Packed
from raftstorage.node.engine.layout import read_head, read_stub
from raftstorage.node.engine.reading import LAST, Reading, before_tid
from raftstorage.proto import storage_pb2 as pb

#: After so many objects, or records of transactions, a call stops: some milliseconds.
LIST_ITEMS = 300


class Listing(Reading):
    """Answers of many objects or transactions."""

    # ---- objects -------------------------------------------------------------------------------------

    def _oid_from(self, start: bytes) -> bytes:
        """The first oid >= `start` that has a record, seen or not; b"": there is none."""
        return self._oid_behind(start.ljust(8, b"\0") + bytes(8))

    def _oid_behind(self, key: bytes) -> bytes:
        _found, following = self._store.around("records", key)
        return b"" if following is None else following[:8]

    def current_page(self, start: bytes, before: bytes, max_bytes: int) -> tuple[list[pb.FoundRecord], bytes]:
        """See `api.Engine.current_page`."""
        if before and before <= self._pack.tid:
            raise Packed(self._pack.tid)
        page: list[pb.FoundRecord] = []
        size = looked = 0
        oid = self._oid_from(start)
        while oid and looked < LIST_ITEMS:
            looked += 1
            try:
                revision = self.load_before(oid, before or LAST)
            except KeyError:
                revision = None
            if revision is not None and revision.data is not None:
                size += len(revision.data) + 60
                if page and size > max_bytes:
                    break
                record = pb.Record(data=revision.data, serial=revision.serial)
                record.next_serial = revision.next_serial or b""
                page.append(pb.FoundRecord(oid=oid, record=record))
            oid = self._oid_behind(oid + LAST)
        return page, oid

    def unchanged(self, start: bytes, budget: int) -> tuple[list[bytes], bytes]:
        """See `api.Engine.unchanged`."""
        oids: list[bytes] = []
        oid = self._oid_from(start)
        for _ in range(budget):
            if not oid:
                break
            newest = self._newest(oid, self._last_tid)
            if newest is not None and newest[8:] <= self._pack.tid and not self._has_no_data(newest):
                oids.append(oid)
            oid = self._oid_behind(oid + LAST)
        return oids, oid

    def pieces_at_pack(self, oid: bytes) -> Iterator[bytes] | None:
        """See `api.Engine.pieces_at_pack`."""
        key = self._newest(oid, self._pack.tid) if self._pack.tid else None
        stub = None if key is None else read_stub(key, self._needed("records", key))
        return None if key is None or stub is None or stub.no_data else self._pieces(key, stub)

    # ---- transactions --------------------------------------------------------------------------------

    def transaction_log(self, before: bytes, count: int) -> tuple[list[pb.CommittedTransaction], bytes]:
        """See `api.Engine.transaction_log`. It goes on at a tid, or at one and a position among its records."""
        found: list[pb.CommittedTransaction] = []
        looked = 0
        start = before[:8] if len(before) > 8 else before_tid(before) if before else LAST
        previous = b""
        for tid, sealed in self._store.scan_back("transactions", start):
            if len(found) == count or looked >= LIST_ITEMS:
                return found, previous
            looked += 1
            previous = tid
            head = read_head(tid, sealed)
            if tid <= self._pack.tid:
                skip = int.from_bytes(before[8:], "big") if tid == before[:8] and len(before) > 8 else 0
                for at, oid in self._oids(head, skip):
                    if looked >= LIST_ITEMS and at != skip:
                        return found, tid + at.to_bytes(8, "big")
                    looked += 1
                    if self._stub(oid + tid) is not None:
                        break
                else:
                    continue
            found.append(self._info(head))
        return found, b""
