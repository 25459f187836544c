"""The directory of blobs on a client's disk: fetched once, bounded, shared, and clean after a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from raftstorage.client.blobs import BlobDirectory
from raftstorage.client.blobs import bound as bound_module
from raftstorage.client.blobs.bound import shrink
from raftstorage.client.blobs.layout import CacheLayout
from raftstorage.client.blobs.locks import FileLock
from raftstorage.client.blobs.workshop import ABANDONED_SECONDS, remove_abandoned
from raftstorage.client.cluster.errors import BlobDirectoryFull, ClientDisconnected, WrongCluster
from ZEO.ClientStorage import BlobCacheLayout
from ZODB.blob import Blob, BlobFile
from ZODB.utils import p64

from tests.unit.client.blob_cluster import leftovers

CLUSTER = "ab" * 16
SERIAL = p64(5)


class Remote:
    """Has a blob of `size` bytes for every oid, counts how often it is asked, and does what it is told to."""

    def __init__(self, size: int = 100) -> None:
        self.size = size
        self.asked: list[int] = []
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def __call__(self, oid: bytes, serial: bytes, descriptor: int) -> int:
        number = int.from_bytes(oid)
        self.asked.append(number)
        self.before()
        rest = memoryview(bytes([number % 256]) * self.size)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        self.after()
        return self.size


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def opened(tmp_path: Path, remote: Remote) -> Iterator[Callable[..., BlobDirectory]]:
    """Opens a directory, by default always the same one."""
    with contextlib.ExitStack() as stack:

        def open_(path: Path = tmp_path / "blobs", cluster: str = CLUSTER, **options: Any) -> BlobDirectory:
            found = BlobDirectory(path, cluster, options.pop("fetch", remote), **options)
            stack.callback(found.close)
            return found

        yield open_


def committed(directory: Path) -> list[int]:
    """Oids of the blobs that are there."""
    return sorted(
        int(path.name.partition(".")[0]) * CacheLayout.directories + int(path.parent.name)
        for path in directory.glob("*/*.blob")
    )


def test_what_is_missing_is_fetched_once_and_read_only(
    opened: Callable[..., BlobDirectory], remote: Remote
) -> None:
    blobs = opened()
    path = blobs.load(p64(1), SERIAL)
    assert path == blobs.load(p64(1), SERIAL)
    assert path.read_bytes() == b"\1" * 100
    assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    with blobs.open(p64(1), SERIAL) as file:
        assert file.read() == b"\1" * 100
    with blobs.open(p64(1), SERIAL, Blob()) as file:
        assert isinstance(file, BlobFile)
    assert remote.asked == [1]


def test_another_process_finds_it(opened: Callable[..., BlobDirectory], remote: Remote) -> None:
    opened().load(p64(1), SERIAL)
    opened().load(p64(1), SERIAL)
    assert remote.asked == [1]


def test_threads_that_want_one_blob_fetch_it_once(opened: Callable[..., BlobDirectory], remote: Remote) -> None:
    blobs = opened()
    all_there = threading.Barrier(8)
    remote.before = lambda: go_on.wait(10)
    go_on = threading.Event()
    paths = []

    def load() -> None:
        all_there.wait(10)
        paths.append(blobs.load(p64(1), SERIAL))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(paths) == 8
    assert remote.asked == [1]


def test_threads_share_the_error_too_and_the_next_call_tries_again(
    opened: Callable[..., BlobDirectory], remote: Remote
) -> None:
    blobs = opened()
    first, go_on = threading.Event(), threading.Event()

    def fail() -> None:
        first.set()
        assert go_on.wait(10)
        raise ClientDisconnected("nobody is there")

    remote.before = fail
    errors = []

    def load() -> None:
        try:
            blobs.load(p64(1), SERIAL)
        except ClientDisconnected as error:
            errors.append(str(error))

    threads = [threading.Thread(target=load) for _ in range(4)]
    threads[0].start()
    assert first.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert errors == ["nobody is there"] * 4
    remote.before = lambda: None
    assert blobs.load(p64(1), SERIAL).read_bytes() == b"\1" * 100


def test_whoever_waits_for_a_thread_that_was_interrupted_does_it_itself(
    opened: Callable[..., BlobDirectory], remote: Remote
) -> None:
    blobs = opened()
    first, go_on = threading.Event(), threading.Event()

    def interrupt() -> None:
        remote.before = lambda: None
        first.set()
        assert go_on.wait(10)
        raise KeyboardInterrupt

    remote.before = interrupt
    paths: list[Path] = []

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            blobs.load(p64(1), SERIAL)

    threads = [
        threading.Thread(target=interrupted),
        threading.Thread(target=lambda: paths.append(blobs.load(p64(1), SERIAL))),
    ]
    threads[0].start()
    assert first.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert [path.read_bytes() for path in paths] == [b"\1" * 100]


def test_two_processes_fetch_one_blob_once(opened: Callable[..., BlobDirectory], tmp_path: Path) -> None:
    slow, quick = Remote(), Remote()
    one, other = opened(fetch=slow), opened(fetch=quick)
    at_it, go_on = threading.Event(), threading.Event()
    slow.before = lambda: (at_it.set(), go_on.wait(10))
    threads = [threading.Thread(target=blobs.load, args=(p64(1), SERIAL)) for blobs in (one, other)]
    threads[0].start()
    assert at_it.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert (slow.asked, quick.asked) == ([1], [])


def test_a_process_that_hangs_holds_nobody_up_for_long(opened: Callable[..., BlobDirectory]) -> None:
    slow, quick = Remote(), Remote()
    one, other = opened(fetch=slow), opened(fetch=quick, patience=0.1)
    at_it, go_on = threading.Event(), threading.Event()
    slow.before = lambda: (at_it.set(), go_on.wait(20))
    thread = threading.Thread(target=one.load, args=(p64(1), SERIAL))
    thread.start()
    assert at_it.wait(10)
    path = other.load(p64(1), SERIAL)
    with path.open("rb") as file:
        go_on.set()
        thread.join(10)  # it puts its own in place
        assert file.read() == path.read_bytes() == b"\1" * 100
    assert quick.asked == [1]


def test_a_fetch_that_fails_leaves_nothing(
    opened: Callable[..., BlobDirectory], remote: Remote, tmp_path: Path
) -> None:
    blobs = opened()

    def fail() -> None:
        raise ClientDisconnected("half of it")

    remote.after = fail
    with pytest.raises(ClientDisconnected):
        blobs.load(p64(1), SERIAL)
    assert leftovers(tmp_path / "blobs") == []
    assert committed(tmp_path / "blobs") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so_and_nothing_is_left(
    opened: Callable[..., BlobDirectory], remote: Remote, tmp_path: Path, number: int
) -> None:
    blobs = opened()

    def full() -> None:
        raise OSError(number, os.strerror(number))

    remote.after = full
    with pytest.raises(
        BlobDirectoryFull, match=r"no room in the blob directory .*blobs.* object 0000000000000001"
    ):
        blobs.load(p64(1), SERIAL)
    assert leftovers(tmp_path / "blobs") == []


def test_a_real_full_disk(opened: Callable[..., BlobDirectory], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        blobs = opened(disk, fetch=Remote(600_000))
        kept = blobs.load(p64(1), SERIAL)
        with pytest.raises(BlobDirectoryFull):
            blobs.load(p64(2), SERIAL)
        source = tmp_path / "source"
        source.write_bytes(bytes(600_000))
        with pytest.raises(BlobDirectoryFull):
            blobs.take(p64(3), str(source))
        assert source.stat().st_size == 600_000  # it is still the application's
        assert committed(disk) == [1]
        assert leftovers(disk) == []
        kept.unlink()
        assert blobs.load(p64(2), SERIAL).stat().st_size == 600_000
        blobs.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# ---- whose it is ----------------------------------------------------------------------------------------------


def test_a_directory_of_another_cluster_is_refused(opened: Callable[..., BlobDirectory], tmp_path: Path) -> None:
    opened().load(p64(1), SERIAL)
    with pytest.raises(WrongCluster, match=f"{CLUSTER}, not of {'cd' * 16}"):
        opened(cluster="cd" * 16)
    assert committed(tmp_path / "blobs") == [1]


def test_a_servers_directory_is_not_taken_for_a_cache(
    opened: Callable[..., BlobDirectory], tmp_path: Path
) -> None:
    opened(shared=True).load(p64(1), SERIAL)
    with pytest.raises(ValueError, match="marker found for layout `bushy`"):
        opened(size=10)
    assert len(list((tmp_path / "blobs").rglob("*.blob"))) == 1


def test_the_layout_is_zeos(opened: Callable[..., BlobDirectory], tmp_path: Path) -> None:
    for number in (0, 1, 996, 997, 123_456_789):
        names = [layout.getBlobFilePath(p64(number), SERIAL) for layout in (CacheLayout(), BlobCacheLayout())]
        assert names[0] == names[1]
    opened()
    assert (tmp_path / "blobs" / ".layout").read_text() == "zeocache"


def test_a_shared_directory_is_laid_out_as_a_file_storages(
    opened: Callable[..., BlobDirectory], tmp_path: Path, remote: Remote
) -> None:
    from ZODB.blob import FilesystemHelper

    helper = FilesystemHelper(str(tmp_path / "blobs"))
    helper.create()
    there = Path(helper.getBlobFilename(p64(1), SERIAL))
    there.parent.mkdir(parents=True)
    there.write_bytes(b"as it was")
    blobs = opened(shared=True, size=1)
    assert blobs.load(p64(1), SERIAL).read_bytes() == b"as it was"
    assert blobs.load(p64(2), SERIAL) == Path(helper.getBlobFilename(p64(2), SERIAL))
    assert remote.asked == [2]
    assert len(list((tmp_path / "blobs").rglob("*.blob"))) == 2  # a bound is a cache's only


def test_many_open_a_new_directory_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)
    found: list[object] = []

    def open_it() -> None:
        start.wait(10)
        try:
            found.append(BlobDirectory(tmp_path / "blobs", CLUSTER, Remote()))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [each for each in found if not isinstance(each, BlobDirectory)] == []
    for each in found:
        assert isinstance(each, BlobDirectory)
        each.close()
        each.close()


def test_what_is_there_can_be_used_after_the_close(opened: Callable[..., BlobDirectory]) -> None:
    blobs = opened()
    path = blobs.load(p64(1), SERIAL)
    blobs.close()
    assert blobs.load(p64(1), SERIAL) == path
    with pytest.raises(ClientDisconnected):
        blobs.load(p64(2), SERIAL)


# ---- taking files ---------------------------------------------------------------------------------------------


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


# ---- the bound ------------------------------------------------------------------------------------------------


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
