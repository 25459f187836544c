"""A cache of blobs stays near its size."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raftstorage.client.blobs import BlobDirectory
from raftstorage.client.blobs import bound as bound_module
from raftstorage.client.blobs.bound import shrink
from raftstorage.client.blobs.locks import FileLock
from ZODB.utils import p64

from tests.unit.blobs.directories import SERIAL, Remote, committed, leftovers


def lock_nothing(name: str) -> FileLock | None:
    read, write = os.pipe()
    os.close(write)
    path = Path(f"/proc/self/fd/{read}")

    class Lock(FileLock):
        def release(self) -> None:
            os.close(read)

    return Lock(path, read)


def filled(blobs: BlobDirectory, *numbers: int) -> None:
    """Loads them; the first is the one used longest ago."""
    for age, number in enumerate(reversed(numbers)):
        path = blobs.load(p64(number), SERIAL)
        used = time.time() - 1000 - age * 10
        os.utime(path, (used, used))


def test_what_was_used_least_recently_goes_first(opened: Callable[..., BlobDirectory], tmp_path: Path) -> None:
    blobs = opened()
    filled(blobs, 1, 2, 3, 4, 5)
    blobs.load(p64(2), SERIAL)
    assert shrink(tmp_path / "blobs", 300, lock_nothing) == 300
    assert committed(tmp_path / "blobs") == [2, 4, 5]
    assert shrink(tmp_path / "blobs", 300, lock_nothing) == 300
    assert shrink(tmp_path / "blobs", 0, lock_nothing) == 0
    assert committed(tmp_path / "blobs") == []


def test_a_file_that_is_being_opened_stays_and_one_that_is_open_can_be_read(
    opened: Callable[..., BlobDirectory], tmp_path: Path
) -> None:
    blobs = opened()
    filled(blobs, 1, 2, 3)
    with blobs.open(p64(2), SERIAL) as file:
        assert (
            shrink(
                tmp_path / "blobs",
                0,
                lambda name: None if name == "1/0.0000000000000005.blob" else lock_nothing(name),
            )
            == 100
        )
        assert committed(tmp_path / "blobs") == [1]
        assert file.read() == b"\2" * 100


def test_other_files_are_not_the_caches(opened: Callable[..., BlobDirectory], tmp_path: Path) -> None:
    blobs = opened()
    filled(blobs, 1)
    for name in ("1/notes.txt", "tmp/BUC.blob", "other"):
        (tmp_path / "blobs" / name).write_bytes(bytes(1000))
    assert shrink(tmp_path / "blobs", 0, lock_nothing) == 0
    assert leftovers(tmp_path / "blobs") == ["1/notes.txt", "other"]
    assert (tmp_path / "blobs/tmp/BUC.blob").exists()


def test_a_cache_stays_near_its_size(
    opened: Callable[..., BlobDirectory], tmp_path: Path, wait_for: Callable[..., Any], remote: Remote
) -> None:
    blobs = opened(size=1000, check=10)
    source = tmp_path / "source"
    for number in range(1, 61):
        if number % 2:
            blobs.load(p64(number), SERIAL)
        else:
            source.write_bytes(bytes(100))
            blobs.keep(blobs.take(p64(number), str(source)), p64(number), SERIAL)
    wait_for(lambda: len(committed(tmp_path / "blobs")) <= 10, "the cache to be small enough")
    blobs.close()
    assert 5 <= len(committed(tmp_path / "blobs")) <= 10
    with blobs.open(p64(committed(tmp_path / "blobs")[0]), SERIAL) as file:
        assert len(file.read()) == 100


def test_a_cache_that_is_too_large_when_it_is_opened_is_made_smaller(
    opened: Callable[..., BlobDirectory], tmp_path: Path
) -> None:
    filled(opened(), *range(1, 21))
    blobs = opened(size=500, check=10)
    blobs.close()  # waits for the look
    assert committed(tmp_path / "blobs") == [17, 18, 19, 20]


def test_only_one_process_looks_and_the_other_does_with_its_next_file(
    opened: Callable[..., BlobDirectory], tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    one = opened(size=300, check=10)
    filled(one, 1, 2)
    other = opened()
    lock = other._workshop.lock("bound")
    assert lock is not None
    filled(one, 3, 4, 5, 6)
    wait_for(lambda: one._bound is not None and one._bound._thread is None, "it to see that somebody else looks")
    assert len(committed(tmp_path / "blobs")) == 6
    lock.release()
    one.load(p64(7), SERIAL)
    wait_for(lambda: len(committed(tmp_path / "blobs")) <= 3, "it to look by itself")
    assert 7 in committed(tmp_path / "blobs")


def test_a_blob_that_the_bound_takes_at_once_can_be_opened_all_the_same(
    opened: Callable[..., BlobDirectory], tmp_path: Path, remote: Remote
) -> None:
    blobs = opened(size=0, check=0)
    path = blobs.load(p64(1), SERIAL)
    real = blobs.load

    def load_and_lose(oid: bytes, serial: bytes) -> Path:
        found = real(oid, serial)
        found.unlink(missing_ok=True)
        return found

    blobs.load = load_and_lose  # type: ignore[method-assign]
    for _ in range(20):
        with blobs.open(p64(1), SERIAL) as file:
            assert file.read() == b"\1" * 100
    assert len(remote.asked) >= 20
    assert path.name.endswith(".blob")


@pytest.mark.parametrize(("size", "check"), [(-1, 10), (10, 100), (10, -1)])
def test_a_bound_that_makes_no_sense(opened: Callable[..., BlobDirectory], size: int, check: int) -> None:
    with pytest.raises(ValueError, match="a blob cache cannot have"):
        opened(size=size, check=check)


def test_a_look_that_fails_is_logged_and_the_next_one_comes(
    opened: Callable[..., BlobDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait_for: Callable[..., Any],
) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(bound_module, "shrink", fail)
    blobs = opened(size=100, check=0)
    wait_for(lambda: "the disk is broken" in caplog.text, "a line in the log")
    monkeypatch.undo()
    filled(blobs, 1, 2, 3)
    wait_for(lambda: len(committed(tmp_path / "blobs")) <= 1, "the next look")
