"""A scripted cluster for the client's tests: real gRPC servers one state between them, faults on order."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from raftstorage.client import ClientStorage
from raftstorage.client.cluster.loop import run_in_loop, shared_loop
from raftstorage.proto import storage_pb2 as pb
from raftstorage.proto.storage_pb2_grpc import StorageServicer, add_StorageServicer_to_server

from tests.unit.pieces import put_together

Z64 = b"\0" * 8
CLUSTER_ID = "ab" * 16


def tid_of(number: int) -> bytes:
    return number.to_bytes(8)


class Node(StorageServicer):
    """One replica. It answers as the whole cluster's state says, but for the faults asked for."""

    def __init__(self, cluster: FakeCluster, node_id: int) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.address = ""
        self.server: Any = None
        self.sessions: list[asyncio.Queue[pb.Event | None]] = []
        self.silent = False  # takes requests and answers nothing
        self.lagging = False
        self.held: list[pb.Event] | None = None  # invalidations that are not sent on yet
        self.served: dict[str, int] = defaultdict(int)
        self.seen: list[pb.Request] = []
        self.lose_answer_of: str = ""  # do it, then end the stream without an answer
        self.on_loss: Callable[[], object] = lambda: None
        self.lose_request: str = ""  # end the stream without doing it
        self.speaks = (1, 1)  # oldest and newest protocol version
        self.parts: dict[tuple[object, bytes], list[bytes]] = {}  # by stream and transaction id

    async def start(self, port: int = 0) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_StorageServicer_to_server(self, self.server)
        bound = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{bound}"
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(None)
        self.sessions.clear()

    async def Session(
        self, requests: AsyncIterator[pb.RequestBatch], context: Any
    ) -> AsyncIterator[pb.EventBatch]:
        queue: asyncio.Queue[pb.Event | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(requests, queue))
        try:
            while (event := await queue.get()) is not None:
                yield pb.EventBatch(events=[event])
            await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted loss")
        finally:
            reader.cancel()
            if queue in self.sessions:
                self.sessions.remove(queue)

    async def _read(self, requests: AsyncIterator[pb.RequestBatch], queue: asyncio.Queue[pb.Event | None]) -> None:
        async for batch in requests:
            for request in batch.requests:
                kind = request.WhichOneof("call")
                assert kind is not None
                self.seen.append(request)
                self.served[kind] += 1
                if self.silent:
                    continue
                if kind == self.lose_request:
                    self.lose_request = ""
                    self.on_loss()
                    queue.put_nowait(None)
                    return
                if kind == "hello":
                    self._welcome(request, queue)
                    continue
                event = self._gathered(request, queue) or self.cluster.answer(self, kind, request)
                if kind == self.lose_answer_of:
                    self.lose_answer_of = ""
                    self.on_loss()
                    queue.put_nowait(None)
                    return
                if event is not None:
                    event.id = request.id
                    queue.put_nowait(event)

    def _gathered(self, request: pb.Request, stream: object) -> pb.Event | None:
        """Puts a large transaction together; a failure when its parts are not what they must be."""
        kind = request.WhichOneof("call")
        if kind not in ("part", "vote", "commit"):
            return None
        call = getattr(request, kind)
        parts = self.parts.setdefault((stream, call.transaction_id), [])
        if kind == "part":
            if call.number == 0:
                parts.clear()
            if call.number != len(parts):
                return pb.Event(failure=pb.Failure(reason=pb.INVALID, message="out of order"))
            parts.append(call.transaction)
        elif call.parts:
            if call.parts != len(parts):
                return pb.Event(failure=pb.Failure(reason=pb.INVALID, message="parts are missing"))
            call.transaction = put_together([*parts, call.transaction])
            parts.clear()
        return None

    def _welcome(self, request: pb.Request, queue: asyncio.Queue[pb.Event | None]) -> None:
        cluster = self.cluster
        hello = request.hello
        if not hello.min_protocol_version <= self.speaks[1] or not self.speaks[0] <= hello.protocol_version:
            failure = pb.Failure(reason=pb.PROTOCOL_MISMATCH, message=f"I speak {self.speaks}")
            queue.put_nowait(pb.Event(id=request.id, failure=failure))
            return
        welcome = pb.Welcome(
            protocol_version=self.speaks[1],
            min_protocol_version=self.speaks[0],
            level=cluster.level,
            cluster_id=cluster.cluster_id,
            node_id=self.node_id,
            last_tid=cluster.last,
            leader=cluster.leader_message(),
            max_record_bytes=cluster.max_record_bytes,
            max_transaction_bytes=cluster.max_transaction_bytes,
            lease_ms=1000,
        )
        queue.put_nowait(pb.Event(id=request.id, welcome=welcome))
        after = request.hello.after_tid
        if after:
            news = [pb.Invalidation(tid=t, oids=o) for t, o in cluster.log if t > after]
            if news:
                queue.put_nowait(pb.Event(invalidations=pb.Invalidations(transactions=news)))
        self.sessions.append(queue)

    def publish(self, event: pb.Event) -> None:
        if self.held is not None:
            self.held.append(event)
            return
        for queue in self.sessions:
            queue.put_nowait(event)

    def let_go(self) -> None:
        held, self.held = self.held or [], None
        for event in held:
            self.publish(event)


