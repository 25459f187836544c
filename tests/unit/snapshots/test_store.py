"""Making, keeping and removing the snapshots that a node serves."""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack
from pathlib import Path

import google_crc32c
import pytest
from raftstorage.node.snapshots import ServeOptions, SnapshotError, stream
from raftstorage.node.snapshots.serve import BadRequest
from raftstorage.node.snapshots.store import TooManyReceivers
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.served import MIB, Served, served
from tests.unit.snapshots.sources import until


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
