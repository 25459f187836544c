"""Blobs come along: with their files, their history, an undo, and a packed past; what is missing is told."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.ops.errors import CommandError
from raftstorage.ops.moving.places import FilePlace
from ZODB.blob import Blob, FilesystemHelper
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf

from tests.unit.moving.files import bring, content_of, take

LARGE = os.urandom(700_000)
#: Revisions with a blob that `make_with_blobs` makes.
BLOBS = 6


def make_with_blobs(path: Path) -> tuple[Path, Path]:
    """The file, and its directory of blobs: of several sizes, changed, undone (one with its creation), empty."""
    blobs = path.with_name(path.name + "-blobs")
    db = ZODB.DB(FileStorage(str(path), blob_dir=str(blobs)))
    with db.transaction() as connection:
        connection.root()["large"], connection.root()["small"] = Blob(LARGE), Blob(b"small")
        connection.root()["empty"] = Blob(b"")
    with db.transaction() as connection, connection.root()["small"].open("w") as file:
        file.write(b"small, changed")
    with db.transaction() as connection:
        connection.root()["no blob"] = PersistentMapping(x=1)
    _undo(db, 1)
    with db.transaction() as connection:
        connection.root()["late"] = Blob(b"that will not have been")
    _undo(db, 0)
    db.close()
    return path, blobs


def _undo(db: Any, back: int) -> None:
    db.undo(db.undoInfo(back, back + 1)[0]["id"])
    transaction.commit()


def add_blob(path: Path, blobs: Path, name: str, data: bytes) -> None:
    db = ZODB.DB(FileStorage(str(path), blob_dir=str(blobs)))
    with db.transaction() as connection:
        connection.root()[name] = Blob(data)
    db.close()


def files(blobs: Path) -> dict[tuple[str, str], bytes]:
    """Each committed blob's bytes, by oid and tid."""
    helper = FilesystemHelper(str(blobs))
    found = {}
    for oid, _ in helper.listOIDs():
        for tid_of_file in Path(helper.getPathForOID(oid)).glob("*.blob"):
            found[oid.hex(), tid_of_file.stem] = tid_of_file.read_bytes()
    return found


def test_in_and_out_again_they_are_the_same(tmp_path: Path, place: str) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    outcome = bring(path, place, blob_dir=blobs)
    assert outcome.problems == []
    assert outcome.copied.blobs == outcome.compared.blobs == BLOBS
    out, out_blobs = tmp_path / "out.fs", tmp_path / "out-blobs"
    outcome = take(out, place, blob_dir=out_blobs, verify=True)
    assert outcome.compared.blobs == BLOBS
    assert content_of(out) == content_of(path)
    records = [record for each in content_of(path) for record in each[5]]
    assert any(record[3] for record in records), "no undo is in it"
    assert any(record[2] is None for record in records), "no undone creation is in it"
    assert files(out_blobs) == files(blobs)
    assert sorted(map(len, files(blobs).values())) == [0, 5, 5, 14, 23, len(LARGE)]
    db = ZODB.DB(FileStorage(str(out), blob_dir=str(out_blobs)))
    with db.transaction() as connection, connection.root()["small"].open() as file:
        assert file.read() == b"small"
    db.close()


def test_without_their_directory_nothing_is_brought(
    tmp_path: Path, place: str, stored: Callable[[], list[Any]]
) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    with pytest.raises(CommandError, match=r"is a blob, .* give --blob-dir") as caught:
        bring(path, place)
    assert caught.value.exit_code == 1
    with pytest.raises(CommandError, match="no such directory"):
        bring(path, place, blob_dir=tmp_path / "missing")
    bring(path, place, blob_dir=blobs)
    with pytest.raises(CommandError, match="takes no blobs"):
        take(tmp_path / "out.fs", place)
    assert not (tmp_path / "out.fs").exists()
    assert bring(path, place, verify=True).notes == [
        f"{BLOBS} blobs were not compared: one side was opened without them"
    ]
    take(tmp_path / "out.fs", place, blob_dir=tmp_path / "out-blobs")
    assert len(stored()) == len(content_of(tmp_path / "out.fs"))


def test_a_missing_file_is_told_and_a_wrong_one_found(tmp_path: Path, place: str) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    found = [each for each in blobs.rglob("*.blob") if each.stat().st_size == len(LARGE)]
    found[0].chmod(0o600)
    found[0].rename(tmp_path / "kept")
    outcome = bring(path, place, blob_dir=blobs)
    (problem,) = outcome.problems
    assert "is a blob whose file is missing" in problem
    assert outcome.copied.blobs == BLOBS - 1
    (tmp_path / "kept").rename(found[0])
    with pytest.raises(CommandError, match=r"the blob of object .* is missing in the database"):
        bring(path, place, blob_dir=blobs, verify=True)


def test_a_blob_that_differs_is_found(tmp_path: Path, place: str) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    bring(path, place, blob_dir=blobs)
    found = next(each for each in blobs.rglob("*.blob") if each.stat().st_size == len(LARGE))
    found.chmod(0o600)
    found.write_bytes(LARGE[:-1] + b"!" if LARGE[-1:] != b"!" else LARGE[:-1] + b"?")
    with pytest.raises(CommandError, match=r"the blob of object .* differs in the database"):
        bring(path, place, blob_dir=blobs, verify=True)


def test_what_is_new_comes_too(tmp_path: Path, place: str) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    out, out_blobs = tmp_path / "out.fs", tmp_path / "out-blobs"
    bring(path, place, blob_dir=blobs)
    take(out, place, blob_dir=out_blobs)
    add_blob(path, blobs, "new", LARGE[::-1])
    outcome = bring(path, place, blob_dir=blobs)
    assert outcome.copied.blobs == outcome.compared.blobs == 1
    outcome = take(out, place, blob_dir=out_blobs)
    assert outcome.copied.blobs == outcome.compared.blobs == 1
    assert content_of(out) == content_of(path)
    assert files(out_blobs) == files(blobs)


