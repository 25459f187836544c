"""A storage service over a driver that applies at once, and clients that speak to it through gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import pytest
from raftstorage.node.admission import Amount, Bounds
from raftstorage.node.backlog import Backlog
from raftstorage.node.disk_space import Room
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import Entry, EntryKind, NotLeader, Role, RoleChange
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.sessions import SessionLimits, StorageService
from raftstorage.proto import PARTS_LEVEL, PROTOCOL_VERSION, storage_pb2_grpc
from raftstorage.proto import storage_pb2 as pb

CLUSTER = "0" * 32
ROOT = bytes(8)


def oid(number: int) -> bytes:
    return number.to_bytes(8, "big")


class ProcessEnded(Exception):
    """In production nothing comes back from there."""


class FakeDriver:
    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.on_applied: list[Callable[..., None]] = []
        self.on_role: list[Callable[..., None]] = []
        self.on_ready: list[Callable[[], None]] = []
        self.on_membership: list[Callable[..., None]] = []
        self.on_installed: list[Callable[[], None]] = []
        self.on_proposed: list[Callable[..., None]] = []
        self.node_id = 1
        self.membership = Membership.initial({1: "one:1", 2: "two:2"})
        self.role, self.term, self.leader, self.is_ready_leader = Role.LEADER, 1, 1, True
        self.held = False
        self.may_write = True
        self.barrier_error: Exception | None = None
        self.failed: list[BaseException] = []
        self.ended = asyncio.Event()
        self.work = Backlog()
        self._log: list[bytes] = []

    @property
    def last_index(self) -> int:
        return self.engine.applied_index + len(self._log)

    @property
    def backlog(self) -> Amount:
        return Amount(len(self._log), sum(len(data) for data in self._log))

    def fail(self, error: BaseException) -> NoReturn:
        self.failed.append(error)
        self.ended.set()
        raise ProcessEnded

    def propose(self, data: bytes) -> int:
        return self.propose_many([data])

    def propose_many(self, data: Sequence[bytes]) -> int:
        if self.role is not Role.LEADER:
            raise NotLeader("no")
        first = self.engine.applied_index + len(self._log) + 1
        self._log += data
        for listener in self.on_proposed:
            listener(first, data)
        if not self.held:
            asyncio.get_running_loop().call_soon(self.apply)
        return first

    def apply(self, most: int | None = None) -> None:
        """All that was proposed, or so many entries of it."""
        batch = []
        now, self._log = self._log[:most], self._log[len(self._log[:most]) :]
        for data in now:
            index = self.engine.applied_index + 1
            entry = Entry(self.term, index, EntryKind.COMMAND, data)
            batch.append((entry, self.engine.apply(entry)))
        for listener in self.on_applied:
            listener(batch)

    def become(self, role: Role, leader: int, ready: bool = False) -> None:
        self.role, self.leader, self.is_ready_leader = role, leader, False
        self.term += 1
        for listener in self.on_role:
            listener(RoleChange(role, self.term, leader))
        if ready:
            self.ready()

    def ready(self) -> None:
        self.is_ready_leader = True
        for listener in self.on_ready:
            listener()

    async def read_barrier(self) -> None:
        if self.barrier_error is not None:
            raise self.barrier_error


class Client:
    def __init__(self, call: Any) -> None:
        self._call = call
        self._next = 0
        self._events: list[pb.Event] = []
        self.seen: list[pb.Event] = []

    async def send(self, **call: Any) -> int:
        self._next += 1
        await self._call.write(pb.RequestBatch(requests=[pb.Request(id=self._next, **call)]))
        return self._next

    async def send_all(self, calls: Sequence[dict[str, Any]]) -> list[int]:
        """In one batch."""
        numbers = list(range(self._next + 1, self._next + 1 + len(calls)))
        self._next += len(calls)
        requests = [pb.Request(id=number, **call) for number, call in zip(numbers, calls, strict=True)]
        await self._call.write(pb.RequestBatch(requests=requests))
        return numbers

    async def event(self) -> pb.Event:
        while not self._events:
            batch = await asyncio.wait_for(self._call.read(), 10)
            if batch is grpc.aio.EOF:
                raise EOFError(await self._call.code())
            self._events += batch.events
        self.seen.append(self._events.pop(0))
        return self.seen[-1]

    async def answer(self, number: int) -> pb.Event:
        """The answer to request `number`, whether it came before or is yet to come."""
        for event in self.seen:
            if event.id == number:
                return event
        while True:
            event = await self.event()
            if event.id == number:
                return event

    async def ask(self, **call: Any) -> pb.Event:
        return await self.answer(await self.send(**call))

    async def hello(self, **fields: Any) -> pb.Event:
        given = {"protocol_version": PROTOCOL_VERSION, "client_id": "0" * 32} | fields
        return await self.ask(hello=pb.Hello(**given))

    async def commit(self, identity: int, *oids: int, base: bytes = ROOT, data: bytes = b"data") -> pb.Event:
        transaction = pb.Transaction(records=[pb.NewRecord(oid=oid(n), base_serial=base, data=data) for n in oids])
        body = transaction.SerializeToString()
        return await self.ask(commit=pb.Commit(transaction_id=bytes([identity]) * 16, transaction=body))

    async def send_parts(self, identity: bytes, bodies: list[bytes], first: int = 0) -> list[int]:
        numbers = range(first, first + len(bodies))
        return [
            await self.send(part=pb.Part(transaction_id=identity, number=number, transaction=body))
            for number, body in zip(numbers, bodies, strict=True)
        ]

    async def code(self) -> grpc.StatusCode:
        with pytest.raises((EOFError, grpc.aio.AioRpcError)):
            while True:
                await self.event()
        code: grpc.StatusCode = await self._call.code()
        return code


class World:
    def __init__(self, limits: SessionLimits, bounds: Bounds | None, **options: Any) -> None:
        self.driver = FakeDriver()
        self.metrics = NodeMetrics()
        self.room = Room.AMPLE
        self.address = ""
        identity = NodeIdentity(CLUSTER, 1, {1: "one:1", 2: "two:2"})
        self.service = StorageService(
            self.driver,  # type: ignore[arg-type]
            identity,
            limits,
            self.metrics,
            bounds=bounds,
            level=options.pop("level", lambda: PARTS_LEVEL),
            room=lambda: self.room,
            **options,
        )
        self.connect: Callable[[], Client]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value("raftstorage_node_" + name, labels)


@asynccontextmanager
async def world(
    limits: SessionLimits | None = None, bounds: Bounds | None = None, **options: Any
) -> AsyncIterator[World]:
    """`options`: more arguments for the StorageService."""
    it = World(limits or SessionLimits(), bounds, **options)
    server = grpc.aio.server()
    storage_pb2_grpc.add_StorageServicer_to_server(it.service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = storage_pb2_grpc.StorageStub(channel)
            it.address = f"127.0.0.1:{port}"
            it.connect = lambda: Client(stub.Session())
            yield it
            await it.service.close()
    finally:
        await server.stop(0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def runner() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    runner.__name__ = test.__name__
    return runner
