"""Whole nodes whose disks are nearly full: they say so, give leadership away, and take it up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from operator import eq
from pathlib import Path
from typing import NoReturn

import grpc.aio
from raftstorage.node.disk_space import Room, Space
from raftstorage.node.node import Node
from raftstorage.node.options import NodeOptions
from raftstorage.ops.ports import free_ports
from raftstorage.proto import PROTOCOL_VERSION, admin_pb2, admin_pb2_grpc, storage_pb2_grpc
from raftstorage.proto import storage_pb2 as pb

from tests.unit.node.driver_cluster import until
from tests.unit.service.session_world import Client


def fatal(error: BaseException) -> NoReturn:
    raise AssertionError("the node ended") from error


@asynccontextmanager
async def nodes(directory: Path, count: int, reserve: int = 0) -> AsyncIterator[dict[int, Node]]:
    members = dict(enumerate((f"127.0.0.1:{port}" for port in free_ports(count)), 1))
    found = {
        number: Node(
            NodeOptions(
                number,
                directory / str(number),
                members,
                tick_ms=20,
                metrics="127.0.0.1:0",
                disk_reserve_bytes=reserve,
            ),
            fatal=fatal,
        )
        for number in members
    }
    async with AsyncExitStack() as close:
        for node in found.values():
            await node.start()
            close.push_async_callback(node.stop)
        yield found


async def leader(found: dict[int, Node]) -> Node:
    first = next(iter(found.values()))
    async with asyncio.timeout(20):
        while True:
            waits = [asyncio.create_task(node.driver.wait_role()) for node in found.values()]
            await asyncio.sleep(0)  # they listen from here on
            try:
                if first.driver.leader and found[first.driver.leader].driver.is_ready_leader:
                    return found[first.driver.leader]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()


def reaches_both(node: Node) -> bool:
    return len(node.driver.other_voters(node._peers.connected)) == 2


async def status(node: Node) -> admin_pb2.StatusReply:
    async with grpc.aio.insecure_channel(node.address) as channel:
        stub = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
        reply: admin_pb2.StatusReply = await stub.Status(admin_pb2.StatusRequest())
        return reply


async def write(node: Node, number: int) -> pb.Event:
    async with grpc.aio.insecure_channel(node.address) as channel:
        client = Client(storage_pb2_grpc.StorageStub(channel).Session())  # type: ignore[no-untyped-call]
        await client.ask(hello=pb.Hello(protocol_version=PROTOCOL_VERSION, client_id="0" * 32))
        return await client.commit(number, number)


def test_a_lone_node_refuses_until_there_is_room(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 1, reserve=1 << 62) as found:
            node = await leader(found)
            assert node.disk.room is Room.NONE, "it looked before it served"
            assert (await write(node, 1)).failure.reason == pb.STORAGE_FULL
            reply = await status(node)
            assert reply.disk_reserve_bytes == 1 << 62 and 0 < reply.disk_free_bytes < 1 << 62
            (problem,) = reply.problems
            assert "nearly full" in problem
            metric = node.metrics.registry.get_sample_value
            assert metric("raftstorage_node_disk_full") == 1
            assert metric("raftstorage_node_disk_free_bytes") == reply.disk_free_bytes
            node.disk._look = lambda: Space(1 << 62, 1 << 62)
            node.disk.gauge._reserve = 1 << 30
            await node.disk.look()
            assert (await write(node, 1)).committed.tid
            assert not (await status(node)).problems
            assert metric("raftstorage_node_disk_full") == 0

    asyncio.run(work())


def test_leadership_goes_to_a_node_with_room(tmp_path: Path) -> None:
    async def work() -> None:
        async with nodes(tmp_path, 3) as found:
            old = await leader(found)
            assert (await write(old, 1)).committed.tid
            others = [number for number in found if found[number] is not old]
            for target in others:  # not the furthest: the one that is known to have room
                old = await leader(found)
                if old.options.node_id == target:
                    continue
                await until(partial(reaches_both, old), lambda: asyncio.sleep(0.01))
                old.disk._handover._peer_has_room = partial(eq, target)
                old.disk._look = lambda: Space(10, 1 << 40)
                await old.disk.look()
                new = await leader(found)
                assert new.options.node_id == target
                assert (await write(new, target + 1)).committed.tid
                refused = (await write(old, 99)).failure
                assert refused.reason == pb.NOT_LEADER
                assert old.driver.running, "it goes on following"

    asyncio.run(work())
