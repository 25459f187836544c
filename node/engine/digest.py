"""One number for all that can be seen: equal on replicas that have applied the same, whatever they removed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from raftstorage.node.engine.layout import (
    MEMBERSHIP_KEY,
    STAGING_KEY,
    STATE_KEY,
    Stub,
    blob_key,
    chunk_keys,
    page_key,
    read_head,
    read_page,
    read_stub,
    read_upload,
)
from raftstorage.node.engine.leftovers import Leftovers
from raftstorage.node.engine.packing import PACK_KEY

Pair = tuple[str, bytes, bytes]


class Digesting(Leftovers):
    """Goes through the families in order, and leaves out what is seen no more, or was dropped."""

    def digest(self) -> bytes:
        """See `api.Engine.digest`."""
        total = hashlib.sha256()
        for family, key, value in self._visible():
            parts = (family.encode(), key, value)
            total.update(b"".join(len(part).to_bytes(4, "big") + part for part in parts))
        return total.digest()

    def _visible(self) -> Iterator[Pair]:
        for family, key in (("meta", STATE_KEY), ("meta", MEMBERSHIP_KEY), ("packing", PACK_KEY)):
            yield family, key, self._store.get(family, key) or b""
        for family in ("ids", "id_order"):
            for key, value in self._store.scan(family, b""):
                yield family, key, value
        yield from self._visible_records()
        yield from self._visible_transactions()
        yield from self._staged()
        yield from self._uploads()

    def _visible_records(self) -> Iterator[Pair]:
        packed = self._pack.tid
        held: tuple[bytes, bytes, Stub] | None = None  # the newest one so far that is not newer than the pack
        for key, sealed in self._store.scan("records", b""):
            if held is not None and (held[0][:8] != key[:8] or key[8:] > packed):
                yield from self._seen(*held)
                held = None
            stub = read_stub(key, sealed)
            if stub.fragment in self._dropped or key[8:] > self._last_tid:
                continue
            if key[8:] <= packed:
                held = key, sealed, stub
            else:
                yield from self._record_pairs(key, sealed, stub)
        if held is not None:
            yield from self._seen(*held)

    def _seen(self, key: bytes, sealed: bytes, stub: Stub) -> Iterator[Pair]:
        if not stub.no_data:
            yield from self._record_pairs(key, sealed, stub)

    def _record_pairs(self, key: bytes, sealed: bytes, stub: Stub) -> Iterator[Pair]:
        yield "records", key, sealed
        for each in chunk_keys(key, stub):
            yield "data", each, self._needed("data", each)
        if stub.blob is not None:
            yield from self._blob_pairs(stub.blob.number, stub.blob.size)

    def _blob_pairs(self, number: int, size: int) -> Iterator[Pair]:
        for chunk in range(-(-size // self.blob_chunk_bytes)):
            yield "blobs", blob_key(number, chunk), self._chunk(number, chunk)

    def _uploads(self) -> Iterator[Pair]:
        """What no transaction has; what dropped fragments had claimed is one of them. Other claimed bytes are of a
        record, which a pack may have removed."""
        for key, sealed in self._store.scan("uploads", b"i"):
            if not key.startswith(b"i"):
                break
            upload = read_upload(key, sealed)
            if upload.claim in self._dropped:
                upload = upload._replace(claim=0)
            yield "uploads", key, upload.sealed()
            if not upload.claim:
                yield from self._blob_pairs(upload.number, upload.size)

    def _visible_transactions(self) -> Iterator[Pair]:
        for tid, sealed in self._store.scan("transactions", b""):
            head = read_head(tid, sealed)
            oids = [oid for _, oid in self._oids(head, 0) if tid > self._pack.tid or self._stub(oid + tid)]
            if oids or tid > self._pack.tid:
                info = self._info(head).SerializeToString(deterministic=True)
                yield "transactions", tid, info + b"".join(oids)

    def _staged(self) -> Iterator[Pair]:
        staging = self._staging
        if staging is None:
            return
        yield "meta", STAGING_KEY, staging.encode()
        for page in range(staging.pages):
            at = page_key(staging.first, page)
            for oid in read_page(at, self._needed("pages", at)):
                key = oid + staging.tid
                sealed = self._needed("records", key)
                yield from self._record_pairs(key, sealed, read_stub(key, sealed))
