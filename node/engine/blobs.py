"""Blobs: uploads in chunks, ahead of the transaction that takes them, and the blobs of records.

An upload's bytes stay where its chunks were put; a commit only notes under its record where that is. What a
transaction has taken is an upload no more: its id may be used anew, and cannot be taken twice. Fragments take
uploads before it is known whether their transaction will be committed: they claim them. The claim of those that
were dropped counts for nothing, and is taken away with their records. All this is decided by the log alone; when a
node removes the chunks of a record that nobody can see any more is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import google_crc32c
from raftstorage.node.engine.api import Applied, EngineError
from raftstorage.node.engine.checking import Refused
from raftstorage.node.engine.kv import Change, Until
from raftstorage.node.engine.layout import (
    StoredBlob,
    Stub,
    Upload,
    blob_key,
    cut,
    idle_key,
    read_idle_key,
    read_upload,
    seal,
    unseal,
    upload_key,
)
from raftstorage.node.engine.reading import Reading
from raftstorage.proto import BLOB_CHUNK_BYTES
from raftstorage.proto import storage_pb2 as pb

#: Uploads that one ExpireUploadsCommand removes, the longest idle ones.
EXPIRED_AT_ONCE = 100


class NoUpload(Refused):
    """The blob of a record is not there, or not whole."""

    def __init__(self, oid: bytes) -> None:
        super().__init__(f"the blob of object {oid.hex()} was not uploaded, or not whole")
        self.oid = oid


class Blobs(Reading):
    """What `Commits` needs for records with blobs, and the commands for uploads."""

    #: Of every chunk but an upload's last; a simulator has smaller ones.
    blob_chunk_bytes = BLOB_CHUNK_BYTES

    #: How many records name a blob, with the changes that are collected and not yet written; see `_references`.
    _counts: dict[int, int]

    # ---- uploads -------------------------------------------------------------------------------------

    def _upload(self, upload_id: bytes) -> Upload | None:
        """One that no transaction has taken."""
        key = upload_key(upload_id)
        sealed = self._store.get("uploads", key)
        if sealed is None:
            return None
        upload = read_upload(key, sealed)
        if upload.claim and upload.claim not in self._dropped:
            return None
        return upload._replace(claim=0)

    def upload_size(self, upload_id: bytes) -> int | None:
        """See `api.Engine.upload_size`."""
        upload = self._upload(upload_id)
        return None if upload is None else upload.size

    def stale_uploads(self, stamp: int) -> bool:
        """See `api.Engine.stale_uploads`."""
        for key, _sealed in self._store.scan("uploads", b"t"):
            return read_idle_key(key)[0] < stamp
        return False

    def _blob(self, index: int, command: pb.BlobCommand, changes: list[Change]) -> Applied:
        """A chunk. One that is there already, or in part, only shows that somebody goes on with the upload."""
        upload_id, data = command.upload_id, command.data
        if len(upload_id) != 16 or not 0 < len(data) <= BLOB_CHUNK_BYTES:
            return Applied(index, refused="malformed chunk")
        upload = self._upload(upload_id) or Upload(index, 0, 0, 0)
        if command.offset > upload.size:
            return Applied(index, refused="a chunk behind a gap", uploaded=upload.size)
        data = data[upload.size - command.offset :]
        if command.offset + len(command.data) < upload.size:
            data = b""
        after = Upload(
            upload.number,
            upload.size + len(data),
            int(google_crc32c.extend(upload.crc32c, data)),
            command.stamp,
        )
        self._append(upload, data, changes)
        self._forget_upload(upload_id, changes)
        changes.append(("uploads", upload_key(upload_id), after.sealed()))
        changes.append(("uploads", idle_key(after), seal(upload_id)))
        return Applied(index, uploaded=after.size)

    def _append(self, upload: Upload, data: bytes, changes: list[Change]) -> None:
        """Fills the last chunk up, and goes on with new ones."""
        chunk, begun = divmod(upload.size, self.blob_chunk_bytes)
        if data and begun:
            data = self._chunk(upload.number, chunk) + data
        for number, each in enumerate(cut(data, self.blob_chunk_bytes), chunk):
            changes.append(("blobs", blob_key(upload.number, number), seal(each)))

    def _forget_upload(self, upload_id: bytes, changes: list[Change]) -> None:
        """That there is one with this id, or was; its chunks stay."""
        key = upload_key(upload_id)
        sealed = self._store.get("uploads", key)
        if sealed is not None:
            changes.append(("uploads", idle_key(read_upload(key, sealed)), None))
            changes.append(("uploads", key, None))

    def _expire(self, index: int, command: pb.ExpireUploadsCommand, changes: list[Change]) -> Applied:
        for count, (key, sealed) in enumerate(self._store.scan("uploads", b"t")):
            if read_idle_key(key)[0] >= command.stamp or count == EXPIRED_AT_ONCE:
                break
            upload_id = unseal("uploads", key, sealed)
            upload = self._upload(upload_id)
            if upload is not None:
                changes.append(_removal(upload.number))
            self._forget_upload(upload_id, changes)
        return Applied(index)

    # ---- taking them ---------------------------------------------------------------------------------

    def missing_upload(self, records: Iterable[pb.NewRecord]) -> bytes | None:
        """See `api.Engine.missing_upload`."""
        try:
            self._blobs_of(records)
        except NoUpload as missing:
            return missing.oid
        return None

    def _blobs_of(self, records: Iterable[pb.NewRecord]) -> dict[bytes, StoredBlob]:
        """Blobs that records bring, by oid. Refused, NoUpload: one is not there. Changes nothing."""
        found: dict[bytes, StoredBlob] = {}
        taken: set[bytes] = set()
        for record in records:
            if not record.HasField("blob"):
                continue
            blob = record.blob
            if blob.same_as:
                found[record.oid] = self._same(record.oid, blob.same_as)
                continue
            if blob.size == 0 and blob.crc32c == 0:
                found[record.oid] = StoredBlob(blob.upload_id, 0, 0, 0)
                continue
            upload = self._upload(blob.upload_id)
            if upload is None or (upload.size, upload.crc32c) != (blob.size, blob.crc32c):
                raise NoUpload(record.oid)
            if blob.upload_id in taken:
                raise NoUpload(record.oid)
            taken.add(blob.upload_id)
            found[record.oid] = StoredBlob(blob.upload_id, upload.number, upload.size, upload.crc32c)
        return found

    def _same(self, oid: bytes, serial: bytes) -> StoredBlob:
        blob = self._blob_at(oid, serial)
        if blob is None:
            raise NoUpload(oid)
        return blob._replace(copied=True)

    def _blob_at(self, oid: bytes, serial: bytes) -> StoredBlob | None:
        stub = self._stub(oid + serial) if len(oid) == len(serial) == 8 else None
        return None if stub is None else stub.blob

    def _take(self, blob: StoredBlob, fragment: int, changes: list[Change]) -> None:
        """A record has it now: in a fragment for the time being, without one (0) for good."""
        if not blob.number:
            return
        if blob.copied:
            self._references(blob.number, +1, changes)
            return
        if not fragment:
            self._forget_upload(blob.upload_id, changes)
            return
        upload = self._upload(blob.upload_id)
        if upload is None:
            raise AssertionError("an upload vanished while it was being taken")
        changes.append(("uploads", upload_key(blob.upload_id), upload._replace(claim=fragment).sealed()))

    # ---- removal -------------------------------------------------------------------------------------

    def _references(self, number: int, difference: int, changes: list[Change]) -> bool:
        """Counts the records that name a blob. With none its bytes go: False.

        The count is kept when it is not 1, and in `_counts` until `changes` are written: there may be several for
        one blob among them.
        """
        key = blob_key(number)
        count = self._counts.get(number)
        if count is None:
            sealed = self._store.get("blobs", key)
            count = 1 if sealed is None else int.from_bytes(unseal("blobs", key, sealed), "big")
        count += difference
        self._counts[number] = count
        if count <= 0:
            changes.append(_removal(number))
        else:
            changes.append(("blobs", key, seal(count.to_bytes(4, "big")) if count > 1 else None))
        return count > 0

    def _forget_blob(self, stub: Stub, changes: list[Change]) -> int:
        """A record that nobody can see is removed: its blob goes, if no other record names it. Bytes that go."""
        blob = stub.blob
        if blob is None or not blob.number or self._references(blob.number, -1, changes):
            return 0
        return blob.size

    def _give_back(self, stub: Stub, changes: list[Change]) -> None:
        """A record of fragments that were dropped is removed: what it had claimed is an upload as before."""
        blob = stub.blob
        if blob is None or not blob.number:
            return
        if blob.copied:
            self._references(blob.number, -1, changes)
            return
        key = upload_key(blob.upload_id)
        sealed = self._store.get("uploads", key)
        if sealed is not None:
            upload = read_upload(key, sealed)
            if upload.number == blob.number and upload.claim == stub.fragment:
                changes.append(("uploads", key, upload._replace(claim=0).sealed()))

    # ---- reading -------------------------------------------------------------------------------------

    def load_blob(self, oid: bytes, serial: bytes, offset: int, max_bytes: int) -> tuple[bytes, int, int]:
        """See `api.Engine.load_blob`."""
        blob = self._blob_at(oid, serial)
        if blob is None:
            raise KeyError((oid, serial))
        stop = min(offset + max_bytes, blob.size)
        return b"".join(self._bytes(blob.number, offset, stop)), blob.size, blob.crc32c

    def _bytes(self, number: int, start: int, stop: int) -> Iterator[bytes]:
        """Bytes from `start` up to `stop`, in pieces."""
        size = self.blob_chunk_bytes
        while start < stop:
            chunk, at = divmod(start, size)
            piece = self._chunk(number, chunk)[at : at + stop - start]
            if not piece:
                raise EngineError(f"blobs {blob_key(number, chunk).hex()} is shorter than it must be")
            yield piece
            start += len(piece)

    def _chunk(self, number: int, chunk: int) -> bytes:
        key = blob_key(number, chunk)
        return unseal("blobs", key, self._needed("blobs", key))


def _removal(number: int) -> Change:
    return "blobs", blob_key(number), Until(blob_key(number + 1))
