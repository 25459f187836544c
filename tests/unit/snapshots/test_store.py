"""Making, keeping and removing the snapshots that a node serves."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from raftstorage.node.snapshots import ServeOptions, SnapshotError, SnapshotStore, stream
from raftstorage.node.snapshots.api import Unobserved
from raftstorage.node.snapshots.files import FileInfo, SystemSnapshotFiles
from raftstorage.node.snapshots.serve import BadRequest, SnapshotDamaged
from raftstorage.node.snapshots.store import TooManyReceivers
from raftstorage.node.snapshots.worker import ThreadWorker
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.sources import run, until

MIB = 1 << 20


@dataclass
class State:
    index: int
    term: int = 2
    membership: bytes = b"members"


class Counting(SystemSnapshotFiles):
    """Counts what is read, by file name, and can fail."""

    def __init__(self) -> None:
        self.names_of: dict[int, str] = {}
        self.bytes_read: dict[str, int] = {}
        self.open_now = 0
        self.error = 0

    def open_to_read(self, path: Path) -> int:
        descriptor = super().open_to_read(path)
        self.names_of[descriptor] = path.name
        self.open_now += 1
        return descriptor

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        data = super().read(descriptor, length, offset)
        name = self.names_of[descriptor]
        self.bytes_read[name] = self.bytes_read.get(name, 0) + len(data)
        return data

    def close(self, descriptor: int) -> None:
        self.open_now -= 1
        super().close(descriptor)


class Events(Unobserved):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.sent = 0

    def snapshot_sent(self, count: int) -> None:
        self.sent += count

    def snapshot_done(self, what: str, seconds: float) -> None:
        self.events.append(what)

    def snapshot_failed(self, what: str) -> None:
        self.events.append(f"{what} failed")


class Served:
    """A database folder, and the store that makes snapshots of it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.database = directory / "db"
        self.database.mkdir()
        self.put("000001.sst", random.Random(1).randbytes(3 * MIB // 2))
        self.put("CURRENT", b"MANIFEST-000001\n")
        self.index = 10
        self.floor = 0
        self.made = 0
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        self.files = Counting()
        self.events = Events()
        fields = {"bytes_per_second": 0, "read_bytes_per_second": 0}
        self.store = SnapshotStore(
            directory / "snapshots",
            self.checkpoint,
            floor=lambda: self.floor,
            applied=lambda: self.index,
            options=ServeOptions(**fields | options),
            files=self.files,
            observer=self.events,
        )

    def put(self, name: str, content: bytes) -> None:
        (self.database / name).write_bytes(content)

    async def checkpoint(self, path: Path) -> State:
        self.made += 1
        index = self.index
        path.mkdir()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        for file in self.database.iterdir():
            if file.suffix == ".sst":
                os.link(file, path / file.name)
            else:
                (path / file.name).write_bytes(file.read_bytes())
        return State(index)

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "snapshots").iterdir())

    async def take(
        self, receiver: str = "2", request: pb.SnapshotRequest | None = None, until: int | None = None
    ) -> tuple[pb.SnapshotManifest, dict[str, bytes]]:
        """The manifest and the files' bytes, checked chunk by chunk; `until`: leaves after so many chunks."""
        contents: dict[str, bytes] = {}
        manifest = pb.SnapshotManifest()
        chunks = stream(self.store, receiver, request or pb.SnapshotRequest())
        count = 0
        async for chunk in chunks:
            if count == 0:
                manifest = chunk.manifest
                contents = {file.name: b"" for file in manifest.files}
                assert manifest.snapshot_id
            else:
                data = chunk.data
                assert 0 < len(data.data) <= self.store.options.chunk_bytes
                assert google_crc32c.value(data.data) == data.crc32c
                contents[data.file] += data.data
            count += 1
            if until is not None and count > until:
                break
        await chunks.aclose()
        return manifest, contents


def served(tmp_path: Path, work: Callable[[Served], Any], **options: Any) -> Served:
    async def all_of_it() -> Served:
        node = Served(tmp_path, **options)
        await node.store.start()
        await work(node)
        await node.store.stop()
        assert node.files.open_now == 0
        return node

    return run(all_of_it())


async def settle(node: Served) -> None:
    """Until what the store does by itself is done."""
    while node.store._tidying:
        await asyncio.gather(*node.store._tidying)


