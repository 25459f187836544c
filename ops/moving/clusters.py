"""A cluster (or a directory of one node) as a place that databases come from and go to."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import zope.interface
from raftstorage.client import ClientStorage
from ZODB.interfaces import IBlobStorage

from .places import OpenBlob, Target

#: Every record is read once, so that a cache is of no use.
CACHE_BYTES = 1 << 20
BLOB_BYTES = 256 << 20


class ClusterPlace(Target):
    """`addresses`, `wait_timeout`: as ClientStorage takes them; a commit is given up after twice that time.

    It has seen everything that was committed before it was opened.

    Blobs that are read pass through a temporary directory, which holds about BLOB_BYTES of them, or less if the
    disk has no room.
    """

    def __init__(self, addresses: str, wait_timeout: float, *, read_only: bool = False) -> None:
        with ExitStack() as stack:
            blobs = stack.enter_context(tempfile.TemporaryDirectory(prefix="raftstorage-blobs-"))
            storage = ClientStorage(
                addresses,
                consistency="linearizable",
                wait_timeout=wait_timeout,
                commit_timeout=2 * wait_timeout,
                read_only=read_only,
                cache_size=CACHE_BYTES,
                blob_dir=blobs,
                blob_cache_size=min(BLOB_BYTES, shutil.disk_usage(blobs).free // 4),
            )
            stack.callback(storage.close)
            storage.sync()
            super().__init__(f"the database at {addresses}", storage)
            self._closing = stack.pop_all()

    def packed(self) -> bytes:
        """It may be packed while it is read, and may have come from a database that was packed before."""
        return max(bytes(self.storage.lastPack()), super().packed())

    def take(
        self, transactions: Iterable[Any], open_blob: OpenBlob | None, progress: Callable[[], object]
    ) -> None:
        """Many are under way at once, in order; after a failover it goes on where it was."""
        self.storage.copyTransactionsFrom(
            _Source(transactions, open_blob), progress=lambda transactions, size: progress()
        )


class _Source:
    """What copyTransactionsFrom copies."""

    def __init__(self, transactions: Iterable[Any], open_blob: OpenBlob | None) -> None:
        self._transactions = transactions
        if open_blob is not None:
            self.openCommittedBlobFile = open_blob
            zope.interface.directlyProvides(self, IBlobStorage)

    def iterator(self) -> Iterator[Any]:
        return iter(self._transactions)
