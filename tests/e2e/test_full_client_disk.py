"""A client's disk is full while a blob comes: a clear error, no part of one that could be taken for all of it, and
with room it goes on. Needs root, for a small file system; otherwise skipped, with the reason."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ZODB
from raftstorage.client.storage.errors import BlobDirectoryFull
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage

from tests.e2e import databases
from tests.e2e.nemesis.disk import SmallDisk
from tests.e2e.nemesis.network import NetworkError
from tests.e2e.test_import_export import raftstorage

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

SIZE = 1_500_000
DISK = 5 * SIZE // 2


@pytest.fixture
def small(disk_directory: Path) -> Iterator[SmallDisk]:
    """With room for two of three blobs."""
    disk = SmallDisk(disk_directory / "small", DISK)
    try:
        disk.mount()
    except NetworkError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield disk
    disk.unmount()


@pytest.fixture
def source(cluster: LocalCluster, disk_directory: Path, rng: random.Random) -> tuple[Path, Path]:
    """A Data.fs and the directory of its blobs; the cluster has it all, too."""
    path, blobs = disk_directory / "Data.fs", disk_directory / "blobs"
    db = ZODB.DB(FileStorage(str(path), blob_dir=str(blobs)))
    for n in range(3):
        with db.transaction() as connection:
            connection.root()[f"blob {n}"] = Blob(rng.randbytes(SIZE))
    db.close()
    assert raftstorage("import", str(path), "--blob-dir", str(blobs), "--to", cluster.addresses).returncode == 0
    return path, blobs


def whole_files(directory: Path, blobs: Path) -> int:
    """How many blobs are there, each of them whole; nothing else that is large is."""
    originals = {each.read_bytes() for each in blobs.rglob("*.blob")}
    there = [each for each in directory.rglob("*.blob") if each.is_file()]
    assert all(each.read_bytes() in originals for each in there)
    others = [each for each in directory.rglob("*") if each.is_file() and each not in there]
    assert sum(each.stat().st_size for each in others if each.name != "filler") < SIZE // 10, others
    return len(there)


def test_an_export_goes_on_with_room(cluster: LocalCluster, source: tuple[Path, Path], small: SmallDisk) -> None:
    out, out_blobs = small.path / "out.fs", small.path / "blobs"
    arguments = ["export", str(out), "--blob-dir", str(out_blobs), "--from", cluster.addresses]
    told = raftstorage(*arguments)
    assert told.returncode == 1
    assert f"no room for {out}.part: No space left on device. What came before is there" in told.stderr
    assert told.stderr.count("raftstorage: ") == 1
    assert not out.exists()
    assert whole_files(small.path, source[1]) == 2
    again = raftstorage(*arguments)  # which changes nothing
    assert again.returncode == 1
    assert whole_files(small.path, source[1]) == 2
    small.make_room()
    told = raftstorage(*arguments, "--verify")
    assert told.returncode == 0
    assert "exported: 1 transactions" in told.stdout
    assert databases.of_file(out, out_blobs) == databases.of_file(*source)


def test_an_export_whose_temporary_directory_is_full_says_which(
    cluster: LocalCluster, source: tuple[Path, Path], small: SmallDisk, disk_directory: Path
) -> None:
    out, out_blobs = disk_directory / "out.fs", disk_directory / "out-blobs"
    arguments = ["export", str(out), "--blob-dir", str(out_blobs), "--from", cluster.addresses]

    def export() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raftstorage.ops.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"TMPDIR": str(small.path)},
        )

    (small.path / "taken").write_bytes(bytes(DISK - SIZE // 2))
    told = export()
    assert told.returncode == 1
    assert f"no room in the blob directory {small.path}/raftstorage-blobs-" in told.stderr
    assert told.stderr.count("raftstorage: ") == 1
    assert "Traceback" not in told.stderr
    assert [each.name for each in small.path.iterdir()] == ["taken"]
    (small.path / "taken").unlink()
    small.make_room()
    told = export()
    assert told.returncode == 0, told.stderr
    assert databases.of_file(out, out_blobs) == databases.of_file(*source)
    assert list(small.path.iterdir()) == []


def test_an_application_goes_on_with_room(
    cluster: LocalCluster, source: tuple[Path, Path], small: SmallDisk, open_storage: Callable[..., Any]
) -> None:
    storage = open_storage(cluster.addresses, blob_dir=small.path / "blobs", consistency="linearizable")
    db = ZODB.DB(storage)
    with db.transaction() as connection:
        root = connection.root()
        for n in range(2):
            with root[f"blob {n}"].open() as file:
                assert len(file.read()) == SIZE
        with pytest.raises(
            BlobDirectoryFull, match=r"no room in the blob directory .*/small/blobs/? for the blob of"
        ):
            root["blob 2"].open()
        assert whole_files(small.path, source[1]) == 2
        with root["blob 0"].open() as file:  # what is there can be used
            assert len(file.read()) == SIZE
        with pytest.raises(BlobDirectoryFull):
            root["blob 2"].open()
        small.make_room()
        with root["blob 2"].open() as file:
            assert len(file.read()) == SIZE
        assert whole_files(small.path, source[1]) == 3
    # Nor is there any room for a new one: it is said, and nothing of it is committed.
    small.fill()
    with pytest.raises(BlobDirectoryFull), db.transaction() as connection:
        connection.root()["new"] = Blob(b"x" * SIZE)
    small.make_room()
    with db.transaction() as connection:
        assert "new" not in connection.root()
        connection.root()["new"] = Blob(b"x" * SIZE)
    db.close()
