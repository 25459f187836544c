"""The directory of blobs on a client's disk: what is missing is fetched once, whoever wants it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from raftstorage.client.blobs import BlobDirectory
from raftstorage.client.blobs.layout import CacheLayout
from raftstorage.client.cluster.errors import BlobDirectoryFull, ClientDisconnected, WrongCluster
from ZEO.ClientStorage import BlobCacheLayout
from ZODB.blob import Blob, BlobFile
from ZODB.utils import p64

from tests.unit.blobs.directories import CLUSTER, SERIAL, Remote, committed, leftovers


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
