"""A pack of one side is no difference, whatever it took; and whatever else is missing is."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from persistent.TimeStamp import TimeStamp
from raftstorage.client import ClientStorage
from raftstorage.ops.errors import CommandError
from raftstorage.ops.moving.comparing import Counts, Side, compare
from raftstorage.ops.moving.packed import Different
from raftstorage.ops.moving.places import FilePlace
from ZODB.FileStorage import FileIterator, FileStorage
from ZODB.serialize import referencesf

from tests.unit.moving.files import bring, content_of, make, more, take

Z64 = b"\0" * 8


def history(path: Path, rng: random.Random, steps: int) -> Path:
    """Objects that come, change, refer to each other, become garbage, and are undone."""
    db = ZODB.DB(FileStorage(str(path)))
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    root = connection.root()
    for n in range(steps):
        name = f"object {rng.randrange(6)}"
        match rng.choice(["new", "change", "change", "drop", "undo", "nothing"]):
            case "new":
                root[name] = PersistentMapping(n=n, inner=PersistentMapping(n=n), peer=root.get("object 0"))
            case "change" if name in root:
                root[name]["inner"]["n"] = root[name]["n"] = n
            case "drop":
                root.pop(name, None)
            case "undo" if len(db.undoInfo(0, 5)) == 5:
                db.undo(db.undoInfo(0, 1)[0]["id"], manager.get())
        manager.get().note(f"step {n}")
        manager.commit()
    connection.close()
    db.close()
    return path


def tids(path: Path) -> list[bytes]:
    return [each.tid for each in FileIterator(str(path))]


def pack(path: Path, tid: bytes) -> None:
    storage = FileStorage(str(path))
    storage.pack(TimeStamp(tid).timeTime() + 1e-6, referencesf)
    storage.close()


def without(path: Path, target: Path, left_out: Container[tuple[bytes, bytes]]) -> Path:
    """The same without some records, and without transactions that have none left."""
    storage = FileStorage(str(target))
    for each in FileIterator(str(path)):
        records = [record for record in each if (record.oid, record.tid) not in left_out]
        if not records and any(True for _ in each):
            continue
        storage.tpc_begin(each, each.tid, each.status)
        for record in records:
            storage.restore(record.oid, record.tid, record.data, "", None, each)
        storage.tpc_vote(each)
        storage.tpc_finish(each)
    storage.close()
    return target


def what_must_be_left(whole: Path, packed: Path, at: bytes) -> list[tuple[bytes, bytes]]:
    """What nobody could take for packed away if it were not there. (A FileStorage leaves more: what was replaced
    as long as a later undo repeats it, garbage that came after the pack.)"""
    transactions = content_of(packed)
    records = [record for each in transactions for record in each[5]]
    current = {record[0]: tid for tid, *_, found in content_of(whole) for record in found if tid <= at}
    there = [(record[0], record[2]) for record in records if record[1] <= at and record[2]]
    first_later = next((each[0] for each in transactions if each[0] > at), b"")
    return [
        (oid, tid)
        for oid, tid, data, _ in records
        if tid > first_later
        or (
            tid == current.get(oid)
            and data is not None
            and (oid == Z64 or any(oid in referencesf(data) for other, data in there if other != oid))
        )
    ]


def dangling(path: Path) -> bool:
    records = [record for each in FileIterator(str(path)) for record in each if record.data]
    there = {record.oid for record in records}
    return any(oid not in there for record in records for oid in referencesf(record.data))


def compared(one: Path, other: Path) -> Counts:
    with FilePlace(one, None) as left, FilePlace(other, None) as right:
        return compare(Side(left, left.transactions()), Side(right, right.transactions()))


@pytest.mark.parametrize("number", range(12))
def test_any_pack_is_no_difference_and_any_loss_is_one(tmp_path: Path, rng: random.Random, number: int) -> None:
    while True:
        whole, packed = history(tmp_path / "whole.fs", rng, 30), tmp_path / "packed.fs"
        shutil.copy(whole, packed)
        at = rng.choice(tids(whole)[-9:])
        pack(packed, at)
        if not dangling(packed):
            break
        # A FileStorage forgot what an object refers to that an undo behind the pack brought back: really a loss.
        for file in tmp_path.iterdir():
            file.unlink()
    compared(whole, packed)
    counts = compared(packed, whole)
    assert counts.transactions == len(content_of(packed)) <= len(content_of(whole))
    needed = what_must_be_left(whole, packed, at)
    for n, lost in enumerate(rng.sample(needed, min(6, len(needed)))):
        less = without(packed, tmp_path / f"less-{n}.fs", {lost})
        with pytest.raises(Different):
            compared(less, whole)
        with pytest.raises(Different):
            compared(whole, less)


def test_what_is_lost_is_told_with_its_reason(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.fs")
    packed = tmp_path / "packed.fs"
    shutil.copy(whole, packed)
    pack(packed, tids(whole)[-1])
    newest = {record.oid: record.tid for each in FileIterator(str(packed)) for record in each}
    root, mapping = Z64, (1).to_bytes(8)
    less = without(packed, tmp_path / "less.fs", {(mapping, newest[mapping])})
    with pytest.raises(Different, match=rf"no pack should have taken it: object {root.hex()} refers to it"):
        compared(whole, less)
    more(packed, 50, 2)
    shutil.copy(packed, tmp_path / "later.fs")
    less = without(packed, tmp_path / "less-2.fs", {(mapping, newest[mapping])})
    with pytest.raises(Different, match=r"object 0000000000000000 refers to it"):
        compared(tmp_path / "later.fs", less)


def test_behind_the_pack_nothing_may_be_missing(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.fs")
    pack(whole, tids(whole)[-1])
    more(whole, 50, 3)
    lost = tids(whole)[-2]
    less = without(whole, tmp_path / "less.fs", {(r.oid, r.tid) for t in FileIterator(str(whole)) for r in t
                                                 if r.tid == lost})  # fmt: skip
    with pytest.raises(Different, match=rf"has transaction {lost.hex()}"):
        compared(whole, less)


# ---- whole copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone_on", [0, 3])
def test_a_packed_cluster_is_still_a_copy(tmp_path: Path, rng: random.Random, place: str, gone_on: int) -> None:
    path = history(tmp_path / "Data.fs", rng, 40)
    bring(path, place)
    storage = ClientStorage(place)
    storage.pack(TimeStamp(rng.choice(tids(path)[-9:])).timeTime() + 1e-6, referencesf)
    storage.close()
    if gone_on:
        make(tmp_path / "other.fs")
        db = ZODB.DB(FileStorage(str(path)))
        for n in range(gone_on):
            with db.transaction() as connection:
                connection.root()["more"] = PersistentMapping(n=n)
        db.close()
    outcome = bring(path, place, verify=True)
    assert outcome.copied.transactions == gone_on
    assert 0 < outcome.compared.transactions < len(content_of(path))


@pytest.mark.parametrize("kind", ["path", "configuration"])
def test_a_source_that_was_packed_is_gone_on_with(
    tmp_path: Path, rng: random.Random, place: str, config: Callable[[str], str], kind: str
) -> None:
    """Also where nothing but its transactions say that it was packed."""
    path = history(tmp_path / "Data.fs", rng, 40)
    bring(path, place)
    pack(path, tids(path)[-1])
    before = len(content_of(path))
    db = ZODB.DB(FileStorage(str(path)))
    with db.transaction() as connection:
        connection.root()["more"] = PersistentMapping()
    db.close()
    source: Any = path if kind == "path" else config(f"<filestorage>\n path {path}\n</filestorage>")
    outcome = bring(source, place, verify=True)
    assert outcome.copied.transactions == 1
    assert outcome.compared.transactions == before + 1


def test_a_packed_database_of_something_else_is_refused(tmp_path: Path, place: str) -> None:
    """All that the database has is older than the pack, and none of it is in the source."""
    bring(make(tmp_path / "other.fs"), place)
    before = tmp_path / "before.fs"
    take(before, place)
    path = make(tmp_path / "Data.fs")
    pack(path, tids(path)[-1])
    with pytest.raises(CommandError, match=r"has no transaction that .* Nothing was") as caught:
        bring(path, place)
    assert caught.value.exit_code == 2
    assert take(before, place, verify=True).copied.transactions == 0


def test_a_loss_in_a_packed_cluster_is_found(tmp_path: Path, place: str) -> None:
    """The cluster was filled from a copy that had lost a record, and packed."""
    path = make(tmp_path / "Data.fs")
    newest = [(record.oid, record.tid) for each in FileIterator(str(path)) for record in each]
    lost = next(key for key in reversed(newest) if key[0] == (2).to_bytes(8))
    bring(without(path, tmp_path / "less.fs", {lost}), place)
    storage = ClientStorage(place)
    storage.pack(2e9, referencesf)
    storage.close()
    with pytest.raises(CommandError, match=rf"object {lost[0].hex()} .* no pack should have taken it"):
        bring(path, place, verify=True)