def test_a_stream_is_a_manifest_and_all_files(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        manifest, contents = await node.take()
        assert (manifest.index, manifest.term, manifest.membership, manifest.format) == (10, 2, b"members", 1)
        assert contents == {path.name: path.read_bytes() for path in node.database.iterdir()}
        assert {file.name: (file.size, file.crc32c) for file in manifest.files} == {
            name: (len(content), google_crc32c.value(content)) for name, content in contents.items()
        }

    node = served(tmp_path, work)
    assert node.events.events == ["made", "served"]
    assert node.events.sent == 3 * MIB // 2 + 16


def test_leftovers_of_an_earlier_life_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "snapshots" / ("a" * 32) / "deep"
    left.mkdir(parents=True)
    (left / "000001.sst").write_bytes(b"x")
    (tmp_path / "snapshots" / "file").write_bytes(b"x")

    async def work(node: Served) -> None:
        assert node.folders() == []

    served(tmp_path, work)


def test_a_stream_goes_on_where_it_is_told_to(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        manifest, _ = await node.take(until=2)
        have = [pb.SnapshotPosition(file="000001.sst", bytes=MIB), pb.SnapshotPosition(file="CURRENT", bytes=16)]
        request = pb.SnapshotRequest(snapshot_id=manifest.snapshot_id, have=have)
        again, contents = await node.take(request=request)
        assert again == manifest
        assert contents == {"000001.sst": (node.database / "000001.sst").read_bytes()[MIB:], "CURRENT": b""}
        assert node.made == 1

    served(tmp_path, work)


def test_for_a_snapshot_that_is_gone_the_manifest_of_another_one_is_sent(tmp_path: Path) -> None:
    """Its receiver may have most of the files, and asks for the others."""

    async def work(node: Served) -> None:
        have = [pb.SnapshotPosition(file="gone.sst", bytes=5), pb.SnapshotPosition(file="CURRENT", bytes=16)]
        manifest, contents = await node.take(request=pb.SnapshotRequest(snapshot_id="f" * 32, have=have))
        assert manifest.snapshot_id != "f" * 32
        assert contents == {"000001.sst": b"", "CURRENT": b""}
        request = pb.SnapshotRequest(snapshot_id=manifest.snapshot_id, have=have[1:])
        assert (await node.take(request=request))[1]["000001.sst"] == (node.database / "000001.sst").read_bytes()

    served(tmp_path, work)


@pytest.mark.parametrize(
    ("file", "position"), [("../../db/CURRENT", 0), ("/etc/passwd", 0), ("nothing", 1), ("CURRENT", 17)]
)
def test_positions_that_do_not_fit_are_refused(tmp_path: Path, file: str, position: int) -> None:
    async def work(node: Served) -> None:
        manifest, _ = await node.take()
        have = [pb.SnapshotPosition(file=file, bytes=position)]
        with pytest.raises(BadRequest):
            await node.take(request=pb.SnapshotRequest(snapshot_id=manifest.snapshot_id, have=have))

    served(tmp_path, work)


def test_the_newest_serves_all_while_it_is_young(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        ids = {(await node.take(str(receiver)))[0].snapshot_id for receiver in range(5)}
        assert len(ids) == 1 and node.made == 1
        assert node.folders() == sorted(ids)

    served(tmp_path, work)


@pytest.mark.parametrize("why", ["lag", "floor", "age"])
def test_one_that_is_too_old_is_replaced(tmp_path: Path, why: str) -> None:
    async def work(node: Served) -> None:
        first, _ = await node.take()
        if why == "lag":
            node.index += 101
        elif why == "floor":
            node.index += 1
            node.floor = node.index
        else:
            await asyncio.sleep(0.06)
        second, _ = await node.take()
        assert first.snapshot_id != second.snapshot_id
        assert second.index == node.index
        # The first may still be gone on with, but for one that the log does not follow any more.
        request = pb.SnapshotRequest(snapshot_id=first.snapshot_id)
        third, _ = await node.take(request=request)
        assert third == (second if why == "floor" else first)

    served(tmp_path, work, max_lag=100, max_age_seconds=0.05 if why == "age" else 100.0)


def test_all_that_wait_share_one_that_is_being_made(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        node.gate = asyncio.Event()
        takes = [asyncio.create_task(node.take(str(receiver))) for receiver in range(4)]
        await until(lambda: node.made)
        node.gate.set()
        ids = {manifest.snapshot_id for manifest, _ in await asyncio.gather(*takes)}
        assert len(ids) == 1 and node.made == 1

    served(tmp_path, work, max_receivers=4)


def test_a_receiver_that_gives_up_waiting_finds_the_snapshot_later(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        node.gate = asyncio.Event()
        take = asyncio.create_task(node.take())
        await until(lambda: node.made)
        take.cancel()
        await asyncio.gather(take, return_exceptions=True)
        node.gate.set()
        await node.take()
        assert node.made == 1

    served(tmp_path, work)


def test_what_nobody_needs_is_removed(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        first, _ = await node.take()
        assert node.folders() == [first.snapshot_id]
        await until(lambda: not node.folders())
        assert node.store._snapshots == {}
        second, _ = await node.take()
        assert node.folders() == [second.snapshot_id]

    served(tmp_path, work, max_age_seconds=0.1, linger_seconds=0.0)


def test_one_that_is_read_is_kept_whatever_its_age(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        chunks = stream(node.store, "2", pb.SnapshotRequest())
        first = (await anext(chunks)).manifest
        await asyncio.sleep(0.02)
        node.index = 50
        second, _ = await node.take("3")
        await asyncio.sleep(0.02)
        await settle(node)
        assert first.snapshot_id in node.folders()
        assert node.store.needed_index == 10
        contents = [chunk async for chunk in chunks]
        assert len(contents) == 4
        await settle(node)
        assert first.snapshot_id not in node.folders()
        assert node.store.needed_index is None
        del second

    served(tmp_path, work, max_age_seconds=0.01, max_lag=10, linger_seconds=0.0)


def test_the_log_behind_a_snapshot_is_needed_for_a_while_after_its_stream(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        assert node.store.needed_index is None
        await node.take()
        assert node.store.needed_index == 10
        await until(lambda: node.store.needed_index is None)

    served(tmp_path, work, linger_seconds=0.1)


def test_receivers_are_bounded(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        async with AsyncExitStack() as stack:
            for receiver in ("2", "3", "3"):  # a second stream may be the newer one of a broken connection
                chunks = stream(node.store, receiver, pb.SnapshotRequest())
                stack.push_async_callback(chunks.aclose)
                await anext(chunks)
            for receiver in ("3", "4"):
                with pytest.raises(TooManyReceivers):
                    await node.take(receiver)
            await node.take("2")
        await node.take("4")
        assert node.store._receivers == {}

    served(tmp_path, work)


def test_a_checkpoint_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        node.error = RuntimeError("the engine is closed")
        with pytest.raises(SnapshotError, match="the engine is closed"):
            await node.take()
        assert node.folders() == [] and node.store._receivers == {}
        node.error = None
        await node.take()

    assert served(tmp_path, work).events.events == ["make failed", "made", "served"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        node.files.error = errno.EIO
        with pytest.raises(SnapshotError, match="Input/output"):
            await node.take()
        assert node.folders() == []

    served(tmp_path, work)


# ---- checksums -------------------------------------------------------------------------------------------


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
    assert isinstance(info, FileInfo) and info.size == 3
    with pytest.raises(OSError):
        files.info(tmp_path)
    (tmp_path / "symlink").symlink_to(tmp_path / "a")
    with pytest.raises(OSError):
        files.info(tmp_path / "symlink")


# ---- pace and threads ------------------------------------------------------------------------------------


def test_all_receivers_together_are_sent_no_more_than_the_rate(tmp_path: Path) -> None:
    async def work(node: Served) -> None:
        loop = asyncio.get_running_loop()
        await node.take()  # the burst
        begin = loop.time()
        await asyncio.gather(node.take("2"), node.take("3"))
        assert loop.time() - begin >= (3 * MIB - 2 * MIB) / (16 * MIB) - 0.01

    served(tmp_path, work, bytes_per_second=16 * MIB)


@pytest.mark.parametrize("options", [{"chunk_bytes": 1000}, {"chunk_bytes": 2 << 20}, {"max_receivers": 0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ServeOptions(**options)


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
