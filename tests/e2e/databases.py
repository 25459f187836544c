"""A small database with everything that can be in one, and all that a database holds, to be compared."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.blob import Blob, FilesystemHelper
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileIterator
from ZODB.POSException import POSKeyError
from ZODB.utils import load_current

#: Of the large blob: several pieces on the wire.
LARGE = 3_500_000
#: Revisions that have a blob, in what `fill` makes: after its pack, and if that takes nothing.
BLOBS = 8

OpenBlob = Callable[[bytes, bytes], Any]


def fill(storage: Any, rng: random.Random) -> None:
    """Blobs of several sizes, changed and undone; undone creations; a deletion; users, texts and extensions that
    are not ASCII; and, for its older half, a pack. Closes the storage."""
    db = ZODB.DB(storage)
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    root = connection.root()

    def commit(note: str) -> None:
        current = manager.get()
        current.user, current.description = f"/ Ängström {note}", f"größer: {note}"
        current.setExtendedInfo("number", {"note": note, "x": b"\xff"})
        manager.commit()

    def undo(back: int) -> None:
        db.undo(db.undoInfo(back, back + 1)[0]["id"], manager.get())
        commit("undo")

    root["m"], root["old blob"], root["gone"] = PersistentMapping(), Blob(b"old"), PersistentMapping()
    commit("first")
    for n in range(8):
        root["m"][n] = "x" * n
        if n % 3 == 0:
            with root["old blob"].open("w") as file:
                file.write(b"old %d" % n)
        commit(f"before the pack {n}")
    del root["gone"]
    commit("garbage")
    db.pack()

    root["large"], root["small"], root["empty"] = Blob(rng.randbytes(LARGE)), Blob(b"small"), Blob(b"")
    commit("blobs")
    with root["small"].open("w") as file:
        file.write(b"small, changed")
    commit("a blob changed")
    root["m"]["after"] = 1
    commit("something else")
    undo(1)
    root["late"] = Blob(b"that will not have been")
    commit("a blob too much")
    undo(0)
    root["m"]["again"] = 2
    commit("the mapping again")
    undo(0)
    root["doomed"] = Blob(b"doomed")
    commit("doomed")
    doomed = root["doomed"]
    oid = doomed._p_oid
    del root["doomed"]
    commit("no reference any more")
    connection.close()
    delete(db.storage, oid)
    db.close()


def delete(storage: Any, oid: bytes) -> None:
    """Removes an object, as zc.zodbdgc does."""
    serial = load_current(storage, oid)[1]
    current = TransactionMetaData("gc", "deletes", {})
    storage.tpc_begin(current)
    storage.deleteObject(oid, serial, current)
    storage.tpc_vote(current)
    storage.tpc_finish(current)


def everything(transactions: Any, open_blob: OpenBlob) -> list[tuple[Any, ...]]:
    """Each transaction with its records, by oid, and the digests of their blobs. (An application of ZEO's stores a
    new blob twice in a transaction: an object's last record counts.)"""
    return [
        (
            each.tid, text(each.status), text(each.user), text(each.description), each.extension_bytes,
            sorted(
                (r.oid, r.tid, r.data, r.data_txn, digest(open_blob, r.oid, r.tid))
                for r in {r.oid: r for r in each}.values()
            ),
        )
        for each in transactions
    ]  # fmt: skip


def of_file(path: Path, blobs: Path) -> list[tuple[Any, ...]]:
    helper = FilesystemHelper(str(blobs))

    def open_blob(oid: bytes, tid: bytes) -> Any:
        return Path(helper.getBlobFilename(oid, tid)).open("rb")

    return everything(FileIterator(str(path)), open_blob)


def of_storage(storage: Any) -> list[tuple[Any, ...]]:
    return everything((t for t in storage.iterator() if t.tid != b"\0" * 8), storage.openCommittedBlobFile)


def without_hints(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Without data_txn, which not every storage keeps."""
    return [(*each[:5], [(*record[:3], *record[4:]) for record in each[5]]) for each in found]


def blobs_in(found: list[tuple[Any, ...]]) -> int:
    return sum(1 for each in found for record in each[5] if record[4] is not None)


def text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


def digest(open_blob: OpenBlob, oid: bytes, tid: bytes) -> bytes | None:
    try:
        with open_blob(oid, tid) as file:
            return hashlib.sha256(file.read()).digest()
    except (POSKeyError, FileNotFoundError):
        return None
