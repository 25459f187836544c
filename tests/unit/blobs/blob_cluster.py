"""The scripted cluster with blobs, and faults of theirs on order."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
from raftstorage.client.cluster.uploads import WINDOW_CHUNKS
from raftstorage.proto import BLOB_CHUNK_BYTES, HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb
from ZODB.blob import Blob, remove_committed
from ZODB.Connection import TransactionMetaData
from ZODB.tests.StorageTestBase import zodb_pickle
from ZODB.utils import p64

from tests.unit.client.conftest import FakeCluster, Node

CHUNK = BLOB_CHUNK_BYTES
OID = p64(1)


def crc(data: bytes) -> int:
    return int(google_crc32c.value(data))


class BlobCluster(FakeCluster):
    """`damage`: what a node makes of the pieces that it sends, by node id; `on_chunk`: called for each chunk that
    is taken, with its offset; `on_piece`: for each piece that is asked for, with the node and the offset."""

    def __init__(self) -> None:
        super().__init__()
        self.level = HISTORY_LEVEL
        self.uploads: dict[bytes, bytearray] = {}
        self.blobs: dict[tuple[bytes, bytes], bytes] = {}
        self.damage: dict[int, Callable[[pb.BlobData], object]] = {}
        self.on_chunk: Callable[[int], object] = lambda offset: None
        self.on_piece: Callable[[Node, int], object] = lambda node, offset: None

    def expire(self) -> None:
        self.uploads.clear()

    def _blob_chunk(self, node: Node, call: pb.BlobChunk) -> pb.Event:
        if node.node_id != self.leader:
            return pb.Event(failure=pb.Failure(reason=pb.NOT_LEADER, leader=self.leader_message()))
        if crc(call.data) != call.crc32c:
            return pb.Event(failure=pb.Failure(reason=pb.INVALID, message="damaged on its way"))
        there = self.uploads.get(call.upload_id, bytearray())
        if call.data and call.offset == len(there):
            self.uploads.setdefault(call.upload_id, there).extend(call.data)
            self.on_chunk(call.offset)
            there = self.uploads.get(call.upload_id, bytearray())
        return pb.Event(blob_stored=pb.BlobStored(upload_id=call.upload_id, size=len(there)))

    def _load_blob(self, node: Node, call: pb.LoadBlob) -> pb.Event | None:
        if node.lagging or call.at_least > self.last:
            return pb.Event(failure=pb.Failure(reason=pb.LAGGING))
        data = self.blobs.get((call.oid, call.serial))
        if data is None:
            return pb.Event(failure=pb.Failure(reason=pb.NO_SUCH_OBJECT, oid=call.oid))
        self.on_piece(node, call.offset)
        if node.silent:
            return None
        piece = pb.BlobData(
            data=data[call.offset : call.offset + (call.max_bytes or CHUNK)], size=len(data), crc32c=crc(data)
        )
        self.damage.get(node.node_id, lambda piece: None)(piece)
        return pb.Event(blob_data=piece)

    def _missing(self, transaction: pb.Transaction) -> pb.Event | None:
        for record in transaction.records:
            blob = record.blob
            there = self.uploads.get(blob.upload_id, b"")
            if record.HasField("blob") and (len(there), crc(bytes(there))) != (blob.size, blob.crc32c):
                return pb.Event(failure=pb.Failure(reason=pb.NO_UPLOAD, oid=record.oid))
        return None

    def _vote(self, node: Node, call: pb.Vote) -> pb.Event:
        return self._missing(pb.Transaction.FromString(call.transaction)) or super()._vote(node, call)

    def _commit(self, node: Node, call: pb.Commit) -> pb.Event:
        if call.transaction_id not in self.committed:
            missing = self._missing(pb.Transaction.FromString(call.transaction))
            if missing is not None:
                return missing
        return super()._commit(node, call)

    def _apply(self, transaction: pb.Transaction, transaction_id: bytes, tid: bytes) -> bytes:
        for record in transaction.records:
            if record.HasField("blob"):
                self.blobs[record.oid, tid] = bytes(self.uploads.get(record.blob.upload_id, b""))
        super()._apply(transaction, transaction_id, tid)
        for stored, record in zip(self.transactions[-1].records, transaction.records, strict=True):
            if record.HasField("blob"):
                stored.blob.size, stored.blob.crc32c = record.blob.size, record.blob.crc32c
        return tid


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


#: Of many chunks, several windows of them.
LARGE = content(3 * WINDOW_CHUNKS * CHUNK + 12_345)
RECORD: bytes = zodb_pickle(Blob())


def begin(storage: Any, path: Path, data: bytes, oid: bytes, serial: bytes = bytes(8)) -> Any:
    """A transaction with one blob, stored and not voted for; the file was at `path`."""
    path.write_bytes(data)
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.storeBlob(oid, serial, RECORD, os.fspath(path), "", transaction)
    return transaction


def commit(storage: Any, path: Path, data: bytes, oid: bytes, serial: bytes = bytes(8)) -> bytes:
    """The tid of a transaction that stores one blob."""
    transaction = begin(storage, path, data, oid, serial)
    try:
        storage.tpc_vote(transaction)
        tid: bytes = storage.tpc_finish(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise
    return tid


def forget_file(storage: Any, tid: bytes, oid: bytes = OID) -> None:
    """As if another client had stored it."""
    remove_committed(storage.fshelper.getBlobFilename(oid, tid))


def loaded(storage: Any, tid: bytes, oid: bytes = OID) -> bytes:
    return Path(storage.loadBlob(oid, tid)).read_bytes()
