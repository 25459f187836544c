"""ZODB's storage on a cluster, `ZODB.DB(ClientStorage("a:7441,b:7441,c:7441"))`, or on a directory of its own,
`ZODB.DB(ClientStorage("embedded:./data"))`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import zope.interface
from prometheus_client import CollectorRegistry
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb
from ZODB import POSException, interfaces
from ZODB.ConflictResolution import ConflictResolvingStorage

from ..cache import DEFAULT_BYTES
from ..cluster import Call, Cluster
from ..cluster.cluster import DELIVERY_SECONDS
from .blobs import BlobStorage
from .bulk import restore_all
from .cached import open_cached
from .errors import CommitOutcomeUnknown, as_zodb, outcome_unknown
from .history import Histories
from .iteration import Iterating
from .loading import Loading
from .oids import Oids
from .pack import Packing
from .tpc import Begun, Phase, Voted
from .undo import Undoing


@zope.interface.implementer(
    interfaces.IMultiCommitStorage,
    interfaces.ReadVerifyingStorage,
    interfaces.IStorageIteration,
    interfaces.IStorageCurrentRecordIteration,
    interfaces.IStorageRestoreable,
    interfaces.IStorageUndoable,
    interfaces.IExternalGC,
    interfaces.IPrefetchStorage,
)
class ClientStorage(
    BlobStorage,
    Loading,
    Histories,
    Iterating,
    Undoing,
    Packing,
    ConflictResolvingStorage,  # type: ignore[misc]
):
    """One client's storage; for any number of threads. Open it after `os.fork()`, never before.

    `addresses`: "host:port,host:port" or an iterable of "host:port"; some nodes of the cluster, the others are
    learnt. ValueError when one is malformed. Or "embedded:DIR": the database in that directory, by a node inside
    this process (needs raftstorage[node]); several storages of a process may share one, a second process gets
    DirectoryInUse, and EmbeddedError is raised when the directory cannot be used. `read_only`: refuses to write
    (ReadOnlyError). `wait`: wait up to `wait_timeout` seconds for the first node to be reached; otherwise one
    second. Later calls wait that long for a replica or leader, then raise ClientDisconnected (a TransientError).
    `commit_timeout`: seconds that the outcome of a commit is asked for before CommitOutcomeUnknown. `consistency`:
    "snapshot": a connection's snapshot is what this client has seen; "linearizable": a transaction's begin asks
    the cluster, and sees every commit acknowledged before. `cache_size`: bytes of memory for records, for all
    connections together. `cache_path`: a file in which the cache goes from one process to the next; one process
    at a time has it. `blob_dir`: where files of blobs are kept; without one there is no blob support
    (Unsupported). It is a cache, which several processes may share, of about
    `blob_cache_size` bytes (None: without a bound), looked through whenever `blob_cache_size_check` percent of
    that came in; or, with `shared_blob_dir`, laid out as a FileStorage's, and nothing is removed. `pack_gc`:
    whether pack() removes objects that nothing refers to when it is not told. `name`: for logs and metrics.
    `registry`: of prometheus metrics.
    """

    def __init__(
        self,
        addresses: str | Iterable[str],
        *,
        read_only: bool = False,
        wait: bool = True,
        wait_timeout: float = 30.0,
        commit_timeout: float = 60.0,
        consistency: Literal["snapshot", "linearizable"] = "snapshot",
        pack_gc: bool = True,
        cache_size: int = DEFAULT_BYTES,
        cache_path: str | os.PathLike[str] | None = None,
        blob_dir: str | os.PathLike[str] | None = None,
        shared_blob_dir: bool = False,
        blob_cache_size: int | None = None,
        blob_cache_size_check: int = 10,
        name: str | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        if consistency not in ("snapshot", "linearizable"):
            raise ValueError(f"consistency must be 'snapshot' or 'linearizable', not {consistency!r}")
        self._commit_lock = threading.Lock()
        self._phase: Phase | None = None

        def make() -> Cluster:
            return Cluster(
                addresses,
                name=name or "raftstorage",
                read_only=read_only,
                wait_timeout=wait_timeout,
                commit_timeout=commit_timeout,
                registry=registry,
            )

        with as_zodb():
            patience = wait_timeout if wait else min(wait_timeout, 1.0)
            self.cluster, self.cache, self._keeper = open_cached(make, cache_size, cache_path, patience)
        self.cluster.metrics.watch_cache(self.cache.figures)
        self.pack_gc = pack_gc
        self.delivery_timeout = DELIVERY_SECONDS
        self._name = name or ",".join(self.cluster.addresses)
        self._read_only = read_only
        self._linearizable = consistency == "linearizable"
        self._oids = Oids(self.cluster)
        self._lock = threading.RLock()  # for a DemoStorage, which borrows its changes' lock
        if blob_dir is not None:
            try:
                self._open_blobs(blob_dir, shared_blob_dir, blob_cache_size, blob_cache_size_check)
            except BaseException:
                self.close()
                raise

    # ---- about -----------------------------------------------------------------------------------------

    def close(self) -> None:
        self.cluster.close()
        if self._keeper is not None:
            self._keeper.close()
        self.cluster.metrics.watch_cache(None)
        self._close_blobs()

    def getName(self) -> str:  # noqa: N802
        return self._name

    def sortKey(self) -> str:  # noqa: N802
        return f"raftstorage:{self.cluster.cluster_id}"

    def is_connected(self, test: bool = False) -> bool:
        """Whether any node is in reach, as ZEO's users ask it. Writes need a leader besides. `test`: as ZEO's,
        for nothing."""
        return self.cluster.is_connected()

    def isReadOnly(self) -> bool:  # noqa: N802
        return self._read_only

    def getSize(self) -> int:  # noqa: N802
        return self._size().bytes

    def __len__(self) -> int:
        return self._size().objects

    def __bool__(self) -> bool:
        return True  # an empty storage is one

    def _size(self) -> pb.SizeReply:
        with as_zodb():
            return self.cluster.read(Call("size", pb.Size()), self.cluster.feed.last, leader_first=True).size

    def registerDB(self, wrapper: Any) -> None:  # noqa: N802
        super().registerDB(wrapper)

        def say(word: Callable[..., object], *about: object) -> None:
            try:
                word(*about)
            except AttributeError as error:
                # A storage around this one, as zc.zlibstorage's, that has no database yet: it looks for it here.
                if error.name != "db" or error.obj not in (self, wrapper):
                    raise

        def tell(tid: bytes, oids: Sequence[bytes]) -> None:
            say(wrapper.invalidate, tid, oids)

        def missed() -> None:
            self.cache.missed()
            forget = getattr(wrapper, "invalidateCache", None)
            if forget is not None:
                say(forget)

        feed = self.cluster.feed
        with feed.lock:
            feed.sink, feed.on_missed = tell, missed

    # ---- reading ---------------------------------------------------------------------------------------

    def lastTransaction(self) -> bytes:  # noqa: N802
        return self.cluster.feed.last_transaction()

    def sync(self, force: bool = True) -> None:
        """Brings lastTransaction() up to date: to the cluster's if linearizable, else to what this client got."""
        if self._linearizable and force:
            with as_zodb():
                self.cluster.feed.wait_for(self.cluster.read_point(), self.delivery_timeout)
        else:
            self.cluster.feed.last_transaction()

    # ---- writing ---------------------------------------------------------------------------------------

    def new_oid(self) -> bytes:
        self._want_writable()
        with as_zodb():
            return self._oids.new()

    def tpc_begin(self, transaction: Any, tid: bytes | None = None, status: str | bytes = " ") -> None:
        self._want_writable()
        phase = self._phase
        if phase is not None and phase.transaction is transaction:
            raise POSException.StorageTransactionError("tpc_begin was called for this transaction before")
        self._commit_lock.acquire()
        try:
            self._phase = Begun(self, transaction, tid, status)
        except BaseException:
            self._commit_lock.release()
            raise

    def store(self, oid: bytes, serial: bytes | None, data: bytes, version: str, transaction: Any) -> None:
        self._want_writable()
        if version:
            raise POSException.Unsupported("versions")
        self._begun(transaction).store(oid, serial, data)

    def restore(
        self, oid: bytes, serial: bytes, data: bytes | None, version: str, prev_txn: bytes | None, transaction: Any
    ) -> None:
        self._want_writable()
        self._begun(transaction).restore(oid, data, prev_txn)

    def deleteObject(self, oid: bytes, serial: bytes, transaction: Any) -> None:  # noqa: N802
        """Its current revision must be `serial`: ConflictError at vote. POSKeyError there for an unknown one."""
        self._want_writable()
        self._want_history()
        self._begun(transaction).delete(oid, serial)

    def checkCurrentSerialInTransaction(  # noqa: N802
        self, oid: bytes, serial: bytes, transaction: Any
    ) -> None:
        self._begun(transaction).check(oid, serial)

    def tpc_vote(self, transaction: Any) -> Sequence[bytes] | None:
        self._phase = voted = self._begun(transaction).vote()
        return voted.resolved or None

    def tpc_finish(self, transaction: Any, func: Callable[[bytes], object] = lambda tid: None) -> bytes:
        phase = self._phase
        if not isinstance(phase, Voted) or phase.transaction is not transaction:
            raise POSException.StorageTransactionError("tpc_finish without tpc_vote, or for another transaction")
        try:
            return phase.finish(func)
        finally:
            self._end()

    def tpc_abort(self, transaction: Any) -> None:
        phase = self._phase
        if phase is not None and phase.transaction is transaction:
            try:
                phase.abort()
            finally:
                self._end()

    def tpc_transaction(self) -> Any:
        """The transaction that is being committed, or None."""
        phase = self._phase
        return None if phase is None else phase.transaction

    def commit_outcome(self, unknown: CommitOutcomeUnknown) -> bytes:
        """Asks again what became of a commit whose outcome was unknown: its tid, or raises as tpc_finish does.

        Who cannot be reached now may have been before: CommitOutcomeUnknown, and never ClientDisconnected.
        """
        with as_zodb(), outcome_unknown(unknown.transaction_id, unknown.body):
            tid = self.cluster.commit(unknown.transaction_id, unknown.body)
            self.cluster.feed.wait_for(tid, self.delivery_timeout)
        return tid

    def copyTransactionsFrom(  # noqa: N802
        self, other: Any, verbose: object = 0, *, progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Restores all transactions of another storage, in order, with their tids and metadata.

        Blobs come along, if the other storage has any. Many are under way at once; after a failover it goes on
        where it was. `progress(transactions, bytes)` is called after each; `verbose`, which other storages take,
        is for nothing. Records are copied as they are; a storage that already has later transactions refuses
        (StorageTransactionError).
        """
        self._want_writable()
        with self._commit_lock, as_zodb():
            restore_all(self.cluster, other, progress, self.delivery_timeout)

    def _want_writable(self) -> None:
        if self._read_only:
            raise POSException.ReadOnlyError

    def _want_history(self) -> None:
        if not self.cluster.reaches(HISTORY_LEVEL):
            raise POSException.Unsupported("a node of the cluster is too old for undo, deletions and packs")

    def _begun(self, transaction: Any) -> Begun:
        phase = self._phase
        if not isinstance(phase, Begun) or phase.transaction is not transaction:
            raise POSException.StorageTransactionError(
                "not the transaction that was begun, or it is voted already"
            )
        return phase

    def _end(self) -> None:
        phase, self._phase = self._phase, None
        try:
            if phase is not None:
                phase.blobs.drop()
        finally:
            self._commit_lock.release()
