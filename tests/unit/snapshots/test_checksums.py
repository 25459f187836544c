"""Checksums of tables: computed once, never believed of another file; and the threads that compute them."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from raftstorage.node.snapshots import stream
from raftstorage.node.snapshots.files import SystemSnapshotFiles, remove_tree
from raftstorage.node.snapshots.serve import SnapshotDamaged
from raftstorage.node.snapshots.worker import ThreadWorker
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.served import MIB, Served, served
from tests.unit.snapshots.sources import run


def test_a_table_is_read_once_for_the_checksums_of_all_snapshots(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        await node.take(until=0)
        assert node.files.bytes_read["000001.sst"] == 3 * MIB // 2
        node.index += 1000
        node.put("000002.sst", bytes(MIB))
        manifest, _ = await node.take(until=0)
        assert node.made == 2
        assert node.files.bytes_read == {"000001.sst": 3 * MIB // 2, "000002.sst": MIB, "CURRENT": 32}
        assert len(manifest.files) == 3

    served(tmp_path, work, max_lag=10)


def test_another_table_of_the_same_name_and_size_is_read(tmp_path: Path) -> None:
    """As after the database was replaced by a snapshot."""

    async def work(node: Served) -> None:
        await node.take()
        other = random.Random(2).randbytes(3 * MIB // 2)
        (node.database / "000001.sst").unlink()
        node.put("000001.sst", other)
        node.index += 1000
        _, contents = await node.take()
        assert contents["000001.sst"] == other

    served(tmp_path, work, max_lag=10)


def test_a_table_that_decayed_is_noticed_and_never_served_as_good(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        await node.take()
        table = node.database / "000001.sst"
        before = table.stat()
        with table.open("r+b") as file:
            file.seek(MIB)
            file.write(b"decay")
        os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk that decays touches no time
        for _ in range(2):
            seen: list[Path] = []
            with pytest.raises(SnapshotDamaged, match="does not match"):
                async for _chunk in stream(node.store, "2", pb.SnapshotRequest(), seen.append):
                    pass
            assert len(seen) == 1
            node.index += 1000  # and the next snapshot has the same table

    served(tmp_path, work, max_lag=10)


def test_a_table_that_was_cut_is_noticed(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        await node.take()
        os.truncate(node.database / "000001.sst", MIB)
        with pytest.raises(SnapshotDamaged, match="ends at"):
            await node.take()

    served(tmp_path, work)


def test_a_file_is_the_same_only_if_nobody_wrote_to_it(tmp_path: Path) -> None:
    files = SystemSnapshotFiles()
    (tmp_path / "a").write_bytes(b"one")
    os.link(tmp_path / "a", tmp_path / "link")
    (tmp_path / "b").write_bytes(b"one")
    info = files.info(tmp_path / "a")
    assert files.info(tmp_path / "link") == info
    assert files.info(tmp_path / "b") != info
    assert info.size == 3
    with pytest.raises(OSError):
        files.info(tmp_path)
    (tmp_path / "symlink").symlink_to(tmp_path / "a")
    with pytest.raises(OSError):
        files.info(tmp_path / "symlink")


def test_what_a_link_leads_to_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    remove_tree(SystemSnapshotFiles(), folder)
    assert not folder.exists()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"precious"


def test_work_that_is_cancelled_has_ended_when_that_is_told() -> None:
    """Or a file would be closed under a thread that writes to it."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        worker = ThreadWorker(1)
        started, go_on = asyncio.Event(), asyncio.Event()
        ended = False

        def slow() -> None:
            nonlocal ended
            loop.call_soon_threadsafe(started.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            ended = True
            raise ValueError("nobody is interested")

        task = asyncio.create_task(worker.run(slow))
        await started.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended
        await worker.close()

    run(work())
