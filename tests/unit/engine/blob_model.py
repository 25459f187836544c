"""What an engine must do about uploads and blobs, said with plain bytes; and commands about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import google_crc32c
from hypothesis import strategies as st
from raftstorage.node.engine.api import Applied
from raftstorage.node.engine.blobs import EXPIRED_AT_ONCE
from raftstorage.node.engine.state import StateMachine
from raftstorage.proto import BLOB_CHUNK_BYTES
from raftstorage.proto import storage_pb2 as pb

UPLOADS = [b"upload %09d" % number for number in range(4)]
#: Of the chunks in the tests' databases.
CHUNK = 4


def crc(data: bytes) -> int:
    return int(google_crc32c.value(data))


@dataclass
class Up:
    """An upload: its bytes, when the newest came, and when its first ones did (log index)."""

    data: bytes
    stamp: int
    number: int


class UploadsModel:
    """The part of `model.Model` that is about them."""

    index: int
    revisions: dict[bytes, list[Any]]

    def seen(self, oid: bytes) -> list[Any]:
        """Revisions that no pack took."""
        raise NotImplementedError

    def __init__(self) -> None:
        self.uploads: dict[bytes, Up] = {}

    def blob_at(self, oid: bytes, serial: bytes) -> bytes | None:
        found = [each.blob for each in self.seen(oid) if each.serial == serial]
        return found[0] if found else None

    def blob_of(self, record: pb.NewRecord) -> bytes | None:
        """What it would get; None: that is not there."""
        blob = record.blob
        if blob.same_as:
            return self.blob_at(record.oid, blob.same_as)
        if blob.size == blob.crc32c == 0:
            return b""
        up = self.uploads.get(blob.upload_id)
        return up.data if up is not None and (len(up.data), crc(up.data)) == (blob.size, blob.crc32c) else None

    def missing(self, transaction: pb.Transaction) -> bytes | None:
        taken: set[bytes] = set()
        for record in transaction.records:
            if not record.HasField("blob"):
                continue
            upload_id = record.blob.upload_id if self.blob_of(record) else b""
            if self.blob_of(record) is None or upload_id in taken:
                return record.oid
            taken |= {upload_id} - {b""}
        return None

    def take(self, record: pb.NewRecord) -> bytes | None:
        """The blob of a record that is committed."""
        if not record.HasField("blob"):
            return None
        found = self.blob_of(record)
        if found and not record.blob.same_as:
            del self.uploads[record.blob.upload_id]
        return found

    def chunk(self, command: pb.BlobCommand) -> tuple[str, Applied]:
        data = command.data
        if len(command.upload_id) != 16 or not 0 < len(data) <= BLOB_CHUNK_BYTES:
            return "bad chunk", Applied(self.index, refused="?")
        up = self.uploads.get(command.upload_id, Up(b"", 0, self.index))
        if command.offset > len(up.data):
            return "gap", Applied(self.index, refused="?", uploaded=len(up.data))
        up.data += data[len(up.data) - command.offset :]
        up.stamp = command.stamp
        self.uploads[command.upload_id] = up
        return "chunk", Applied(self.index, uploaded=len(up.data))

    def expire(self, command: pb.ExpireUploadsCommand) -> tuple[str, Applied]:
        idle = sorted((up.stamp, up.number, name) for name, up in self.uploads.items() if up.stamp < command.stamp)
        for _stamp, _number, name in idle[:EXPIRED_AT_ONCE]:
            del self.uploads[name]
        return f"expired {min(1, len(idle))}", Applied(self.index)


def fits(record: pb.NewRecord) -> bool:
    if not record.HasField("blob"):
        return True
    lengths = (len(record.blob.upload_id), len(record.blob.same_as))
    return lengths in ((16, 0), (0, 8)) and not record.no_data and not record.more


@st.composite
def blob_commands(draw: st.DrawFn, model: UploadsModel) -> bytes:
    """A chunk that goes on with an upload, mostly, or the end of some."""
    if draw(st.integers(0, 5)) == 5:
        expire = pb.ExpireUploadsCommand(stamp=draw(st.integers(0, 12)))
        return pb.Command(expire_uploads=expire).SerializeToString()
    name = draw(st.sampled_from(UPLOADS))
    size = len(model.uploads[name].data) if name in model.uploads else 0
    data = draw(st.binary(max_size=11))
    offset = max(0, size + draw(st.sampled_from([0] * 8 + [-1, -3, 1, 9, -len(data), -99])))
    bad = draw(st.integers(0, 20))
    chunk = pb.BlobCommand(upload_id=name if bad else b"bad", offset=offset, stamp=draw(st.integers(0, 12)))
    chunk.data = data if bad != 1 else bytes(BLOB_CHUNK_BYTES + 1)
    return pb.Command(blob=chunk).SerializeToString()


@st.composite
def blobs(draw: st.DrawFn, model: UploadsModel, record: pb.NewRecord) -> pb.Blob:
    """One for `record`; mostly one that is there."""
    earlier = [each.serial for each in model.revisions.get(record.oid, ()) if each.blob is not None]
    if earlier and draw(st.booleans()):
        return pb.Blob(same_as=draw(st.sampled_from(earlier)))
    flaw = draw(st.sampled_from([""] * 9 + ["size", "crc", "none", "both", "serial", "short"]))
    if flaw in ("none", "serial"):
        return pb.Blob(same_as=b"12345678" if flaw == "serial" else b"")
    name = draw(st.sampled_from(sorted(model.uploads) or UPLOADS))
    data = model.uploads[name].data if name in model.uploads else b""
    blob = pb.Blob(upload_id=name, size=len(data) + (flaw == "size"), crc32c=crc(data) ^ (flaw == "crc"))
    if flaw == "both":
        blob.same_as = b"12345678"
    elif flaw == "short":
        blob.upload_id = b"short"
    return blob


def check_blobs(engine: StateMachine, model: UploadsModel) -> None:
    for name in UPLOADS:
        up = model.uploads.get(name)
        assert engine.upload_size(name) == (None if up is None else len(up.data))
    stamps = [up.stamp for up in model.uploads.values()]
    if stamps:
        assert engine.stale_uploads(min(stamps) + 1)
    for oid, revisions in model.revisions.items():
        seen = [each.serial for each in model.seen(oid)]
        for each in revisions:
            if each.blob is None or each.serial not in seen:
                try:
                    engine.load_blob(oid, each.serial, 0, 9)
                except KeyError:
                    continue
                raise AssertionError(f"a blob of {oid.hex()} that there is not")
            whole = (each.blob, len(each.blob), crc(each.blob))
            assert engine.load_blob(oid, each.serial, 0, 1 << 20) == whole
            for start, count in ((1, 3), (CHUNK, CHUNK), (CHUNK - 1, 99), (len(each.blob), 5), (1 << 40, 1)):
                found = engine.load_blob(oid, each.serial, start, count)[0]
                assert found == each.blob[start : start + count]
