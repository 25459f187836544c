"""A record cache that outlives its process: what is used of it, and when it is thrown away."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ZODB
from raftstorage.client import ClientStorage
from raftstorage.client.cache.disk import CacheFile
from raftstorage.client.cache.records import RecordCache, Revision


def t(number: int) -> bytes:
    return number.to_bytes(8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "records"


@pytest.fixture
def open_storage(disk_directory: Path, path: Path) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def open_one(**arguments: Any) -> Any:
        arguments = {"name": "database", "cache_path": path, **arguments}
        storage = ClientStorage(f"embedded:{disk_directory}/{arguments.pop('name')}", **arguments)
        opened.append(storage)
        return storage

    yield open_one
    for storage in opened:
        storage.close()


def fill(storage: Any, **values: Any) -> None:
    database = ZODB.DB(storage)
    with database.transaction() as connection:
        connection.root().update(values)


def root(storage: Any) -> Any:
    with ZODB.DB(storage).transaction() as connection:
        return dict(connection.root())


def loads(storage: Any) -> float:
    """How many a replica was asked for."""
    return sum(
        sample.value
        for family in storage.cluster.metrics._families.seconds.collect()
        for sample in family.samples
        if sample.name.endswith("_count") and sample.labels["call"] == "load_before"
    )


def test_the_next_process_has_what_this_one_had(open_storage: Callable[..., Any]) -> None:
    first = open_storage()
    fill(first, n=1)
    first.close()
    second = open_storage()
    before = loads(second)
    assert root(second) == {"n": 1}
    assert loads(second) == before
    assert second.cache.figures().hits


def test_what_others_changed_meanwhile_is_known(open_storage: Callable[..., Any]) -> None:
    first = open_storage()
    fill(first, n=1)
    first.close()
    other = open_storage(cache_path=None)
    for n in range(2, 50):
        fill(other, n=n)
    second = open_storage()
    assert root(second) == {"n": 49}


def test_a_cache_of_another_cluster_is_not_used(
    open_storage: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = open_storage()
    fill(first, n=1)
    first.close()
    other = open_storage(name="another", cache_path=None)
    fill(other, n=2)
    other.close()
    second = open_storage(name="another")
    assert root(second) == {"n": 2}
    assert "begun anew" in caplog.text


def test_a_cache_that_is_ahead_of_the_cluster_is_not_used(
    open_storage: Callable[..., Any], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The cluster was set back to a backup, say."""
    first = open_storage()
    fill(first, n=1)
    first.close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = ? WHERE name = 'known'", (b"\x7f" + bytes(7),))
    database.close()
    second = open_storage()
    assert root(second) == {"n": 1}
    assert "begun anew" in caplog.text


def test_one_at_a_time(open_storage: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    first = open_storage()
    second = open_storage()
    assert "going without a persistent one" in caplog.text
    fill(second, n=1)
    assert root(first) == {"n": 1}
    second.close()
    first.close()
    assert loads(open_storage()) == loads(open_storage(cache_path=None))


def test_a_directory_that_cannot_be_written_to(
    open_storage: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    storage = open_storage(cache_path=tmp_path / "file" / "cache")
    fill(storage, n=1)
    assert "no persistent cache" in caplog.text


# ---- the file ----------------------------------------------------------------------------------------------


def filled() -> RecordCache:
    cache = RecordCache()
    cache.start(t(10))
    for number in range(50):
        cache.store(t(number), b"data %d" % number, t(5), t(9) if number % 2 else None, t(10))
    return cache


@pytest.fixture
def file(path: Path) -> Iterator[CacheFile]:
    opened = CacheFile.open(path)
    assert opened is not None
    yield opened
    opened.close()


def test_written_and_read(file: CacheFile) -> None:
    file.save(filled(), "cluster")
    file.save(filled(), "cluster")
    cache = RecordCache()
    assert file.load(cache) == ("cluster", t(10))
    assert cache.contents() == filled().contents()
    assert cache.load_before(t(4), t(11)) == Revision(b"data 4", t(5), None)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE record SET data = x'00' WHERE position = 7",
        "UPDATE record SET next_serial = NULL WHERE position = 2",
        "UPDATE record SET oid = 7 WHERE position = 2",
        "DELETE FROM record WHERE position = 7",
        "DELETE FROM meta WHERE name = 'known'",
        "DELETE FROM meta WHERE name = 'cluster'",
        "UPDATE meta SET value = '2' WHERE name = 'format'",
        "DROP TABLE meta",
    ],
)
def test_what_was_tampered_with_is_thrown_away(
    file: CacheFile, path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.save(filled(), "cluster")
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(damage)
    database.close()
    cache = RecordCache()
    assert file.load(cache) is None
    assert cache.figures().entries == 0
    assert "cannot be used" in caplog.text
    file.save(filled(), "cluster")
    assert file.load(cache) == ("cluster", t(10))


def test_flipped_bytes_are_noticed(file: CacheFile, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of them, or they were in what is not read."""
    caplog.set_level(logging.ERROR)
    file.save(filled(), "cluster")
    whole = path.read_bytes()
    noticed = 0
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        cache = RecordCache()
        if file.load(cache) is None:
            noticed += 1
        else:
            assert cache.contents() == filled().contents()
    assert noticed > 10


def test_a_full_disk_costs_the_file_and_nothing_else(
    file: CacheFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_arguments: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(CacheFile, "_replace", full)
    file.save(filled(), "cluster")
    assert "was not written" in caplog.text


KILLED = """
import os, sys
from pathlib import Path
from raftstorage.client.cache.disk import CacheFile
from raftstorage.client.cache.records import RecordCache
file = CacheFile.open(Path(sys.argv[1]))
for generation in range(1, 1_000_000):
    cache = RecordCache()
    known = generation.to_bytes(8)
    cache.start(known)
    for number in range(200):
        cache.store(number.to_bytes(8), known * 500, known, None, known)
    file.save(cache, "cluster")
    os.write(1, b"written\\n")
"""


def test_a_process_that_is_killed_leaves_a_whole_generation_or_nothing(path: Path) -> None:
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(2 + round_):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        file = CacheFile.open(path)
        assert file is not None
        cache = RecordCache()
        origin = file.load(cache)
        if origin is not None:
            _known, contents = cache.contents()
            assert len(contents) == 200
            assert {each.data for _, each in contents} == {origin.known * 500}
        file.close()
