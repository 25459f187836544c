"""Blobs of another storage, on their way into the cluster while its transactions are restored."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from raftstorage.proto import BLOB_CHUNK_BYTES
from raftstorage.proto import storage_pb2 as pb
from ZODB import POSException
from ZODB.blob import is_blob_record
from ZODB.interfaces import IBlobStorage

from ..cluster import Cluster
from ..cluster.blobs import SmallUpload, takes_blobs, upload

#: Of small blobs that are under way at once.
WINDOW_BYTES = 2 << 20


class BlobCopies:
    """`source`: the storage that is copied. Small blobs go several at a time, so that their syncs are shared."""

    def __init__(self, cluster: Cluster, source: Any) -> None:
        self._cluster = cluster
        self._source = source if IBlobStorage.providedBy(source) else None
        self._small: deque[SmallUpload] = deque()
        self._bytes = 0

    def blob(self, record: Any) -> tuple[pb.Blob, SmallUpload | None] | None:
        """What the restored record must name, and what is to be waited for before it is committed. None: it has no
        blob. Unsupported: it has one that cannot be had, or cannot be stored."""
        file = self._open(record)
        if file is None:
            return None
        with file:
            if not takes_blobs(self._cluster):
                raise POSException.Unsupported("not all nodes of the cluster know blobs yet")
            if os.fstat(file.fileno()).st_size > BLOB_CHUNK_BYTES:
                return upload(self._cluster, file.fileno()), None
            small = self._begin(file.read(BLOB_CHUNK_BYTES))
            return small.blob, small

    def _open(self, record: Any) -> Any:
        known = getattr(record, "blob", None)  # a record of another cluster says whether there is one
        if known is None and not is_blob_record(record.data):
            return None
        if self._source is None:
            if known is None:
                return None  # the object's class says blob, and its storage has none: so does the copy
            raise POSException.Unsupported("the storage that is copied has blobs: open it with a blob_dir")
        try:
            return self._source.openCommittedBlobFile(record.oid, record.tid)
        except POSException.POSKeyError:
            if known is not None:
                raise
            return None

    def _begin(self, data: bytes) -> SmallUpload:
        while self._small and self._bytes + len(data) > WINDOW_BYTES:
            first = self._small.popleft()
            first.wait()
            self._bytes -= first.blob.size
        small = SmallUpload(self._cluster, data)
        self._small.append(small)
        self._bytes += len(data)
        return small
