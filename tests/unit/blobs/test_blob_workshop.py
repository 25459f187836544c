"""Files on their way into a directory of blobs, and what a process leaves there that dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from raftstorage.client.blobs import BlobDirectory
from raftstorage.client.blobs.locks import FileLock
from raftstorage.client.blobs.workshop import ABANDONED_SECONDS, remove_abandoned
from ZODB.utils import p64

from tests.unit.blobs.directories import CLUSTER, SERIAL, Remote, committed, leftovers


def test_a_file_is_taken_kept_and_dropped(
    opened: Callable[..., BlobDirectory], tmp_path: Path, remote: Remote
) -> None:
    blobs = opened()
    source = tmp_path / "source"
    source.write_bytes(b"mine")
    taken = blobs.take(p64(1), str(source))
    assert not source.exists()
    blobs.keep(taken, p64(1), SERIAL)
    assert blobs.load(p64(1), SERIAL).read_bytes() == b"mine"
    source.write_bytes(b"not needed")
    taken = blobs.take(p64(2), str(source))
    blobs.drop(taken)
    blobs.drop(taken)
    assert leftovers(tmp_path / "blobs") == []
    assert remote.asked == []
    with pytest.raises(FileNotFoundError):
        blobs.take(p64(3), str(source))


CRASH = """
import os, sys
from raftstorage.client.blobs import BlobDirectory
def fetch(oid, serial, descriptor):
    os.write(descriptor, b"half")
    print("here", flush=True)
    sys.stdin.read()
blobs = BlobDirectory(sys.argv[1], sys.argv[2], fetch)
with open(sys.argv[1] + "/source", "wb") as file:
    file.write(b"taken")
blobs.take(bytes(8), sys.argv[1] + "/source")
blobs.load(bytes(8), bytes(8))
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(
    opened: Callable[..., BlobDirectory], tmp_path: Path
) -> None:
    home = tmp_path / "blobs"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CRASH, str(home), CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(1)
    ]
    (process,) = processes
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "here\n"
        blobs = opened()
        assert len(leftovers(home)) == 2  # the other process is at work
    finally:
        process.kill()
        process.communicate()
    opened()
    assert leftovers(home) == []
    assert blobs.load(bytes(8), bytes(8)).read_bytes() == bytes(100)  # its lock is gone too
    assert committed(home) == [0]


def test_uncommitted_files_that_nobody_touched_for_a_week_are_removed(tmp_path: Path) -> None:
    now = time.time()
    for name, age in [("old", ABANDONED_SECONDS + 1), ("young", ABANDONED_SECONDS - 60)]:
        (tmp_path / f"{name}-file").write_bytes(b"x")
        (tmp_path / f"{name}-folder").mkdir()
        (tmp_path / f"{name}-folder" / "inside").write_bytes(b"x")
        for kind in ("file", "folder"):
            os.utime(tmp_path / f"{name}-{kind}", (now - age, now - age))
    remove_abandoned(tmp_path, now)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["young-file", "young-folder"]


def test_a_lock_is_exclusive_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock.take(path)
    assert lock is not None
    assert FileLock.take(path) is None
    lock.release()
    assert not path.exists()
    again = FileLock.take(path)
    assert again is not None
    again.release()


def test_a_lock_whose_file_was_replaced_meanwhile_is_not_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path = tmp_path / "lock"
    real = fcntl.flock
    calls = []

    def removed_just_before(descriptor: int, flags: int) -> None:
        if not calls:
            path.unlink()  # its owner lets go between our open and our lock
        calls.append(flags)
        real(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", removed_just_before)
    lock = FileLock.take(path)
    assert lock is not None
    assert len(calls) == 2
    assert FileLock.take(path) is None
    lock.release()
