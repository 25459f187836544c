"""Reading the state: revisions, histories, transactions. Every call does a bounded amount of work.

What a pack made invisible may be on disk still. Of the revisions of an object that are not newer than the pack,
only the newest is seen, and it only if it has data. Removing others, older ones first, never makes one visible.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from raftstorage.node.engine.api import Z64, Changed, EngineError, Pack, Packed, Position, Revision
from raftstorage.node.engine.kv import KeyValueStore
from raftstorage.node.engine.layout import (
    Head,
    Stub,
    chunk_keys,
    page_key,
    read_head,
    read_page,
    read_stub,
    read_whole,
    unseal,
)
from raftstorage.proto import storage_pb2 as pb

#: After so many revisions, or bytes read for them, a call of `history` stops.
HISTORY_ITEMS = 500
HISTORY_BYTES = 1 << 20
#: After so many bytes of transactions without data a call of `changed_since` stops.
CHANGED_BYTES = 1 << 20
#: After so many transactions and records a call of `transactions` stops.
PAGE_ITEMS = 1000
#: The highest tid, or oid.
LAST = b"\xff" * 8
_PAGE_SHIFT = 32


class Dropped(NamedTuple):
    """Records of fragments that are yet to be removed: under `tid`, named by the first `pages` pages."""

    tid: bytes
    pages: int


class PagedOids:
    """An `api.Oids`. A committed transaction's pages stay, until none of its records is there any more."""

    def __init__(self, state: Reading, head: Head) -> None:
        self._state = state
        self._head = head
        self.last = tuple(record.oid for record in head.info.records)

    def __len__(self) -> int:
        return self._head.paged + len(self.last)

    def __iter__(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(self.pages())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | PagedOids) and tuple(self) == tuple(other)

    @property
    def page_count(self) -> int:
        """See `api.Oids`."""
        return self._head.pages + bool(self.last)

    def pages(self, first: int = 0) -> Iterator[tuple[bytes, ...]]:
        """See `api.Oids`."""
        for page in range(first, self._head.pages):
            try:
                yield self._state._page(self._head, page)
            except EngineError:
                if self._head.info.tid > self._state.packed:
                    raise
                return  # all of it was packed away meanwhile: what came after it says more
        if self.last:
            yield self.last


