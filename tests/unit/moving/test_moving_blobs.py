"""Blobs come along: with their files, their history, an undo, and a packed past; what is missing is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.ops.errors import CommandError
from ZODB.blob import Blob, FilesystemHelper
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf

from tests.unit.moving.files import bring, content_of, take

LARGE = os.urandom(700_000)


def make_with_blobs(path: Path) -> tuple[Path, Path]:
    """The file, and its directory of blobs: of several sizes, changed, undone, and an empty one."""
    blobs = path.with_name(path.name + "-blobs")
    db = ZODB.DB(FileStorage(str(path), blob_dir=str(blobs)))
    with db.transaction() as connection:
        connection.root()["large"], connection.root()["small"] = Blob(LARGE), Blob(b"small")
        connection.root()["empty"] = Blob(b"")
    with db.transaction() as connection, connection.root()["small"].open("w") as file:
        file.write(b"small, changed")
    with db.transaction() as connection:
        connection.root()["no blob"] = PersistentMapping(x=1)
    db.undo(db.undoInfo(1, 2)[0]["id"])
    transaction.commit()
    db.close()
    return path, blobs


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
    assert outcome.copied.blobs == outcome.compared.blobs == 5
    out, out_blobs = tmp_path / "out.fs", tmp_path / "out-blobs"
    outcome = take(out, place, blob_dir=out_blobs, verify=True)
    assert outcome.compared.blobs == 5
    assert content_of(out) == content_of(path)
    assert files(out_blobs) == files(blobs)
    assert sorted(map(len, files(blobs).values())) == [0, 5, 5, 14, len(LARGE)]
    db = ZODB.DB(FileStorage(str(out), blob_dir=str(out_blobs)))
    with db.transaction() as connection, connection.root()["small"].open() as file:
        assert file.read() == b"small"
    db.close()


def test_without_their_directory_nothing_is_brought(
    tmp_path: Path, place: str, stored: Callable[[], list[Any]]
) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    with pytest.raises(CommandError, match="is a blob: give --blob-dir") as caught:
        bring(path, place)
    assert caught.value.exit_code == 2
    with pytest.raises(CommandError, match="no such directory"):
        bring(path, place, blob_dir=tmp_path / "missing")
    bring(path, place, blob_dir=blobs)
    with pytest.raises(CommandError, match="takes no blobs"):
        take(tmp_path / "out.fs", place)
    assert not (tmp_path / "out.fs").exists()
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
    assert outcome.copied.blobs == 4
    (tmp_path / "kept").rename(found[0])
    with pytest.raises(CommandError, match="the copy is not equal: the blob of object .* is missing in the database"):
        bring(path, place, blob_dir=blobs, verify=True)


def test_a_blob_that_differs_is_found(tmp_path: Path, place: str) -> None:
    path, blobs = make_with_blobs(tmp_path / "Data.fs")
    bring(path, place, blob_dir=blobs)
    found = next(each for each in blobs.rglob("*.blob") if each.stat().st_size == len(LARGE))
    found.chmod(0o600)
    found.write_bytes(LARGE[:-1] + b"!" if LARGE[-1:] != b"!" else LARGE[:-1] + b"?")
    with pytest.raises(CommandError, match="the copy is not equal: the blob of object .* differs"):
        bring(path, place, blob_dir=blobs, verify=True)


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

    def write(n: int, directory: Path, blob_dir: Path) -> None:
        db = ZODB.DB(FileStorage(str(directory), blob_dir=str(blob_dir)))
        with db.transaction() as connection:
            connection.root()[f"later {n}"] = Blob(b"later %d" % n)
        db.close()

    write(1, path, blobs)
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
    assert bring(config(section.format(path, blobs)), place).compared.blobs == 5
    out = tmp_path / "out.fs", tmp_path / "out-blobs"
    assert take(config(section.format(*out)), place).compared.blobs == 5
    assert files(out[1]) == files(blobs)
    relstorage = config(
        f"%import relstorage\n<relstorage>\n blob-dir {tmp_path}/rel-blobs\n shared-blob-dir true\n"
        f"<sqlite3>\n data-dir {tmp_path}/rel\n</sqlite3>\n</relstorage>"
    )
    assert take(relstorage, place).compared.blobs == 5
    assert bring(relstorage, f"embedded:{tmp_path}/back", verify=True).compared.blobs == 5
