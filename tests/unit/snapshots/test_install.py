"""Which folder is the database, on a real disk; its crashes are in test_crashes.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raftstorage.node.snapshots import Installed, clean, current, point_to
from raftstorage.node.snapshots.install import InstallError, folder_name, remove_database


def folder(directory: Path, name: str) -> Path:
    path = directory / name
    path.mkdir(parents=True)
    (path / "CURRENT").write_text(name)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_begins_with_db(tmp_path: Path) -> None:
    assert current(tmp_path) == Installed("db", 0, 0)
    folder(tmp_path, "db")
    assert current(tmp_path) == Installed("db", 0, 0)


def test_it_is_the_one_that_was_pointed_to_last(tmp_path: Path) -> None:
    for name, index, term in (("db-7-1", 7, 1), ("db-12-3", 12, 3)):
        folder(tmp_path, name)
        point_to(tmp_path, name, index, term)
        assert current(tmp_path) == Installed(name, index, term)
    assert json.loads((tmp_path / "database").read_bytes()) == {"name": "db-12-3", "index": 12, "term": 3}


def test_a_start_removes_databases_that_are_not_its_own_and_nothing_else(tmp_path: Path) -> None:
    for name in ("db", "db-7-1", "db-9-1", "removed-db-3-1", "log", "snapshots", "incoming", "db-old", "dbx"):
        folder(tmp_path, name)
    (tmp_path / "node.json").write_text("{}")
    (tmp_path / "database.tmp").write_text("half a na")
    point_to(tmp_path, "db-9-1", 9, 1)
    (tmp_path / "database.tmp").write_text("half a na")
    clean(tmp_path)
    assert names(tmp_path) == [
        "database", "db-9-1", "db-old", "dbx", "incoming", "log", "node.json", "snapshots",
    ]  # fmt: skip
    clean(tmp_path)
    assert current(tmp_path) == Installed("db-9-1", 9, 1)


def test_a_start_on_the_first_database_removes_a_snapshot_that_nothing_points_to(tmp_path: Path) -> None:
    folder(tmp_path, "db")
    folder(tmp_path, "db-9-1")
    clean(tmp_path)
    assert names(tmp_path) == ["db"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"name": "db-7-1"}',
        b'{"name": "db-7-1", "index": 8, "term": 1}',
        b'{"name": "db", "index": 8, "term": 1}',
        b'{"name": "../db", "index": 0, "term": 0}',
        b'{"name": "log", "index": 0, "term": 0}',
        b'{"name": "db-7-1", "index": "7", "term": 1}',
        b'{"name": "db-7-1", "index": 7.0, "term": 1}',
        b'{"name": "db-True-1", "index": true, "term": 1}',
        b'{"name": "db--7-1", "index": -7, "term": 1}',
    ],
)
def test_a_file_that_names_no_database_is_an_error_and_nothing_is_removed(tmp_path: Path, text: bytes) -> None:
    for name in ("db", "db-7-1", "db-8-1"):
        folder(tmp_path, name)
    (tmp_path / "database").write_bytes(text)
    with pytest.raises(InstallError, match="does not name a database"):
        current(tmp_path)
    with pytest.raises(InstallError):
        clean(tmp_path)
    assert names(tmp_path) == ["database", "db", "db-7-1", "db-8-1"]


def test_a_database_that_is_gone_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    folder(tmp_path, "db")
    remove = folder(tmp_path, "db-7-1")
    point_to(tmp_path, "db-7-1", 7, 1)
    remove_database(remove)
    with pytest.raises(InstallError, match="db-7-1, which is not there"):
        current(tmp_path)
    with pytest.raises(InstallError):
        clean(tmp_path)
    assert names(tmp_path) == ["database", "db"]


@pytest.mark.parametrize(
    ("name", "index", "term"), [("db-7-1", 7, 1), ("db-7-1", 7, 2), ("log", 0, 0), ("db", 1, 1)]
)
def test_nothing_points_to_what_is_no_database(tmp_path: Path, name: str, index: int, term: int) -> None:
    folder(tmp_path, "db")
    with pytest.raises(InstallError):
        point_to(tmp_path, name, index, term)
    assert names(tmp_path) == ["db"]


def test_names_of_the_largest_numbers_are_names(tmp_path: Path) -> None:
    largest = (1 << 63) - 1
    name = folder_name(largest, largest)
    folder(tmp_path, name)
    point_to(tmp_path, name, largest, largest)
    assert current(tmp_path) == Installed(name, largest, largest)
