"""Where databases are read and written: anything that ZODB can open, behind two small classes.

A place is given as text: the path of a Data.fs, the path of a ZConfig file with a `<zodb>` or a storage section,
or a URI that zodburi knows. A cluster is given by its addresses.
"""

from __future__ import annotations

import errno
import heapq
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from raftstorage.ops.errors import CommandError
from ZODB.blob import FilesystemHelper, is_blob_record
from ZODB.interfaces import IBlobStorage, IBlobStorageRestoreable, IStorageIteration, IStorageRestoreable
from ZODB.POSException import POSKeyError

from .data_file import Damage, DataFile, NotADataFile, PackBound

Z64 = b"\0" * 8
#: Opens the file of a record's blob: (oid, tid). POSKeyError when it has none.
OpenBlob = Callable[[bytes, bytes], Any]
#: How the name of a blob begins that is on its way into a target.
COPY_PREFIX = "raftstorage-copy-"

_SCHEMA = """
<schema>
  <import package="ZODB"/>
  <multisection type="ZODB.storage" attribute="storages" />
  <multisection type="ZODB.database" attribute="databases" />
</schema>
"""


class Place:
    """A storage that transactions are read from. A context manager, which closes what it opened.

    `open_blob` is None where there is no blob support. `keeps_history`: revisions that were replaced, and what is
    said about transactions.
    """

    def __init__(self, name: str, storage: Any) -> None:
        self.name = name
        self.storage = storage
        # RelStorage's own attribute; no other storage that can be read through has none.
        self.keeps_history = getattr(storage, "keep_history", True) is not False
        self.damage: list[Damage] = []
        self.open_blob: OpenBlob | None = (
            storage.openCommittedBlobFile if IBlobStorage.providedBy(storage) else None
        )
        self._closing = ExitStack()
        self._closing.callback(storage.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def last(self) -> bytes:
        """Tid of the newest transaction; eight zero bytes: empty."""
        return _last(self.storage)

    def size(self) -> int:
        """About as many bytes, for a progress bar."""
        return int(self.storage.getSize())

    def packed(self) -> bytes:
        """Up to this tid there may be less than there once was; eight zero bytes: there never was more. Asked for
        only where something is missing: it may take a look at every transaction."""
        bound = PackBound()
        for each in self.transactions():
            bound.add(each.tid, each.status)
        return bound.tid

    def transactions(self, start: bytes = Z64, stop: bytes | None = None) -> Iterator[Any]:
        """In tid order, both ends inclusive."""
        # RelStorage has a row of its own with the tid 0.
        return (each for each in _iterate(self.storage, start, stop) if each.tid != Z64)


def _last(storage: Any) -> bytes:
    parts = _parts(storage)
    if parts:
        return max(_last(part) for part in parts)
    last: bytes = storage.lastTransaction()
    return last or Z64


def _iterate(storage: Any, start: bytes, stop: bytes | None) -> Iterator[Any]:
    parts = _parts(storage)
    if parts:  # a DemoStorage gives all of its base and then all of its changes
        return heapq.merge(*(_iterate(part, start, stop) for part in parts), key=lambda each: each.tid)
    return iter(storage.iterator(start, stop))


def _parts(storage: Any) -> list[Any]:
    from ZODB.DemoStorage import DemoStorage

    return [storage.base, storage.changes] if isinstance(storage, DemoStorage) else []


class FilePlace(Place):
    """A Data.fs, which may be damaged, and may be in use; with `blob_dir`, the directory of its blobs."""

    def __init__(self, path: Path, blob_dir: Path | None) -> None:
        self.file = DataFile(path)
        super().__init__(str(path), self.file)
        self._last, self._packed = self.file.heads()
        if blob_dir is not None:
            if not blob_dir.is_dir():
                raise CommandError(f"no such directory: {blob_dir}", 2)
            self._blobs = FilesystemHelper(str(blob_dir))
            self.open_blob = self._open

    def last(self) -> bytes:
        return self._last

    def packed(self) -> bytes:
        return self._packed

    def size(self) -> int:
        return self.file.size

    def transactions(self, start: bytes = Z64, stop: bytes | None = None) -> Iterator[Any]:
        yield from self.file.iterator(start, stop)
        self.damage = self.file.damage

    def _open(self, oid: bytes, tid: bytes) -> Any:
        try:
            return Path(self._blobs.getBlobFilename(oid, tid)).open("rb")
        except FileNotFoundError:
            raise POSKeyError(oid) from None


class Target(Place):
    """A place that transactions are written to."""

    def __init__(self, name: str, storage: Any) -> None:
        super().__init__(name, storage)
        if not IStorageRestoreable.providedBy(storage):
            self._closing.close()
            raise CommandError(f"{name} takes no transactions with given tids (it has no restore)", 2)

    def take(
        self, transactions: Iterable[Any], open_blob: OpenBlob | None, progress: Callable[[], object]
    ) -> None:
        """Stores each as it is, in order; `progress` is called after each. Those before an error stay."""
        for transaction in transactions:
            with self._room():
                self._take(transaction, open_blob)
            progress()

    def _take(self, transaction: Any, open_blob: OpenBlob | None) -> None:
        self.storage.tpc_begin(transaction, transaction.tid, transaction.status)
        try:
            for record in last_records(transaction).values():
                if open_blob is None or not is_blob_record(record.data):
                    self._restore(record, transaction)
                else:
                    self._restore_blob(record, open_blob, transaction)
            self.storage.tpc_vote(transaction)
        except BaseException:
            self.storage.tpc_abort(transaction)
            raise
        self.storage.tpc_finish(transaction)

    def _restore(self, record: Any, transaction: Any) -> None:
        self.storage.restore(record.oid, record.tid, record.data, "", record.data_txn, transaction)

    def _restore_blob(self, record: Any, open_blob: OpenBlob, transaction: Any) -> None:
        if not IBlobStorageRestoreable.providedBy(self.storage):
            raise CommandError(
                f"{self.name} takes no blobs, and object {record.oid.hex()} of transaction {record.tid.hex()} is "
                "one: what came before it is there. It needs a directory for blobs (--blob-dir for a Data.fs)"
            )
        try:
            source = open_blob(record.oid, record.tid)
        except POSKeyError:
            self._restore(record, transaction)  # the source has none
            return
        with source:
            file = self._copy(source)
        try:
            self.storage.restoreBlob(record.oid, record.tid, record.data, str(file), record.data_txn, transaction)
        finally:
            file.unlink(missing_ok=True)  # most storages take it away

    def _copy(self, source: Any) -> Path:
        """On disk, in a file that the storage may take away."""
        with tempfile.NamedTemporaryFile(
            dir=self.storage.temporaryDirectory(), prefix=COPY_PREFIX, delete=False
        ) as file:
            try:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                Path(file.name).unlink()
                raise
        return Path(file.name)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CommandError(
                f"no room for {self.name}: {error.strerror}. What came before is there: with room, the same again "
                "goes on"
            ) from error


def last_records(transaction: Any) -> dict[bytes, Any]:
    """A transaction's records by oid. Several undos in one transaction may have left it more than one record of an
    object: the last one is the object's state, and the only one that counts."""
    records: dict[bytes, Any] = {}
    for record in transaction:
        records.pop(record.oid, None)
        records[record.oid] = record
    return records


# ---- from text -------------------------------------------------------------------------------------------------


def open_source(text: str, blob_dir: Path | None = None) -> Place:
    """CommandError when there is no such place, or it is none that can be read through."""
    path = Path(text)
    if _is_uri(text):
        return _readable(Place(text, _open_uri(text)))
    if not path.is_file():
        raise CommandError(f"no such file: {text}", 2)
    try:
        return FilePlace(path, blob_dir)
    except NotADataFile:
        return _readable(Place(text, _open_config(path)))


def _readable(place: Place) -> Place:
    if not (IStorageIteration.providedBy(place.storage) or _parts(place.storage)):
        with place:
            raise CommandError(f"{place.name} cannot be read through (it has no iterator)", 2)
    return place


def open_other_target(text: str) -> Target | None:
    """What a URI or a configuration file names; None: `text` is to be the path of a Data.fs."""
    path = Path(text)
    if _is_uri(text):
        return Target(text, _open_uri(text))
    if path.is_file() and not is_data_file(path):
        return Target(text, _open_config(path))
    return None


def is_data_file(path: Path) -> bool:
    """Whether it begins as a Data.fs does; an empty file will be one."""
    try:
        DataFile(path).close()
    except NotADataFile:
        return path.stat().st_size == 0
    return True


def _is_uri(text: str) -> bool:
    return "://" in text or text.startswith("demo:(")


def _open_uri(text: str) -> Any:
    try:
        import zodburi
    except ImportError:
        raise CommandError(f"{text} needs zodburi: pip install zodburi", 2) from None
    try:
        return zodburi.resolve_uri(text)[0]()
    except (KeyError, ValueError) as error:
        if isinstance(error, POSKeyError):
            raise
        raise CommandError(f"{text}: {error.args[0] if error.args else error}", 2) from None


def _open_config(path: Path) -> Any:
    from io import StringIO

    import ZConfig
    from ZODB.config import ZODBDatabase

    try:
        config, _ = ZConfig.loadConfig(ZConfig.loadSchemaFile(StringIO(_SCHEMA)), str(path.absolute()))
    except (ZConfig.ConfigurationError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is neither a Data.fs nor a configuration file: {error}", 2) from None
    found = [*config.databases, *config.storages]
    if len(found) != 1:
        raise CommandError(f"{path} has {len(found)} databases and storages, not one", 2)
    (factory,) = found
    return (factory.config.storage if isinstance(factory, ZODBDatabase) else factory).open()
