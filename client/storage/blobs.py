"""Blobs, for applications: IBlobStorage and IBlobStorageRestoreable, over `client.blobs` and the cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import zope.interface
from ZODB import POSException, interfaces

from ..cluster import Cluster
from ..cluster import blobs as remote
from .errors import as_zodb

if TYPE_CHECKING:
    from ..blobs import BlobDirectory
    from .tpc import Begun


class BlobStorage:
    """What a ClientStorage with a `blob_dir` can do besides. Without one everything here is Unsupported."""

    cluster: Cluster
    blob_dir: str | None = None
    #: ZODB's FilesystemHelper for `blob_dir`, or None.
    fshelper: Any = None
    _blobs: BlobDirectory | None = None

    def _open_blobs(self, path: str | os.PathLike[str], shared: bool, size: int | None, check: int) -> None:
        """See `BlobDirectory`; to be called when the cluster is open."""
        try:
            from ..blobs import BlobDirectory
        except ModuleNotFoundError as error:
            if error.name != "fcntl":
                raise
            raise POSException.Unsupported("blobs need a POSIX system") from error
        with as_zodb():
            self._blobs = BlobDirectory(
                path,
                self.cluster.cluster_id,
                self._fetch,
                shared=shared,
                size=size,
                check=check,
                patience=self.cluster.wait_timeout,
            )
        self.blob_dir = os.fspath(path)
        self.fshelper = self._blobs.fshelper
        zope.interface.alsoProvides(self, interfaces.IBlobStorage, interfaces.IBlobStorageRestoreable)

    def _close_blobs(self) -> None:
        if self._blobs is not None:
            self._blobs.close()

    def _fetch(self, oid: bytes, serial: bytes, descriptor: int) -> int:
        at_least = min(serial, self.cluster.feed.last)
        return remote.download(self.cluster, oid, serial, at_least, descriptor)

    def _directory(self) -> BlobDirectory:
        if self._blobs is None:
            raise POSException.Unsupported("the storage was opened without a blob_dir")
        return self._blobs

    def _begun(self, transaction: Any) -> Begun:
        raise NotImplementedError

    def _want_writable(self) -> None:
        raise NotImplementedError

    # ---- reading -------------------------------------------------------------------------------------

    def loadBlob(self, oid: bytes, serial: bytes) -> str:  # noqa: N802
        """The path of a read-only file, fetched if it is not in `blob_dir`. POSKeyError, BlobDirectoryFull."""
        with as_zodb(oid):
            return str(self._directory().load(oid, serial))

    def openCommittedBlobFile(self, oid: bytes, serial: bytes, blob: Any = None) -> Any:  # noqa: N802
        """A file open for reading, a BlobFile if `blob` is given. As `loadBlob`; the cache's bound cannot take the
        file away in between."""
        with as_zodb(oid):
            return self._directory().open(oid, serial, blob)

    def temporaryDirectory(self) -> str:  # noqa: N802
        return self._directory().temporary

    # ---- writing -------------------------------------------------------------------------------------

    def storeBlob(  # noqa: N802
        self,
        oid: bytes,
        oldserial: bytes | str | None,
        data: bytes,
        blobfilename: str,
        version: str,
        transaction: Any,
    ) -> None:
        """Takes the file away at once; it is uploaded by tpc_vote."""
        self._want_writable()
        if version:
            raise POSException.Unsupported("versions")
        begun = self._begun(transaction)
        with self._taken(oid, blobfilename, begun):
            # Text with the value of bytes is what other storages take, and ZODB's own tests give.
            serial = oldserial.encode("latin-1") if isinstance(oldserial, str) else oldserial
            begun.store(oid, serial, data)

    def restoreBlob(  # noqa: N802
        self, oid: bytes, serial: bytes, data: bytes, blobfilename: str, prev_txn: bytes | None, transaction: Any
    ) -> None:
        """As `restore`, with a file, which is taken away."""
        self._want_writable()
        begun = self._begun(transaction)
        with self._taken(oid, blobfilename, begun):
            begun.restore(oid, data, prev_txn)

    @contextlib.contextmanager
    def _taken(self, oid: bytes, filename: str, begun: Begun) -> Iterator[None]:
        directory = self._directory()
        if not remote.takes_blobs(self.cluster):
            raise POSException.Unsupported("not all nodes of the cluster know blobs yet")
        with as_zodb(oid):
            path = directory.take(oid, filename)
        try:
            yield
        except BaseException:
            directory.drop(path)
            raise
        begun.blobs.add(oid, path)
