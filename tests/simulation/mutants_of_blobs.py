"""Classic mistakes with uploads and blobs; see `mutants`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from unittest import mock

from raftstorage.node.engine.api import Applied
from raftstorage.node.engine.blobs import Blobs, NoUpload
from raftstorage.node.engine.kv import Change
from raftstorage.node.engine.layout import StoredBlob
from raftstorage.node.uploads import Uploads, _blob_stored, _Chunk
from raftstorage.proto import storage_pb2 as pb

from tests.unit.raft.change_mutants import together


def takes_blobs_that_are_not_whole() -> AbstractContextManager[object]:
    """A commit gets what is there of its upload."""
    original = Blobs._blobs_of

    def blobs_of(self: Blobs, records: Iterable[pb.NewRecord]) -> dict[bytes, StoredBlob]:
        try:
            return original(self, records)
        except NoUpload as missing:
            record = next(record for record in records if record.oid == missing.oid)
            upload = self._upload(record.blob.upload_id)
            if upload is None:
                raise
            record.blob.size, record.blob.crc32c = upload.size, upload.crc32c
            return blobs_of(self, records)

    return mock.patch.object(Blobs, "_blobs_of", blobs_of)


def ends_uploads_that_were_taken() -> AbstractContextManager[object]:
    """Those of committed blobs stay in the line of the idle ones."""

    def take(self: Blobs, blob: StoredBlob, fragment: int, changes: list[Change]) -> None:
        if blob.copied:
            self._references(blob.number, +1, changes)

    return mock.patch.object(Blobs, "_take", take)


def appends_what_is_there_already() -> AbstractContextManager[object]:
    """A chunk that is sent again counts again, and a leader passes on whatever comes."""
    original, send = Blobs._blob, Uploads._send

    def blob(self: Blobs, index: int, command: pb.BlobCommand, changes: list[Change]) -> Applied:
        command.offset = max(command.offset, self.upload_size(command.upload_id) or 0)
        return original(self, index, command, changes)

    def send_all(self: Uploads, chunk: _Chunk) -> bool:
        if chunk.upload_id in self._tails:
            self._tails[chunk.upload_id].end = chunk.offset
        with mock.patch.object(type(self._engine), "upload_size", lambda *_: chunk.offset):
            return send(self, chunk)

    return together(mock.patch.object(Blobs, "_blob", blob), mock.patch.object(Uploads, "_send", send_all))


def says_that_it_has_what_it_has_only_proposed() -> AbstractContextManager[object]:
    original = Uploads._send

    def send(self: Uploads, chunk: _Chunk) -> bool:
        sent = original(self, chunk)
        if sent:
            chunk.reply(_blob_stored(chunk.upload_id, chunk.offset + chunk.size))
        return sent

    return mock.patch.object(Uploads, "_send", send)


BLOB_MUTANTS = [
    takes_blobs_that_are_not_whole,
    ends_uploads_that_were_taken,
    appends_what_is_there_already,
    says_that_it_has_what_it_has_only_proposed,
]
