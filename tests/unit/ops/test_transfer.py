"""Import's and export's checks that need no cluster: sound files, damaged files, files in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.ops import transfer
from raftstorage.ops.errors import CommandError
from rich.console import Console
from ZODB.blob import Blob
from ZODB.FileStorage import FileIterator, FileStorage

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def data_fs(tmp_path: Path) -> Path:
    """Ten transactions, one of them an undo: records with back pointers are in it."""
    path = tmp_path / "Data.fs"
    db = ZODB.DB(FileStorage(str(path)))
    with db.transaction() as connection:
        connection.root()["m"] = PersistentMapping()
    for n in range(7):
        with db.transaction(note=f"number {n}") as connection:
            connection.root()["m"][n] = "x" * n
    db.undo(db.undoInfo(0, 1)[0]["id"])
    transaction.commit()
    db.close()
    return path


def check(path: Path) -> transfer.Totals:
    with transfer._progress(Console(quiet=True)) as progress:
        return transfer._check_file(path, progress)


def test_a_sound_files_bytes_are_all_accounted_for(data_fs: Path) -> None:
    totals = check(data_fs)
    assert totals.transactions == 10
    assert totals.file_bytes == data_fs.stat().st_size


def test_equal_histories_have_equal_digests_and_others_do_not(data_fs: Path) -> None:
    whole, again, part = check(data_fs), check(data_fs), transfer.Totals()
    assert whole.digest() == again.digest()
    for transaction_ in list(FileIterator(str(data_fs)))[:0]:
        part.add(transaction_)
    with pytest.raises(CommandError, match="holds 0 transactions with 0 records, not 10"):
        transfer._compare(whole, part, "it")
    again._feed(b"")
    with pytest.raises(CommandError, match="not the same"):
        transfer._compare(whole, again, "it")


@pytest.mark.parametrize("cut", [1, 8, 9, 60])
def test_a_cut_file_is_refused_before_anything_is_written(data_fs: Path, cut: int) -> None:
    data_fs.write_bytes(data_fs.read_bytes()[:-cut])
    # Nobody listens at NOWHERE: a connection would fail with another error.
    with pytest.raises(CommandError, match=r"damaged|not a sound"):
        transfer.import_file(data_fs, NOWHERE, Console(quiet=True))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam")
    with pytest.raises(CommandError, match="not a sound"):
        transfer.import_file(path, NOWHERE, Console(quiet=True))
    with pytest.raises(CommandError, match="no such file"):
        transfer.import_file(tmp_path / "missing", NOWHERE, Console(quiet=True))


def test_a_damaged_middle_is_refused(data_fs: Path) -> None:
    data = bytearray(data_fs.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = b"\xff" * 64
    data_fs.write_bytes(data)
    with pytest.raises(CommandError, match=r"damaged|not a sound|not above"):
        transfer.import_file(data_fs, NOWHERE, Console(quiet=True))


def test_blobs_are_refused_and_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "Data.fs"
    db = ZODB.DB(FileStorage(str(path), blob_dir=str(tmp_path / "blobs")))
    with db.transaction() as connection:
        connection.root()["b"] = Blob(b"bytes")
    db.close()
    with pytest.raises(CommandError, match="blob"):
        transfer.import_file(path, NOWHERE, Console(quiet=True))


def test_an_export_leaves_an_existing_file_alone(data_fs: Path) -> None:
    before = data_fs.read_bytes()
    with pytest.raises(CommandError, match="exists already") as caught:
        transfer.export_file(data_fs, NOWHERE, Console(quiet=True))
    assert caught.value.exit_code == 2
    assert data_fs.read_bytes() == before


def test_a_file_that_appears_during_the_export_is_left_alone(tmp_path: Path) -> None:
    partial, path = tmp_path / "Data.fs.part", tmp_path / "Data.fs"
    partial.write_text("new")
    path.write_text("old")
    with pytest.raises(CommandError, match="left alone"):
        transfer._publish(partial, path)
    assert path.read_text() == "old"
