"""Snapshots over real sockets, between real files."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import rocksdict
from raftstorage.node.engine.rocks import RocksStore
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.peer_hello import HelloRefused, Refused
from raftstorage.node.service.snapshots import GrpcSource
from raftstorage.node.snapshots import (
    ServeOptions,
    SnapshotError,
    SnapshotUnavailable,
    SourceFailed,
    clean,
    current,
    point_to,
)
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.rpc import (
    MIB,
    UNLIMITED,
    Server,
    State,
    contents,
    hello,
    receiving,
    sample,
    serving,
    write_files,
)
from tests.unit.snapshots.sources import run, until


def test_a_database_is_fetched_and_taken_over(tmp_path: Path) -> None:
    pairs = [(b"%016d" % n, random.Random(n).randbytes(2000)) for n in range(2000)]

    async def work() -> None:
        store = RocksStore(tmp_path / "db")
        for key, value in pairs:
            store.write([("records", key, value)])
        store.flush()

        async def checkpoint(path: Path) -> State:
            rocksdict.Checkpoint(store._db).create_checkpoint(str(path))
            return State()

        node = tmp_path / "n2"
        async with serving(tmp_path, tmp_path / "db") as server, receiving(node) as fetching:
            server.store._checkpoint = checkpoint
            fetched = await fetching.fetch(server.source)
        point_to(node, fetched.path.name, fetched.index, fetched.term)
        clean(node)
        store.close()

    run(work())
    installed = current(tmp_path / "n2")
    assert (installed.name, installed.index, installed.term) == ("db-10-2", 10, 2)
    opened = RocksStore(tmp_path / "n2" / installed.name)
    assert list(opened.scan("records", b"")) == pairs
    opened.close()


def test_metrics_of_both_sides(tmp_path: Path) -> None:
    async def work() -> None:
        database = write_files(tmp_path / "db", 3, MIB)
        mine = NodeMetrics()
        async with serving(tmp_path, database) as server, receiving(tmp_path / "n2", observer=mine) as fetching:
            fetched = await fetching.fetch(server.source)
            assert contents(fetched.path) == contents(database)
            theirs = server.metrics
            await until(lambda: sample(theirs, "snapshots_total", event="served"))
        assert sample(theirs, "snapshots_total", event="made") == 1
        assert sample(theirs, "snapshot_bytes_total", direction="sent") == 3 * MIB
        assert sample(mine, "snapshot_bytes_total", direction="received") == 3 * MIB
        assert sample(mine, "snapshots_total", event="fetched") == 1
        assert sample(mine, "snapshot_seconds_count", event="fetched") == 1
        assert sample(mine, "snapshot_fetch_total_bytes") == 0
        assert sample(mine, "snapshot_failures_total", event="fetch") == 0

    run(work())


def test_a_node_that_comes_back_is_gone_on_with(tmp_path: Path) -> None:
    """It has forgotten its snapshot; its tables are the same."""

    async def work() -> None:
        database = write_files(tmp_path / "db", 8, MIB)
        slow = ServeOptions(bytes_per_second=8 * MIB, read_bytes_per_second=0)
        mine = NodeMetrics()
        async with receiving(tmp_path / "n2", observer=mine) as fetching:
            async with serving(tmp_path, database, slow) as server:
                port = int(server.address.rsplit(":", 1)[1])
                fetch = asyncio.create_task(fetching.fetch(server.source))
                await until(lambda: sample(mine, "snapshot_bytes_total", direction="received") > 3 * MIB)
            async with serving(tmp_path, database, UNLIMITED, port) as again:
                fetched = await fetch
                sent = sample(again.metrics, "snapshot_bytes_total", direction="sent")
                assert len(again.peers) == 2
        assert contents(fetched.path) == contents(database)
        received = sample(mine, "snapshot_bytes_total", direction="received")
        assert received < 9 * MIB and sent <= 6 * MIB

    run(work())


def status_of(work: Callable[[Server], Any], tmp_path: Path, options: ServeOptions = UNLIMITED) -> SourceFailed:
    """How a stream ends that is asked for when `work` has been done to the server."""

    async def all_of_it() -> SourceFailed:
        database = write_files(tmp_path / "db", 1, MIB)
        async with serving(tmp_path, database, options) as server:
            request = await work(server) or pb.SnapshotRequest()
            with pytest.raises(SourceFailed) as failed:
                async for _chunk in server.source.open(request):
                    pass
            return failed.value

    return run(all_of_it())


def test_a_hello_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        server.refused = HelloRefused(Refused.CLUSTER, "node 2 is of another cluster")

    failed = status_of(work, tmp_path)
    assert failed.final and "FAILED_PRECONDITION: node 2 is of another cluster" in str(failed)


def test_positions_that_do_not_fit_are_an_invalid_argument(tmp_path: Path) -> None:
    async def work(server: Server) -> pb.SnapshotRequest:
        async for chunk in server.source.open(pb.SnapshotRequest()):
            if chunk.HasField("manifest"):
                snapshot_id = chunk.manifest.snapshot_id
        return pb.SnapshotRequest(
            snapshot_id=snapshot_id, have=[pb.SnapshotPosition(file="../db/000000.sst", bytes=1)]
        )

    failed = status_of(work, tmp_path)
    assert failed.final and "INVALID_ARGUMENT" in str(failed)


def test_a_database_that_decayed_is_data_loss(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        async for _chunk in server.source.open(pb.SnapshotRequest()):
            pass
        os.truncate(server.database / "000000.sst", 1000)

    failed = status_of(work, tmp_path)
    assert failed.final and "DATA_LOSS" in str(failed)


def test_no_snapshot_to_be_had_is_a_reason_to_ask_again(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        async def checkpoint(path: Path) -> State:
            raise RuntimeError("the node is starting")

        server.store._checkpoint = checkpoint

    failed = status_of(work, tmp_path)
    assert not failed.final and "UNAVAILABLE: no snapshot can be made: the node is starting" in str(failed)


def test_too_many_receivers_are_a_reason_to_ask_again(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        server.store._receivers["node 7"] = 1

    options = ServeOptions(bytes_per_second=0, read_bytes_per_second=0, max_receivers=1)
    failed = status_of(work, tmp_path, options)
    assert not failed.final and "RESOURCE_EXHAUSTED" in str(failed)


def test_nobody_there_is_a_reason_to_ask_again(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        await server.server.stop(0)

    failed = status_of(work, tmp_path)
    assert not failed.final and "UNAVAILABLE" in str(failed)


def test_bytes_that_are_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with (
            serving(tmp_path, write_files(tmp_path / "db", 1, MIB)) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            call = channel.unary_stream("/raftstorage.v1.Peers/Snapshot")(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call.read()
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert server.peers == []

    run(work())
    assert [record for record in caplog.records if record.exc_info] == []


def test_each_stream_has_a_connection_of_its_own(tmp_path: Path) -> None:
    """Or what else is sent to this peer would wait in one socket behind a snapshot."""

    async def work() -> None:
        async with serving(tmp_path, write_files(tmp_path / "db", 1, MIB)) as server:
            one, other = (server.source.open(pb.SnapshotRequest()) for _ in range(2))
            await anext(one)
            await anext(other)
            assert len(server.peers) == 2 and len(set(server.peers)) == 2
            await one.aclose()
            await other.aclose()

    run(work())


def test_a_receiver_that_does_not_read_is_not_read_for(tmp_path: Path) -> None:
    """And one that goes away lets go of the snapshot."""

    async def work() -> None:
        database = write_files(tmp_path / "db", 8, 16 * MIB)
        options = ServeOptions(bytes_per_second=0, read_bytes_per_second=0, linger_seconds=0)
        async with serving(tmp_path, database, options) as server:
            chunks = server.source.open(pb.SnapshotRequest())
            await anext(chunks)
            before = server.files.bytes_read
            await anext(chunks)
            seen = -1
            while seen != server.files.bytes_read:
                seen = server.files.bytes_read
                await asyncio.sleep(0.2)
            assert 0 < seen - before <= 16 * MIB, "of 128 MiB"
            assert server.store.needed_index == 10
            await chunks.aclose()
            await until(lambda: server.store.needed_index is None)
            assert server.store._receivers == {}
            assert sample(server.metrics, "snapshots_total", event="served") == 0

    run(work())


def test_a_fetch_that_is_cancelled_lets_go_of_everything(tmp_path: Path) -> None:
    async def work() -> None:
        database = write_files(tmp_path / "db", 4, MIB)
        options = ServeOptions(bytes_per_second=MIB, read_bytes_per_second=0, linger_seconds=0)
        mine = NodeMetrics()
        async with (
            serving(tmp_path, database, options) as server,
            receiving(tmp_path / "n2", observer=mine) as fetching,
        ):
            fetch = asyncio.create_task(fetching.fetch(server.source))
            await until(lambda: sample(mine, "snapshot_bytes_total", direction="received"))
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            await until(lambda: server.store._receivers == {})
            folder = str(tmp_path / "n2")
            open_files = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
            assert [name for name in open_files if name.startswith(folder)] == []

    run(work())


def test_a_node_that_stops_while_it_serves_ends_cleanly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        database = write_files(tmp_path / "db", 4, MIB)
        slow = ServeOptions(bytes_per_second=MIB, read_bytes_per_second=0)
        async with serving(tmp_path, database, slow) as server:
            chunks = server.source.open(pb.SnapshotRequest())
            for _ in range(3):
                await anext(chunks)
            await server.server.stop(0)
            await server.store.stop()
            assert server.store._receivers == {}
            open_files = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
            assert [name for name in open_files if name.startswith(str(tmp_path))] == []
            with pytest.raises(SnapshotError, match="stops"):
                async with server.store.open("3"):
                    pass
            await chunks.aclose()

    run(work())
    assert [record.message for record in caplog.records if record.exc_info] == []


def test_a_source_of_another_version_is_given_up(tmp_path: Path) -> None:
    async def work() -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with receiving(tmp_path / "n2") as fetching:
            with pytest.raises(SnapshotUnavailable, match="UNIMPLEMENTED"):
                await fetching.fetch(GrpcSource(f"127.0.0.1:{port}", hello))
        await server.stop(0)

    run(work())
