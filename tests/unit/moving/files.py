"""Data.fs files for the tests of moving: with undo, packed, with blobs, and cut to pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.ops import transfer
from raftstorage.ops.moving.copying import Outcome
from rich.console import Console
from ZODB.FileStorage import FileIterator, FileStorage


def make(path: Path, count: int = 7) -> Path:
    """`count` changes of one object, each with a user and an extension; an object that comes and is undone; and
    the last change undone: records with back pointers, and one without data."""
    db = ZODB.DB(FileStorage(str(path)))
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    root = connection.root()
    root["m"], root["other"] = PersistentMapping(), PersistentMapping()
    manager.commit()
    for n in range(count):
        change(root, manager, n)
    manager.get().note("an object that will not have been")
    root["late"] = PersistentMapping(x=1)
    manager.commit()
    db.undo(db.undoInfo(0, 1)[0]["id"], manager.get())
    manager.commit()
    db.undo(db.undoInfo(2, 3)[0]["id"], manager.get())
    manager.commit()
    connection.close()
    db.close()
    return path


def change(root: Any, manager: Any, n: int) -> None:
    current = manager.get()
    current.user = f"user {n} größer"
    current.note(f"number {n}")
    current.setExtendedInfo("n", n)
    root["m"][n] = "x" * n
    manager.commit()


def more(path: Path, start: int, count: int) -> None:
    """Further changes, from number `start` on."""
    db = ZODB.DB(FileStorage(str(path)))
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    for n in range(start, start + count):
        change(connection.root(), manager, n)
    connection.close()
    db.close()


def content(transactions: Any) -> list[tuple[Any, ...]]:
    """All that transactions hold, hints of undo included."""
    return [
        (
            t.tid, _status(t.status), t.user, t.description, t.extension_bytes,
            [(r.oid, r.tid, r.data, r.data_txn) for r in t],
        )
        for t in transactions
    ]  # fmt: skip


def _status(status: str | bytes) -> str:
    return status if isinstance(status, str) else status.decode()


def content_of(path: Path) -> list[tuple[Any, ...]]:
    return content(FileIterator(str(path)))


def offsets(path: Path) -> list[int]:
    """Where each transaction begins."""
    return [t._tpos for t in FileIterator(str(path))]


def bring(source: Path | str, place: str, **options: Any) -> Outcome:
    """As `raftstorage import`."""
    return transfer.import_database(str(source), place, Console(quiet=True), **options)


def take(target: Path | str, place: str, **options: Any) -> Outcome:
    """As `raftstorage export`."""
    return transfer.export_database(str(target), place, Console(quiet=True), **options)
