"""A cluster's blobs: files in and out, of any size in little memory. For any thread but the loop's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raftstorage.proto import BLOB_CHUNK_BYTES, HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb

from .errors import BlobDamaged, RequestRefused
from .loop import Waiter
from .piping import FileSink, FileSource, crc32c
from .uploads import Chunk

if TYPE_CHECKING:
    from .cluster import Cluster


def new_upload_id() -> bytes:
    return os.urandom(16)


def takes_blobs(cluster: Cluster) -> bool:
    """Whether all members know blobs."""
    return cluster.reaches(HISTORY_LEVEL)


def upload(cluster: Cluster, descriptor: int) -> pb.Blob:
    """Puts a file's bytes into the log, as a new upload: what a record must name to have them.

    ClientDisconnected, StorageBusy, StorageFull: nothing went on for the cluster's wait_timeout. RequestRefused.
    OSError: the file cannot be read. The file must not change meanwhile.
    """
    size = os.fstat(descriptor).st_size
    upload_id = new_upload_id()
    if not size:
        return pb.Blob(upload_id=upload_id)
    source = FileSource(descriptor, size)
    cluster.run_piped("upload", cluster.upload_flow(source, upload_id, size), source)
    cluster.metrics.blob_bytes("sent", size)
    return pb.Blob(upload_id=upload_id, size=size, crc32c=source.crc32c)


class SmallUpload:
    """The upload of a blob that is one chunk, under way: many of them may be, at once."""

    def __init__(self, cluster: Cluster, data: bytes) -> None:
        self.blob = pb.Blob(upload_id=new_upload_id(), size=len(data), crc32c=crc32c(data))
        self._waiter: Waiter[tuple[pb.Event, str]] | None = None
        if data:
            source = _Data(data, self.blob.crc32c)
            flow = cluster.upload_flow(source, self.blob.upload_id, len(data))
            self._waiter = cluster.start(flow)
            cluster.metrics.blob_bytes("sent", len(data))

    def wait(self) -> None:
        """Returns when it is in the log. Raises what `upload` does."""
        if self._waiter is not None:
            event, _ = self._waiter.wait(None)  # every flow has a deadline
            if event.HasField("failure"):
                raise RequestRefused(event.failure)
            self._waiter = None


class _Data:
    """A source with one chunk."""

    def __init__(self, data: bytes, crc: int) -> None:
        if len(data) > BLOB_CHUNK_BYTES:
            raise ValueError(f"{len(data)} bytes do not fit into one chunk")
        self._chunk = Chunk(data, crc)

    def chunk(self, offset: int) -> Chunk:
        if offset:
            raise AssertionError("there is nothing behind the only chunk")
        return self._chunk


def download(cluster: Cluster, oid: bytes, serial: bytes, at_least: bytes, descriptor: int) -> int:
    """Writes a revision's blob into an empty file: its size. It is checked as a whole, not synced.

    When the bytes are not what they should be, a replica that they came from is passed over, and the file is
    written anew; with none left, BlobDamaged. RequestRefused (NO_SUCH_OBJECT: there is no such blob). OSError: the
    file cannot be written. ClientDisconnected, StorageBusy: nothing went on for the cluster's wait_timeout.
    """
    passed_over: set[str] = set()
    while True:
        sink = FileSink(descriptor)
        flow = cluster.download_flow(oid, serial, at_least, sink, passed_over)
        event = cluster.run_piped("download", flow, sink)
        if sink.whole:
            cluster.metrics.blob_bytes("received", event.blob_data.size)
            return event.blob_data.size
        first = next(iter(sink.from_addresses), None)
        if first is None:
            raise BlobDamaged(
                f"the blob of object {oid.hex()} at {serial.hex()} has no bytes, and should have some"
            )
        passed_over.add(first)
        os.ftruncate(descriptor, 0)
