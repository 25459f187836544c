"""`raftstorage import` and `raftstorage export`: whole databases in and out of ZODB's Data.fs format.

Transactions keep their tids, metadata and records. What arrived is compared with what was sent, by a digest over
everything that a transaction holds, before either command says that it is done.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raftstorage.ops.errors import CommandError, require_zodb
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from raftstorage.client import ClientStorage

_Z64 = b"\0" * 8
# Data.fs: a transaction's header and repeated length; a record's header; a back pointer (ZODB's format.py).
_TRANSACTION_BYTES = 23 + 8
_RECORD_BYTES = 42
_POINTER_BYTES = 8
_MAGIC_BYTES = 4


@dataclass
class Totals:
    """What was seen of a database. `file_bytes`: what it takes in a Data.fs."""

    transactions: int = 0
    records: int = 0
    file_bytes: int = _MAGIC_BYTES
    last_tid: bytes = _Z64

    def __post_init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, transaction: Any) -> int:
        """Counts one transaction of an iterator, records and all; its bytes in a Data.fs.

        Several undos in one transaction may have left it more than one record of an object: the last one is the
        object's state, and the only one that counts.
        """
        user, description = _as_bytes(transaction.user), _as_bytes(transaction.description)
        extension = transaction.extension_bytes
        size = _TRANSACTION_BYTES + len(user) + len(description) + len(extension)
        self._feed(transaction.tid, _as_bytes(transaction.status), user, description, extension)
        records: dict[bytes, Any] = {}
        for record in transaction:
            repeats = record.data is None or record.data_txn is not None
            size += _RECORD_BYTES + (_POINTER_BYTES if repeats else len(record.data))
            records.pop(record.oid, None)
            records[record.oid] = record
        for record in records.values():
            self._feed(record.oid, record.tid, b"-" if record.data is None else b"+" + record.data)
        self._feed(b"end")
        self.records += len(records)
        self.transactions += 1
        self.file_bytes += size
        self.last_tid = transaction.tid
        return size

    def _feed(self, *parts: bytes) -> None:
        for part in parts:
            self._hash.update(len(part).to_bytes(8, "big") + part)

    def digest(self) -> str:
        """SHA-256 over all that was counted, in order; equal for equal histories."""
        return self._hash.hexdigest()


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


class _Source:
    """An `other` for copyTransactionsFrom: `iterator()` gives what `open_iterator` does, counting it."""

    def __init__(self, open_iterator: Callable[[], Any], on_transaction: Callable[[int], None]) -> None:
        self._open_iterator = open_iterator
        self._on_transaction = on_transaction
        self.totals = Totals()

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> Iterator[Any]:
        del start, stop  # copyTransactionsFrom asks for everything
        for transaction in self._open_iterator():
            yield transaction
            self._on_transaction(self.totals.add(transaction))


def import_file(path: Path, addresses: str, console: Console, wait_timeout: float = 30.0) -> Totals:
    """Copies the Data.fs at `path` into the empty cluster at `addresses`, and compares.

    CommandError when the file is no sound Data.fs or holds blobs, or when the database is not empty: nothing was
    written then. Also when the cluster cannot be reached, or holds something else afterwards.
    """
    require_zodb("raftstorage import")
    if not path.is_file():
        raise CommandError(f"no such file: {path}", 2)
    with _progress(console) as progress:
        expected = _check_file(path, progress)
        with _Client(addresses, wait_timeout) as storage:
            newest = storage.lastTransaction()
            if newest != _Z64:
                raise CommandError(
                    f"the database at {addresses} is not empty (last transaction {newest.hex()}): "
                    "an import wants a new one",
                    2,
                )
            task = progress.add_task("importing", total=expected.file_bytes, completed=_MAGIC_BYTES)
            source = _Source(lambda: _file_iterator(path), lambda size: progress.advance(task, size))
            storage.copyTransactionsFrom(source)
            task = progress.add_task("verifying", total=expected.file_bytes, completed=_MAGIC_BYTES)
            arrived = Totals()
            for transaction in storage.iterator():
                progress.advance(task, arrived.add(transaction))
    _compare(expected, arrived, "the cluster")
    return arrived


def export_file(path: Path, addresses: str, console: Console, wait_timeout: float = 30.0) -> Totals:
    """Copies the database at `addresses`, as of now, into a new Data.fs at `path`.

    The file appears under its name only when it is whole and on disk. CommandError when there is one already, when
    the cluster cannot be reached, or when the copy is not equal.
    """
    require_zodb("raftstorage export")
    from ZODB.FileStorage import FileStorage

    if path.exists():
        raise CommandError(f"{path} exists already: an export never writes over a file", 2)
    if not path.absolute().parent.is_dir():
        raise CommandError(f"no such directory: {path.absolute().parent}", 2)
    partial = path.with_name(path.name + ".part")
    try:
        with _progress(console) as progress:
            with _Client(addresses, wait_timeout, read_only=True) as storage:
                last = storage.lastTransaction()
                if last == _Z64:
                    raise CommandError(f"the database at {addresses} is empty", 1)
                task = progress.add_task("exporting", total=max(storage.getSize(), 1))
                source = _Source(lambda: storage.iterator(None, last), lambda size: progress.advance(task, size))
                target = FileStorage(str(partial), create=True)
                try:
                    target.copyTransactionsFrom(source)
                finally:
                    target.close()
                progress.update(task, total=source.totals.file_bytes, completed=source.totals.file_bytes)
            written = _check_file(partial, progress, "verifying")
        _compare(source.totals, written, str(path))
        _publish(partial, path)
    finally:
        for suffix in ("", ".index", ".lock", ".tmp", ".old"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
    return written


def _publish(partial: Path, path: Path) -> None:
    """Gives the finished file its name; an error, not an overwrite, when that was taken meanwhile."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(partial, path)
    except FileExistsError:
        raise CommandError(f"{path} came into being during the export: it was left alone", 1) from None
    descriptor = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_iterator(path: Path) -> Any:
    from ZODB.FileStorage import FileIterator

    return FileIterator(str(path))