def test_an_import_that_breaks_off_at_a_blob_goes_on(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    opened = FilePlace._open
    asked = []

    def breaks(self: Any, oid: bytes, tid: bytes) -> Any:
        asked.append(oid)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return opened(self, oid, tid)

    monkeypatch.setattr(FilePlace, "_open", breaks)
    with pytest.raises(KeyboardInterrupt):
        bring(path, place, blob_dir=blobs)
    outcome = bring(path, place, blob_dir=blobs, verify=True)
    assert outcome.compared.blobs == BLOBS


@pytest.mark.parametrize("where", ["copying", "taking"])
def test_an_export_that_breaks_off_at_a_blob_goes_on(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    bring(path, place, blob_dir=blobs)
    out, out_blobs = tmp_path / "out.fs", tmp_path / "out-blobs"
    copy, restore = shutil.copyfileobj, FileStorage.restoreBlob
    with monkeypatch.context() as patch:

        def breaks(source: Any, file: Any, length: int = 0) -> None:
            data = source.read()
            file.write(data[:100])
            file.flush()
            if data == b"small, changed":
                raise OSError(errno.ENOSPC, "No space left on device")
            file.write(data[100:])

        def breaks_later(self: Any, oid: bytes, serial: bytes, data: bytes, filename: str, *rest: Any) -> Any:
            small = Path(filename).read_bytes() == b"small, changed"
            restore(self, oid, serial, data, filename, *rest)
            if small:
                raise KeyboardInterrupt

        if where == "copying":
            patch.setattr(shutil, "copyfileobj", breaks)
        else:
            patch.setattr(FileStorage, "restoreBlob", breaks_later)
        with pytest.raises((KeyboardInterrupt, CommandError)) as caught:
            take(out, place, blob_dir=out_blobs)
        if where == "copying":
            assert "out.fs.part: No space left on device. What came before is there" in str(caught.value)
    assert shutil.copyfileobj is copy
    assert not out.exists()
    kept = {f"0x{tid.hex()}" for tid, *_ in content_of(tmp_path / "out.fs.part")}
    more = {key: data for key, data in files(out_blobs).items() if key[1] not in kept}
    # A FileStorage itself leaves the one that it had just taken, whole, without a record.
    assert list(more.values()) == ([b"small, changed"] if where == "taking" else [])
    assert files(out_blobs).items() <= files(blobs).items()
    assert list((out_blobs / "tmp").iterdir()) == []
    (out_blobs / "tmp" / "raftstorage-copy-left").write_text("by one that was killed")
    assert take(out, place, blob_dir=out_blobs, verify=True).compared.blobs == BLOBS
    assert list((out_blobs / "tmp").iterdir()) == []
    assert content_of(out) == content_of(path)
    assert files(out_blobs) == files(blobs)


def test_only_current_blobs(tmp_path: Path, place: str) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    outcome = bring(path, place, blob_dir=blobs, current_only=True)
    assert outcome.copied.blobs == outcome.compared.blobs == 3
    db = ZODB.DB(ClientStorage(place, blob_dir=str(tmp_path / "cache")))
    with db.transaction() as connection, connection.root()["small"].open() as file:
        assert file.read() == b"small"
    db.close()


def test_a_packed_cluster_is_gone_on_with_and_comes_out(tmp_path: Path, place: str) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    bring(path, place, blob_dir=blobs)
    take(tmp_path / "before.fs", place, blob_dir=tmp_path / "before-blobs")
    storage = ClientStorage(place)
    storage.pack(2e9, referencesf)
    assert storage.lastPack() != b"\0" * 8
    storage.close()

    add_blob(path, blobs, "later 1", b"later 1")
    outcome = bring(path, place, blob_dir=blobs, verify=True)  # the source still has what was packed away here
    assert outcome.copied.transactions == 1
    outcome = take(tmp_path / "before.fs", place, blob_dir=tmp_path / "before-blobs", verify=True)
    assert outcome.copied.transactions == 1
    outcome = take(tmp_path / "after.fs", place, blob_dir=tmp_path / "after-blobs", verify=True)
    assert outcome.copied.transactions < len(content_of(path))
    assert "p" in {each[1] for each in content_of(tmp_path / "after.fs")}
    db = ZODB.DB(FileStorage(str(tmp_path / "after.fs"), blob_dir=str(tmp_path / "after-blobs")))
    with db.transaction() as connection:
        for name, data in (("large", LARGE), ("small", b"small"), ("later 1", b"later 1"), ("empty", b"")):
            with connection.root()[name].open() as file:
                assert file.read() == data
    db.close()


def test_a_configured_storage_with_blobs(tmp_path: Path, place: str, config: Callable[[str], str]) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    section = "<filestorage>\n path {}\n blob-dir {}\n</filestorage>"
    assert bring(config(section.format(path, blobs)), place).compared.blobs == BLOBS
    out = tmp_path / "out.fs", tmp_path / "out-blobs"
    assert take(config(section.format(*out)), place).compared.blobs == BLOBS
    assert files(out[1]) == files(blobs)
    relstorage = config(
        f"%import relstorage\n<relstorage>\n blob-dir {tmp_path}/rel-blobs\n shared-blob-dir true\n"
        f"<sqlite3>\n data-dir {tmp_path}/rel\n</sqlite3>\n</relstorage>"
    )
    assert take(relstorage, place).compared.blobs == BLOBS
    assert bring(relstorage, f"embedded:{tmp_path}/back", verify=True).compared.blobs == BLOBS