class FakeCluster:
    def __init__(self, nodes: int = 3) -> None:
        self.cluster_id = CLUSTER_ID
        self.level = 0
        self.records: dict[bytes, list[tuple[bytes, bytes]]] = {}
        self.log: list[tuple[bytes, list[bytes]]] = []
        self.committed: dict[bytes, bytes] = {}
        self.transactions: list[pb.CommittedTransaction] = []
        self.votes: dict[bytes, bytes] = {}
        self.last = Z64
        self.next_oid = 1
        self.term = 1
        self.leader = 1
        self.level = 1
        self.max_record_bytes = 1000
        self.max_transaction_bytes = 5000
        self.nodes = {i: Node(self, i) for i in range(1, nodes + 1)}
        self.fail_next: dict[str, list[int]] = defaultdict(list)
        self.call_loop([node.start() for node in self.nodes.values()])

    @property
    def addresses(self) -> str:
        return ",".join(node.address for node in self.nodes.values())

    def call_loop(self, coroutines: list[Any]) -> None:
        for coroutine in coroutines:
            asyncio.run_coroutine_threadsafe(coroutine, shared_loop()).result(10)

    def stop(self, *ids: int) -> None:
        self.call_loop([self.nodes[i].stop() for i in ids or self.nodes])

    def restart(self, node_id: int) -> None:
        node = self.nodes[node_id]
        self.call_loop([node.start(int(node.address.rpartition(":")[2]))])

    def lead(self, node_id: int) -> None:
        """Another node takes over; all others tell their clients."""

        def change() -> None:
            self.term += 1
            self.leader = node_id
            self.votes.clear()
            for node in self.nodes.values():
                if not node.silent:
                    node.publish(pb.Event(leader=self.leader_message()))

        run_in_loop(change)

    def leader_message(self) -> pb.Leader:
        members = [pb.Member(node_id=n.node_id, address=n.address) for n in self.nodes.values()]
        leader = self.nodes.get(self.leader)
        return pb.Leader(
            term=self.term, node_id=self.leader, address=leader.address if leader else "", members=members
        )

    def commit_elsewhere(self, *oids: bytes, data: bytes = b"elsewhere") -> bytes:
        """Another client's commit."""
        transaction = pb.Transaction(records=[pb.NewRecord(oid=oid, data=data) for oid in oids])
        return run_in_loop(lambda: self._apply(transaction, b"", self._next_tid()))

    def _next_tid(self) -> bytes:
        return tid_of(int.from_bytes(self.last) + 10)

    def _apply(self, transaction: pb.Transaction, transaction_id: bytes, tid: bytes) -> bytes:
        oids = [record.oid for record in transaction.records]
        for record in transaction.records:
            self.records.setdefault(record.oid, []).append((tid, record.data))
        self.last = tid
        self.log.append((tid, oids))
        if transaction_id:
            self.committed[transaction_id] = tid
        self.transactions.append(
            pb.CommittedTransaction(
                tid=tid,
                status=transaction.status or b" ",
                user=transaction.user,
                description=transaction.description,
                extension=transaction.extension,
                records=[
                    pb.StoredRecord(oid=r.oid, data=r.data, no_data=r.no_data, data_tid=r.data_tid)
                    for r in transaction.records
                ],
            )
        )
        news = pb.Invalidations(transactions=[pb.Invalidation(tid=tid, oids=oids)])
        for node in self.nodes.values():
            node.publish(pb.Event(invalidations=news))
        return tid

    def _conflicts(self, transaction: pb.Transaction) -> list[pb.Failure]:
        found = []
        for record in transaction.records:
            revisions = self.records.get(record.oid)
            current, data = revisions[-1] if revisions else (Z64, b"")
            if current != (record.base_serial or Z64):
                found.append(
                    pb.Failure(
                        reason=pb.CONFLICT,
                        oid=record.oid,
                        serial=current,
                        expected_serial=record.base_serial,
                        data=data,
                    )
                )
        for check in transaction.checks:
            revisions = self.records.get(check.oid)
            current = revisions[-1][0] if revisions else Z64
            if current != check.serial:
                found.append(
                    pb.Failure(
                        reason=pb.READ_CONFLICT, oid=check.oid, serial=current, expected_serial=check.serial
                    )
                )
        return found

    def answer(self, node: Node, kind: str, request: pb.Request) -> pb.Event | None:
        if self.fail_next[kind]:
            return pb.Event(failure=pb.Failure(reason=self.fail_next[kind].pop(0), leader=self.leader_message()))
        if kind in ("part", "vote", "finish", "commit", "allocate_oids") and node.node_id != self.leader:
            return pb.Event(failure=pb.Failure(reason=pb.NOT_LEADER, leader=self.leader_message()))
        event: pb.Event | None = getattr(self, f"_{kind}")(node, getattr(request, kind))
        return event

    def _load_before(self, node: Node, call: pb.LoadBefore) -> pb.Event:
        if node.lagging or call.at_least > self.last:
            return pb.Event(failure=pb.Failure(reason=pb.LAGGING))
        revisions = self.records.get(call.oid)
        if not revisions:
            return pb.Event(failure=pb.Failure(reason=pb.NO_SUCH_OBJECT, oid=call.oid))
        older = [index for index, (tid, _) in enumerate(revisions) if tid < call.before]
        if not older:
            return pb.Event(record=pb.Record())
        tid, data = revisions[older[-1]]
        later = revisions[older[-1] + 1][0] if older[-1] + 1 < len(revisions) else b""
        return pb.Event(record=pb.Record(data=data, serial=tid, next_serial=later))

    def _load_serial(self, node: Node, call: pb.LoadSerial) -> pb.Event:
        for tid, data in self.records.get(call.oid, ()):
            if tid == call.serial:
                return pb.Event(record=pb.Record(data=data, serial=tid))
        return pb.Event(failure=pb.Failure(reason=pb.NO_SUCH_OBJECT, oid=call.oid))

    def _vote(self, node: Node, call: pb.Vote) -> pb.Event:
        conflicts = self._conflicts(pb.Transaction.FromString(call.transaction))
        if not conflicts:
            self.votes[call.transaction_id] = call.transaction
        return pb.Event(vote=pb.VoteReply(conflicts=conflicts))

    def _finish(self, node: Node, call: pb.Finish) -> pb.Event:
        body = self.votes.pop(call.transaction_id, None)
        if body is None:
            return pb.Event(failure=pb.Failure(reason=pb.UNKNOWN_VOTE))
        return self._commit(node, pb.Commit(transaction_id=call.transaction_id, transaction=body))

    def _commit(self, node: Node, call: pb.Commit) -> pb.Event:
        tid = self.committed.get(call.transaction_id)
        if tid is None:
            transaction = pb.Transaction.FromString(call.transaction)
            if transaction.tid:
                if transaction.tid <= self.last:
                    return pb.Event(failure=pb.Failure(reason=pb.STALE_TID))
            elif conflicts := self._conflicts(transaction):
                return pb.Event(failure=conflicts[0])
            tid = self._apply(transaction, call.transaction_id, transaction.tid or self._next_tid())
        return pb.Event(committed=pb.Committed(tid=tid))

    def _part(self, node: Node, call: pb.Part) -> None:
        return None

    def _abort(self, node: Node, call: pb.Abort) -> pb.Event:
        self.votes.pop(call.transaction_id, None)
        return pb.Event(aborted=pb.Aborted())

    def _allocate_oids(self, node: Node, call: pb.AllocateOids) -> pb.Event:
        first, self.next_oid = self.next_oid, self.next_oid + call.count
        return pb.Event(oids=pb.OidRange(first=tid_of(first), count=call.count))

    def _read_barrier(self, node: Node, call: pb.ReadBarrier) -> pb.Event:
        if not self.leader:
            return pb.Event(failure=pb.Failure(reason=pb.LEADERSHIP_LOST))
        return pb.Event(read_point=pb.ReadPoint(last_tid=self.last))

    def _size(self, node: Node, call: pb.Size) -> pb.Event:
        return pb.Event(
            size=pb.SizeReply(bytes=sum(len(r) for r in self.records.values()), objects=len(self.records))
        )

    def _history(self, node: Node, call: pb.History) -> pb.Event:
        if call.oid not in self.records:
            return pb.Event(failure=pb.Failure(reason=pb.NO_SUCH_OBJECT, oid=call.oid))
        revisions = [pb.Revision(tid=t, size=len(d)) for t, d in reversed(self.records[call.oid])]
        return pb.Event(history=pb.HistoryReply(revisions=revisions[: call.size]))

    def _read_transactions(self, node: Node, call: pb.ReadTransactions) -> pb.Event:
        found = [t for t in self.transactions if call.start <= t.tid <= (call.stop or b"\xff" * 8)]
        return pb.Event(transactions=pb.Transactions(transactions=found[:2], more=len(found) > 2))


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.stop()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def storage(cluster: FakeCluster, registry: CollectorRegistry) -> Iterator[ClientStorage]:
    client = ClientStorage(
        cluster.addresses, wait_timeout=5.0, commit_timeout=5.0, cache_size=0, registry=registry, name="test"
    )
    yield client
    client.close()


@pytest.fixture
def place(disk_directory: Path) -> str:
    """What ClientStorage takes for a new database in a directory."""
    return f"embedded:{disk_directory}/database"