def _check_file(path: Path, progress: Progress, title: str = "checking") -> Totals:
    """Reads a whole Data.fs. CommandError when it is damaged, unfinished, out of order or has blobs."""
    from ZODB.blob import is_blob_record
    from ZODB.FileStorage.FileStorage import FileStorageFormatError
    from ZODB.FileStorage.format import CorruptedError
    from ZODB.POSException import POSError

    size = path.stat().st_size
    task = progress.add_task(title, total=size)
    totals = Totals()
    try:
        for transaction in _file_iterator(path):
            if transaction.tid <= totals.last_tid:
                raise CommandError(f"{path}: transaction {transaction.tid.hex()} is not above the one before it")
            for record in transaction:
                if record.data is not None and is_blob_record(record.data):
                    raise CommandError(f"{path}: object {record.oid.hex()} is a blob, which is not supported yet")
            progress.advance(task, totals.add(transaction))
    except (CorruptedError, FileStorageFormatError, POSError, ValueError) as error:
        raise CommandError(f"{path} is not a sound Data.fs: {type(error).__name__}: {error}") from error
    if totals.file_bytes != size:
        raise CommandError(
            f"{path} is damaged or unfinished: it has {size} bytes, its transactions make {totals.file_bytes}"
        )
    progress.update(task, completed=size)
    return totals


def _compare(expected: Totals, arrived: Totals, where: str) -> None:
    if (expected.transactions, expected.records) != (arrived.transactions, arrived.records):
        raise CommandError(
            f"{where} holds {arrived.transactions} transactions with {arrived.records} records, "
            f"not {expected.transactions} with {expected.records}"
        )
    if expected.digest() != arrived.digest():
        raise CommandError(f"{where} holds as many transactions, but not the same")


class _Client:
    """A ClientStorage as a context manager that has seen everything committed before it was opened."""

    def __init__(self, addresses: str, wait_timeout: float, *, read_only: bool = False) -> None:
        self._addresses = addresses
        self._options: dict[str, Any] = {"read_only": read_only, "wait_timeout": wait_timeout}

    def __enter__(self) -> ClientStorage:
        from raftstorage.client import ClientStorage

        self._storage = ClientStorage(self._addresses, consistency="linearizable", **self._options)
        try:
            self._storage.sync()
        except BaseException:
            self._storage.close()
            raise
        return self._storage

    def __exit__(self, *exception: object) -> None:
        self._storage.close()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:10}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
    )
