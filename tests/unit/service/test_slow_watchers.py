"""Clients that do not take what they are sent: they lose their session at once, and come back without a gap."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from raftstorage.client.cluster.connection import Stream, dial
from raftstorage.client.cluster.feed import Feed
from raftstorage.client.cluster.metrics import Metrics
from raftstorage.client.cluster.replicas import Replicas, Surroundings
from raftstorage.node.service.session import ClientSession
from raftstorage.node.service.sessions import SessionLimits
from raftstorage.node.service.streams import WRITE_SECONDS
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.session_world import Client, World, run, world

#: Two of them fill what gRPC takes for a stream that nobody reads.
LARGE = pb.Event(record=pb.Record(data=b"x" * (3 << 20)))


async def connect(it: World) -> tuple[Client, ClientSession]:
    before = set(it.service._sessions)
    client = it.connect()
    await client.hello()
    (session,) = set(it.service._sessions) - before
    return client, session


async def stall(session: ClientSession) -> None:
    """Until the node's write to it does not end any more."""
    while session.queued.items < 3:
        session.put(LARGE)
        await asyncio.sleep(0.02)


@run
async def test_shedding_waits_for_nothing() -> None:
    limits = SessionLimits(queue_items=100)
    async with world(limits) as it:
        lazy, session = await connect(it)
        writer, _ = await connect(it)
        await writer.commit(1, 1)
        await stall(session)
        assert session.queued.bytes > 6 << 20
        for _ in range(101):
            session.put(pb.Event(leader=pb.Leader(term=1)))
        assert session.queued.bytes == 0, "what it does not take is still in memory"
        begun = time.monotonic()
        assert (await writer.commit(2, 2)).committed.tid
        assert session not in it.service._sessions and it.metrics.connected_sessions() == 1
        assert time.monotonic() - begun < WRITE_SECONDS / 2
        assert await lazy.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # once it reads


@run
async def test_a_client_that_takes_nothing_does_not_hold_up_the_nodes_end() -> None:
    async with world(SessionLimits(sessions=2)) as it:
        _lazy, session = await connect(it)
        await stall(session)
        session.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "too slow")
        await connect(it)
        assert await it.connect().code() is grpc.StatusCode.RESOURCE_EXHAUSTED, (
            "its memory does not count any more"
        )
        await asyncio.wait_for(it.service.close(), 4 * WRITE_SECONDS)


class Gate:
    """Dials as a client does; `shut` keeps it from reading."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.dialled: list[str] = []

    def dial(self, address: str) -> AbstractAsyncContextManager[Stream]:
        return self._dial(address)

    @asynccontextmanager
    async def _dial(self, address: str) -> Any:
        self.dialled.append(address)
        async with dial(address) as stream:
            yield _Slow(stream, self)


class _Slow:
    def __init__(self, stream: Stream, gate: Gate) -> None:
        self._stream = stream
        self._gate = gate
        self.write, self.cancel, self.details = stream.write, stream.cancel, stream.details

    def read(self) -> Awaitable[Any]:
        return self._read()

    async def _read(self) -> Any:
        await self._gate.open.wait()
        return await self._stream.read()


class Told(Feed):
    def __init__(self) -> None:
        super().__init__()
        self.tids: list[bytes] = []
        self.news = asyncio.Event()

    def accept(self, tid: bytes, oids: Sequence[bytes]) -> None:
        if tid > self.accepted:
            self.tids.append(tid)
            self.accepted = tid
        self.news.set()


@run
async def test_a_client_that_was_shed_resumes_without_a_gap() -> None:
    async with world(SessionLimits(queue_items=20)) as it:
        feed, gate = Told(), Gate()
        connected = asyncio.Event()
        replicas = Replicas(
            [it.address],
            Surroundings(asyncio.get_running_loop(), random.Random(1), gate.dial),
            feed,
            Metrics("watcher", CollectorRegistry()),
            client_id="0" * 32,
            changed=connected.set,
        )
        replicas.start()
        while not replicas.book.connected():
            connected.clear()
            await connected.wait()
        replicas.begin(bytes(8))
        (session,) = it.service._sessions
        writer, _ = await connect(it)
        tids = [(await writer.commit(n, n)).committed.tid for n in range(1, 6)]
        gate.open.clear()
        await stall(session)
        number = 5
        while not session.ended.done():
            number += 1
            tids.append((await writer.commit(number, number)).committed.tid)
        assert session.ended.result()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        tids += [(await writer.commit(n, n)).committed.tid for n in range(number + 1, number + 6)]
        gate.open.set()
        while len(feed.tids) < len(tids):
            feed.news.clear()
            await feed.news.wait()
        assert feed.tids == tids
        assert gate.dialled.count(it.address) == 2
        await asyncio.gather(*replicas.stop())