class Reading:
    """Answers from `_store` what was committed: all up to `_last_tid`, but for fragments that were dropped."""

    _store: KeyValueStore
    _last_tid: bytes
    _pack: Pack
    _dropped: dict[int, Dropped]  # by the index of the first fragment

    def _needed(self, family: str, key: bytes) -> bytes:
        sealed = self._store.get(family, key)
        if sealed is None:
            raise EngineError(f"{family} {key.hex()} is missing")
        return sealed

    @property
    def packed(self) -> bytes:
        """See `api.Engine.packed`."""
        return self._pack.tid

    # ---- records -------------------------------------------------------------------------------------

    def _is_dead(self, key: bytes, sealed: bytes | None = None) -> bool:
        """Whether the record was dropped with its fragments. To be asked only while there are such."""
        return read_stub(key, sealed or self._needed("records", key)).fragment in self._dropped

    def _newest(self, oid: bytes, bound: bytes) -> bytes | None:
        """Key of the newest revision at or below the tid `bound`, seen or not."""
        found = self._store.at_or_before("records", oid + bound)
        while self._dropped and found is not None and found[:8] == oid and self._is_dead(found):
            found = self._store.at_or_before("records", oid + before_tid(found[8:]))
        return found if found is not None and found[:8] == oid else None

    def _is_seen(self, key: bytes) -> bool:
        """Of a record that is there; not to be asked for one of fragments."""
        if key[8:] > self._pack.tid:
            return True
        return self._newest(key[:8], self._pack.tid) == key and not self._has_no_data(key)

    def _has_no_data(self, key: bytes) -> bool:
        return read_stub(key, self._needed("records", key)).no_data

    def _pieces(self, key: bytes, stub: Stub) -> Iterator[bytes]:
        if stub.inline is not None:
            yield stub.inline
        for each in chunk_keys(key, stub):
            yield unseal("data", each, self._needed("data", each))

    def _data(self, key: bytes, stub: Stub) -> bytes | None:
        if stub.no_data:
            return None
        return stub.inline if stub.inline is not None else b"".join(self._pieces(key, stub))

    def load_before(self, oid: bytes, tid: bytes, most: int | None = None) -> Revision | None:
        """See `api.Engine.load_before`."""
        if len(oid) != 8 or len(tid) != 8:  # other lengths would split into another oid and tid
            raise KeyError(oid)
        bound = min(before_tid(tid), self._last_tid)
        found, following = self._store.around("records", oid + bound, 8)
        if self._dropped:
            while found is not None and self._is_dead(*found):
                found = self._store.around("records", oid + before_tid(found[0][8:]), 8)[0]
            while following is not None and self._is_dead(following):
                following = self._store.around("records", following, 8)[1]
        younger = following is not None and following[8:] <= self._last_tid
        after = following[8:] if younger and following is not None else None
        packed = self._pack.tid
        if found is not None:
            key, sealed = found
            data = read_whole(key, sealed)
            if data is None:
                stub = read_stub(key, sealed)
                if most is not None and stub.size > most:
                    return None
                data = self._data(key, stub)
            if key[8:] > packed or (data is not None and (after is None or after > packed)):
                return Revision(data, key[8:], after)
        if tid <= packed:
            raise Packed(packed)
        if after is not None:
            return None
        raise KeyError(oid)

    def load_serial(self, oid: bytes, serial: bytes) -> bytes:
        """See `api.Engine.load_serial`."""
        return b"".join(self.pieces(oid, serial))

    def pieces(self, oid: bytes, serial: bytes) -> Iterator[bytes]:
        """See `api.Engine.pieces`."""
        stub = self._stub(oid + serial) if len(oid) == len(serial) == 8 else None
        if stub is None or stub.no_data:
            raise KeyError((oid, serial))
        return self._pieces(oid + serial, stub)

    def _stub(self, key: bytes) -> Stub | None:
        """None: nobody sees one there."""
        if key[8:] > self._last_tid:
            return None
        sealed = self._store.get("records", key)
        stub = None if sealed is None else read_stub(key, sealed)
        if stub is None or stub.fragment in self._dropped:
            return None
        if key[8:] <= self._pack.tid and (stub.no_data or self._newest(key[:8], self._pack.tid) != key):
            return None
        return stub

    def current_serial(self, oid: bytes) -> bytes | None:
        """See `api.Engine.current_serial`."""
        found = self._newest(oid, self._last_tid)
        if found is None or (found[8:] <= self._pack.tid and self._has_no_data(found)):
            return None
        return found[8:]

    def history(self, oid: bytes, size: int, before: bytes = LAST) -> tuple[list[pb.Revision], bool]:
        """See `api.Engine.history`."""
        revisions: list[pb.Revision] = []
        cost = 0
        for key, sealed in self._store.scan_back("records", oid + min(before_tid(before), self._last_tid)):
            if key[:8] != oid:
                break
            stub = read_stub(key, sealed)
            if stub.fragment in self._dropped:
                continue
            if not self._is_seen(key):
                break
            if len(revisions) >= min(size, HISTORY_ITEMS) or cost > HISTORY_BYTES:
                return revisions, True
            head = self._needed("transactions", key[8:])
            cost += len(sealed) + len(head)
            info = read_head(key[8:], head).info
            revisions.append(
                pb.Revision(
                    tid=info.tid,
                    user=info.user,
                    description=info.description,
                    extension=info.extension,
                    size=stub.size,
                    no_data=stub.no_data,
                )
            )
        if not revisions:
            raise KeyError(oid)
        return revisions, False

    # ---- transactions --------------------------------------------------------------------------------

    def transaction_tid(self, transaction_id: bytes) -> bytes | None:
        """See `api.Engine.transaction_tid`."""
        sealed = self._store.get("ids", transaction_id)
        return None if sealed is None else unseal("ids", transaction_id, sealed)[:8]

    def _page(self, head: Head, page: int) -> tuple[bytes, ...]:
        key = page_key(head.fragment, page)
        return read_page(key, self._needed("pages", key))

    def _changed(self, head: Head) -> PagedOids:
        return PagedOids(self, head)

    def transactions(
        self, start: bytes, stop: bytes | None, max_bytes: int, skip: int = 0
    ) -> tuple[list[pb.CommittedTransaction], Position | None]:
        """See `api.Engine.transactions`."""
        page: list[pb.CommittedTransaction] = []
        size = items = 0
        for tid, sealed in self._store.scan("transactions", start):
            if stop is not None and tid > stop:
                break
            if (page and size + len(sealed) > max_bytes) or items >= PAGE_ITEMS:
                return page, Position(tid)
            size += len(sealed)
            items += 1
            head = read_head(tid, sealed)
            info = self._info(head)
            begun = items
            answered = skip > 0 and tid == start
            for at, record in self._records(head, abs(skip) if tid == start else 0):
                if (size > max_bytes or items > PAGE_ITEMS) and (page or items > begun):
                    if page:
                        return page, Position(tid)
                    return ([info], Position(tid, at)) if info.records or answered else ([], Position(tid, -at))
                items += 1 if tid > self._pack.tid else 2  # it was looked for what came after it
                if record is not None:
                    info.records.append(record)
                    size += 30 + len(record.data)
            if page and size > max_bytes:
                return page, Position(tid)
            if info.records or answered or tid > self._pack.tid:
                page.append(info)
            else:
                size -= len(sealed)
        return page, None

    def _info(self, head: Head) -> pb.CommittedTransaction:
        """Without records."""
        info = pb.CommittedTransaction()
        info.CopyFrom(head.info)
        info.ClearField("records")
        if info.tid <= self._pack.tid:
            info.status = b"p"
        return info

    def _records(self, head: Head, skip: int) -> Iterator[tuple[int, pb.StoredRecord | None]]:
        """Records with data from a position on, None for one that a pack took, and the position of each."""
        for at, oid in self._oids(head, skip):
            yield at, self._record(oid, head.info.tid)

    def _oids(self, head: Head, skip: int) -> Iterator[tuple[int, bytes]]:
        """Oids from a position on, and the position of each: page and number in it."""
        first, number = skip >> _PAGE_SHIFT, skip & ((1 << _PAGE_SHIFT) - 1)
        for page in range(first, head.pages + 1):
            oids = self._page(head, page) if page < head.pages else [each.oid for each in head.info.records]
            for position in range(number, len(oids)):
                yield page << _PAGE_SHIFT | position, oids[position]
            number = 0

    def _record(self, oid: bytes, tid: bytes) -> pb.StoredRecord | None:
        key = oid + tid
        stub = self._stub(key)
        if stub is None:
            if tid <= self._pack.tid:
                return None
            raise EngineError(f"record {oid.hex()} of transaction {tid.hex()} is missing")
        data_tid = stub.data_tid
        if data_tid == Z64 or (data_tid <= self._pack.tid and self._stub(oid + data_tid) is None):
            data_tid = b""  # what it repeats was packed away
        blob = None if stub.blob is None else pb.Blob(size=stub.blob.size, crc32c=stub.blob.crc32c)
        return pb.StoredRecord(
            oid=oid, data=self._data(key, stub) or b"", no_data=stub.no_data, data_tid=data_tid, blob=blob
        )

    def changed_since(self, tid: bytes, limit: int) -> list[Changed]:
        """See `api.Engine.changed_since`."""
        found: list[Changed] = []
        cost = 0
        if tid == LAST:
            return found
        above = (int.from_bytes(tid, "big") + 1).to_bytes(8, "big")
        for key, sealed in itertools.islice(self._store.scan("transactions", above), limit):
            cost += len(sealed)
            if found and cost > CHANGED_BYTES:
                break
            head = read_head(key, sealed)
            oids = self._changed(head)
            found.append((key, oids if head.pages else oids.last))
        return found


def before_tid(tid: bytes) -> bytes:
    """The tid below, or no tid."""
    return max(0, int.from_bytes(tid, "big") - 1).to_bytes(8, "big")
