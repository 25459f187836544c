"""Sessions over a real gRPC stream; the driver is replaced by one that applies what is proposed when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import pytest
from raftstorage.node.driver import LeadershipLost
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import Entry, EntryKind, NotLeader, Role, RoleChange
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.sessions import SessionLimits, StorageService
from raftstorage.proto import PROTOCOL_VERSION, storage_pb2_grpc
from raftstorage.proto import storage_pb2 as pb

CLUSTER = "0" * 32
ROOT = bytes(8)


def oid(number: int) -> bytes:
    return number.to_bytes(8, "big")


class FakeDriver:
    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.on_applied: list[Callable[..., None]] = []
        self.on_role: list[Callable[..., None]] = []
        self.on_ready: list[Callable[[], None]] = []
        self.role, self.term, self.leader, self.is_ready_leader = Role.LEADER, 1, 1, True
        self.held = False
        self.barrier_error: Exception | None = None
        self.failed: list[BaseException] = []
        self._log: list[bytes] = []

    def fail(self, error: BaseException) -> None:
        self.failed.append(error)

    def propose(self, data: bytes) -> int:
        if self.role is not Role.LEADER:
            raise NotLeader("no")
        self._log.append(data)
        if not self.held:
            asyncio.get_running_loop().call_soon(self.apply)
        return self.engine.applied_index + len(self._log)

    def apply(self) -> None:
        batch = []
        for data in self._log:
            index = self.engine.applied_index + 1
            batch.append((Entry(self.term, index, EntryKind.COMMAND, data), self.engine.apply(index, data)))
        self._log.clear()
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

    async def event(self) -> pb.Event:
        while not self._events:
            batch = await asyncio.wait_for(self._call.read(), 10)
            if batch is grpc.aio.EOF:
                raise EOFError(await self._call.code())
            self._events += batch.events
        self.seen.append(self._events.pop(0))
        return self.seen[-1]

    async def answer(self, number: int) -> pb.Event:
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

    async def code(self) -> grpc.StatusCode:
        with pytest.raises((EOFError, grpc.aio.AioRpcError)):
            while True:
                await self.event()
        code: grpc.StatusCode = await self._call.code()
        return code


class World:
    def __init__(self, limits: SessionLimits) -> None:
        self.driver = FakeDriver()
        self.metrics = NodeMetrics()
        identity = NodeIdentity(CLUSTER, 1, {1: "one:1", 2: "two:2"})
        self.service = StorageService(self.driver, identity, limits, self.metrics)  # type: ignore[arg-type]
        self.connect: Callable[[], Client]


@asynccontextmanager
async def world(limits: SessionLimits | None = None) -> AsyncIterator[World]:
    it = World(limits or SessionLimits())
    server = grpc.aio.server()
    storage_pb2_grpc.add_StorageServicer_to_server(it.service, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = storage_pb2_grpc.StorageStub(channel)
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


@run
async def test_welcome_and_a_transaction() -> None:
    async with world() as it:
        client = it.connect()
        welcome = (await client.hello(cluster_id=CLUSTER)).welcome
        assert (welcome.cluster_id, welcome.node_id, welcome.lease_ms) == (CLUSTER, 1, 30_000)
        assert welcome.leader.address == "one:1" and len(welcome.leader.members) == 2
        body = pb.Transaction(records=[pb.NewRecord(oid=ROOT, data=b"root")]).SerializeToString()
        assert not (await client.ask(vote=pb.Vote(transaction_id=b"t" * 16, transaction=body))).vote.conflicts
        tid = (await client.ask(finish=pb.Finish(transaction_id=b"t" * 16))).committed.tid
        told, answered = client.seen[-2:]
        assert told.invalidations.transactions[0] == pb.Invalidation(tid=tid, oids=[ROOT])
        assert answered.committed.tid == tid
        load = pb.LoadBefore(oid=ROOT, before=b"\x7f" + b"\xff" * 7, at_least=tid)
        assert (await client.ask(load_before=load)).record == pb.Record(data=b"root", serial=tid)
        assert (await client.ask(load_serial=pb.LoadSerial(oid=ROOT, serial=tid))).record.data == b"root"
        assert (await client.ask(history=pb.History(oid=ROOT, size=5))).history.revisions[0].tid == tid
        page = (await client.ask(read_transactions=pb.ReadTransactions())).transactions
        assert page.transactions[0].records[0].data == b"root" and not page.more
        assert (await client.ask(size=pb.Size())).size.objects == 1
        assert (await client.ask(read_barrier=pb.ReadBarrier())).read_point.last_tid == tid
        assert (await client.ask(allocate_oids=pb.AllocateOids(count=3))).oids.count == 3


@run
async def test_hello_that_does_not_fit_is_refused() -> None:
    async with world() as it:
        for fields, reason, code in (
            ({"protocol_version": 99}, pb.PROTOCOL_MISMATCH, grpc.StatusCode.UNIMPLEMENTED),
            ({"cluster_id": "f" * 32}, pb.WRONG_CLUSTER, grpc.StatusCode.FAILED_PRECONDITION),
            ({"client_id": "g" * 32}, pb.INVALID, grpc.StatusCode.INVALID_ARGUMENT),
            ({"client_id": ""}, pb.INVALID, grpc.StatusCode.INVALID_ARGUMENT),
            ({"after_tid": b"short"}, pb.INVALID, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            client = it.connect()
            answer = await client.hello(**fields)
            assert (answer.failure.reason, answer.failure.code) == (reason, code.value[0])
            assert await client.code() is code
        client = it.connect()
        assert (await client.ask(size=pb.Size())).failure.reason == pb.INVALID


@run
async def test_catching_up_leaves_no_gap() -> None:
    async with world() as it:
        writer = it.connect()
        await writer.hello()
        tids = [(await writer.commit(n, n)).committed.tid for n in range(1, 21)]
        client = it.connect()
        await client.hello(after_tid=tids[4])
        tids += [(await writer.commit(n, n)).committed.tid for n in range(21, 25)]
        got: list[bytes] = []
        while len(got) < 19:
            got += [one.tid for one in (await client.event()).invalidations.transactions]
        assert got == tids[5:]


@run
async def test_a_repeated_or_refused_commit_invalidates_nothing() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        tid = (await client.commit(1, 1)).committed.tid
        assert (await client.commit(1, 1)).committed.tid == tid
        conflict = (await client.commit(2, 1, data=b"other")).failure
        assert (conflict.reason, conflict.data, conflict.serial) == (pb.CONFLICT, b"data", tid)
        assert sum(event.HasField("invalidations") for event in client.seen) == 1
        commits = it.metrics.registry.get_sample_value
        for result in ("committed", "repeated", "conflict"):
            assert commits("raftstorage_node_commits_total", {"result": result}) == 1, result


@run
async def test_a_read_waits_for_its_tid_or_lags() -> None:
    async with world() as it:
        client, writer = it.connect(), it.connect()
        await client.hello()
        await writer.hello()
        tid = (await writer.commit(1, 1)).committed.tid
        later = (int.from_bytes(tid, "big") + 1).to_bytes(8, "big")
        load = pb.LoadBefore(oid=oid(1), before=b"\x7f" + b"\xff" * 7, at_least=later)
        assert (await client.ask(load_before=load)).failure.reason == pb.LAGGING
        number = await client.send(load_before=load)
        await client.ask(read_barrier=pb.ReadBarrier())
        await writer.commit(2, 1, base=tid, data=b"new")
        assert (await client.answer(number)).record.data == b"new"
        assert client.seen[-2].HasField("invalidations")
        missing = pb.LoadBefore(oid=oid(99), before=later)
        assert (await client.ask(load_before=missing)).failure.reason == pb.NO_SUCH_OBJECT


@run
async def test_writes_want_a_leader() -> None:
    async with world() as it:
        reader, client = it.connect(), it.connect()
        await reader.hello(read_only=True)
        await client.hello()
        assert (await reader.commit(1, 1)).failure.reason == pb.READ_ONLY
        it.driver.become(Role.FOLLOWER, 2)
        refused = (await client.commit(1, 1)).failure
        assert (refused.reason, refused.leader.address, refused.leader.term) == (pb.NOT_LEADER, "two:2", 2)
        assert client.seen[-2].leader.node_id == 2
        it.driver.become(Role.LEADER, 1)
        asked = asyncio.create_task(client.commit(1, 1))
        await reader.ask(read_barrier=pb.ReadBarrier())
        it.driver.ready()
        assert (await asked).committed.tid
        it.driver.become(Role.LEADER, 1)
        assert (await client.commit(2, 2)).failure.reason == pb.NOT_LEADER  # never ready
        it.driver.barrier_error = LeadershipLost("gone")
        assert (await client.ask(read_barrier=pb.ReadBarrier())).failure.reason == pb.NOT_LEADER


@run
async def test_what_is_in_flight_when_leadership_is_lost_is_unknown() -> None:
    async with world() as it:
        it.driver.held = True
        client, other = it.connect(), it.connect()
        await client.hello()
        await other.hello()
        asked = asyncio.create_task(client.commit(1, 1))
        while not it.driver._log:
            await other.ask(read_barrier=pb.ReadBarrier())
        it.driver.become(Role.FOLLOWER, 2)
        assert (await asked).failure.reason == pb.LEADERSHIP_LOST


@run
async def test_a_vote_ends_with_its_session() -> None:
    async with world() as it:
        first, second = it.connect(), it.connect()
        await first.hello()
        await second.hello()
        body = pb.Transaction(records=[pb.NewRecord(oid=ROOT, data=b"root")]).SerializeToString()
        await first.ask(vote=pb.Vote(transaction_id=b"1" * 16, transaction=body))
        waiting = asyncio.create_task(second.ask(vote=pb.Vote(transaction_id=b"2" * 16, transaction=body)))
        first._call.cancel()
        assert (await waiting).HasField("vote")


@run
async def test_bad_requests_are_refused_and_the_session_goes_on() -> None:
    async with world(SessionLimits(max_record_bytes=10, max_transaction_bytes=200)) as it:
        client = it.connect()
        await client.hello()
        too_large = (await client.commit(1, 7, data=b"x" * 11)).failure
        assert (too_large.reason, too_large.oid) == (pb.TOO_LARGE, oid(7))
        assert (await client.commit(1, *range(50))).failure.reason == pb.TOO_LARGE
        assert (await client.commit(1, 3, 3)).failure.reason == pb.INVALID
        for call in (
            {"load_before": pb.LoadBefore(oid=b"short", before=ROOT)},
            {"history": pb.History(oid=ROOT, size=0)},
            {"allocate_oids": pb.AllocateOids(count=0)},
            {"vote": pb.Vote(transaction_id=b"short")},
            {"commit": pb.Commit(transaction_id=b"t" * 16, transaction=b"\xff\xff")},
            {"hello": pb.Hello()},
            {},
        ):
            assert (await client.ask(**call)).failure.reason == pb.INVALID, call
        assert (await client.commit(1, 1)).committed.tid


@run
async def test_a_failing_handler_does_not_end_the_session() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        it.driver.engine.approximate_size = None  # type: ignore[assignment, method-assign]
        assert (await client.ask(size=pb.Size())).failure.reason == pb.INTERNAL
        assert (await client.commit(1, 1)).committed.tid
        assert it.driver.failed == []


@run
async def test_a_database_that_cannot_be_read_ends_the_node() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        damaged = EngineError("a damaged block")

        def read(*_: object) -> NoReturn:
            raise damaged

        it.driver.engine.load_before = read  # type: ignore[method-assign]
        await client.ask(load_before=pb.LoadBefore(oid=oid(1), before=oid(2)))
        assert it.driver.failed == [damaged]
        it.driver.engine.conflicts = read  # type: ignore[method-assign]
        await client.commit(1, 1)
        assert it.driver.failed == [damaged, damaged]


@run
async def test_a_client_that_takes_nothing_loses_its_session() -> None:
    async with world(SessionLimits(queue_items=100)) as it:
        lazy, writer = it.connect(), it.connect()
        await lazy.hello()
        await writer.hello()
        for one in list(it.service._sessions):
            for _ in range(102):  # in one turn of the loop: nothing can leave
                one.put(pb.Event(leader=pb.Leader(term=1)))
        assert await lazy.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@run
async def test_close_ends_sessions_and_refuses_new_ones() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        await it.service.close()
        assert await client.code() is grpc.StatusCode.UNAVAILABLE
        assert await it.connect().code() is grpc.StatusCode.UNAVAILABLE
        assert it.metrics.registry.get_sample_value("raftstorage_node_sessions") == 0
