"""The blobs of one transaction, until it is through."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from raftstorage.proto import storage_pb2 as pb

from ..cluster import blobs as remote
from .errors import as_zodb

if TYPE_CHECKING:
    from .blobs import BlobStorage

log = logging.getLogger(__name__)


class PendingBlobs:
    """Files that were taken away from the application, by oid, and what has become of them in the cluster."""

    def __init__(self, storage: BlobStorage) -> None:
        self._storage = storage
        self._paths: dict[bytes, Path] = {}
        self._uploaded: dict[bytes, pb.Blob] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, oid: bytes, path: Path) -> None:
        self.discard(oid)
        self._paths[oid] = path

    def discard(self, oid: bytes) -> None:
        """The object is stored again, without this blob."""
        path = self._paths.pop(oid, None)
        self._uploaded.pop(oid, None)
        if path is not None:
            self._storage._directory().drop(path)

    def upload(self) -> dict[bytes, pb.Blob]:
        """Has all of them in the cluster's log, and on the disk here: what records must name, by oid."""
        for oid, path in self._paths.items():
            if oid in self._uploaded:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with as_zodb(oid):
                    self._uploaded[oid] = remote.upload(self._storage.cluster, descriptor)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        return self._uploaded

    def forget_or_raise(self, left: int) -> None:
        """Called where the cluster refused what was uploaded: `upload` does it again, or the refusal is raised,
        when there is nothing to upload or no round `left`."""
        if not left or not self._paths:
            raise
        self._uploaded.clear()

    def keep(self, tid: bytes) -> None:
        """The transaction is committed: they are what others will ask for. What cannot be kept can be fetched."""
        for oid, path in self._paths.items():
            try:
                self._storage._directory().keep(path, oid, tid)
            except OSError:
                log.exception("the committed blob of object %s is not in the blob directory", oid.hex())

    def drop(self) -> None:
        """What was not kept is removed."""
        while self._paths:
            _, path = self._paths.popitem()
            self._storage._directory().drop(path)
