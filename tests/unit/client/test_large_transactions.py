"""Transactions that are sent in parts, against the scripted cluster: order, failover, and others in between."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import ZODB.POSException as E
from raftstorage.client import ClientStorage
from raftstorage.client.cluster import bodies
from raftstorage.client.cluster.bodies import LargeBody, Record, make_body
from raftstorage.client.cluster.connection import Connection as RealConnection
from raftstorage.client.cluster.connection import dial
from raftstorage.client.cluster.errors import ClientDisconnected
from raftstorage.client.cluster.loop import Waiter
from raftstorage.client.cluster.policy import Book, Call, Flow, Send, Step, vote
from raftstorage.client.cluster.runner import Running
from raftstorage.client.cluster.transfer import Transfer
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.utils import p64

from tests.unit.client.conftest import FakeCluster
from tests.unit.pieces import put_together

PART = 200
"""Bytes in a part here."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PART_BYTES", PART)
    monkeypatch.setattr(bodies, "PART_OBJECTS", 3)


def records(*sizes: int) -> dict[bytes, Record]:
    return {p64(n): Record(p64(n), bytes(8), random.Random(n).randbytes(size)) for n, size in enumerate(sizes, 1)}


def body_of(*sizes: int, checks: int = 0, tid: bytes = b"", part_bytes: int = 0) -> Any:
    head = pb.Transaction(user=b"me", tid=tid)
    named = {p64(n): p64(5) for n in range(1000, 1000 + checks)}
    return make_body(head, records(*sizes), named, True, part_bytes)


def store(storage: Any, *sizes: int, func: Callable[[bytes], object] = lambda tid: None) -> bytes:
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    try:
        for oid, record in records(*sizes).items():
            storage.store(oid, bytes(8), record.data, "", transaction)
        storage.tpc_vote(transaction)
        tid: bytes = storage.tpc_finish(transaction, func)
    except BaseException:
        storage.tpc_abort(transaction)
        raise
    return tid


def kinds(cluster: FakeCluster, node: int) -> list[str]:
    writes = ("part", "vote", "finish", "commit", "abort")
    return [kind for each in cluster.nodes[node].seen if (kind := each.WhichOneof("call")) in writes]


# ---- bodies -------------------------------------------------------------------------------------------------


def test_a_blob_goes_with_the_piece_that_ends_its_record() -> None:
    blob = pb.Blob(upload_id=b"u" * 16, size=(1 << 40) - 1, crc32c=(1 << 32) - 1)
    for size in (2, 5 * PART):
        mixed = {p64(n): record._replace(blob=blob) for n, record in enumerate(records(size, size).values(), 1)}
        body = make_body(pb.Transaction(), mixed, {}, True)
        assert isinstance(body, LargeBody) == (size > PART)
        pieces = [*body.parts, body.rest] if isinstance(body, LargeBody) else [body]
        assert max(map(len, pieces)) <= PART
        with_blob = [r for each in pieces for r in pb.Transaction.FromString(each).records if r.HasField("blob")]
        assert [(record.oid, record.blob, record.more) for record in with_blob] == [
            (p64(1), blob, False),
            (p64(2), blob, False),
        ]


def test_a_small_one_is_one_body() -> None:
    for in_parts in (True, False):
        assert make_body(pb.Transaction(), records(20, 30), {}, in_parts) == (
            pb.Transaction(
                records=[
                    pb.NewRecord(oid=each.oid, base_serial=bytes(8), data=each.data)
                    for each in records(20, 30).values()
                ]
            ).SerializeToString()
        )
    assert isinstance(make_body(pb.Transaction(), records(2000), {}, False), bytes), "the cluster takes no parts"


@pytest.mark.parametrize("tid", [b"", p64(77)])
def test_parts_and_rest_are_the_whole_and_no_part_is_too_large(tid: bytes) -> None:
    rng = random.Random(1)
    for _ in range(300):
        sizes = [rng.choice((0, 1, 50, 90, 151, 152, 153, 200, 1000)) for _ in range(rng.randrange(1, 12))]
        checks = rng.randrange(8)
        part_bytes = rng.choice((0, 0, 50, 120))
        body = body_of(*sizes, checks=checks, tid=tid, part_bytes=part_bytes)
        whole = pb.Transaction.FromString(
            put_together([*body.parts, body.rest]) if isinstance(body, LargeBody) else body
        )
        expected = pb.Transaction(user=b"me", tid=tid)
        for record in records(*sizes).values():
            record.add_to(expected)
        for number in range(1000, 1000 + checks):
            expected.checks.add(oid=p64(number), serial=p64(5))
        assert whole == expected
        if isinstance(body, LargeBody):
            for part, size in zip(body.parts, body.parts.sizes, strict=True):
                parsed = pb.Transaction.FromString(part)
                assert len(part) <= size <= (part_bytes or PART)
                assert 1 <= len(parsed.records) + len(parsed.checks) <= 3
                assert not parsed.tid


def test_the_records_are_not_copied_before_a_part_is_asked_for() -> None:
    big = bytes(10 << 20)
    body = make_body(pb.Transaction(), {p64(1): Record(p64(1), bytes(8), big)}, {}, True)
    assert isinstance(body, LargeBody)
    assert any(each is big for piece in body.parts._pieces for each in gc.get_referents(*piece.records))
    assert len(body.rest) < 100


# ---- one transfer -------------------------------------------------------------------------------------------


class Stream:
    def __init__(self) -> None:
        self.waiting: dict[int, Any] = {}
        self.answers: list[pb.Event | None] = []
        self.transfer = Transfer(
            vote(b"t" * 16, body_of(150, 150, 150)),
            self.answers.append,
            self.expect,
            lambda n: self.waiting.pop(n, 0),
        )

    def expect(self, callback: Any) -> int:
        number = len(self.waiting) + 10
        self.waiting[number] = callback
        return number


def test_a_refused_part_is_the_answer_and_ends_the_transfer() -> None:
    stream = Stream()
    for _ in range(2):
        stream.transfer.next()
    busy = pb.Event(failure=pb.Failure(reason=pb.BUSY))
    first, second = stream.waiting.values()
    first(busy)
    assert stream.answers == [busy] and stream.transfer.done and not stream.waiting
    second(pb.Event(failure=pb.Failure(reason=pb.INVALID)))
    stream.transfer.lost()
    assert stream.answers == [busy]


def test_what_is_lost_before_it_began_is_told_so() -> None:
    stream = Stream()
    stream.transfer.lost()
    assert stream.answers == [None]


class Connection:
    def __init__(self) -> None:
        self.sent: list[Call] = []
        self.withdrawn: list[Call] = []

    def send(self, call: Call, callback: object) -> bool:
        self.sent.append(call)
        return True

    def withdraw(self, call: Call) -> None:
        self.withdrawn.append(call)


def test_who_asks_another_or_gives_up_takes_back_what_was_not_sent() -> None:
    first, second = vote(b"1" * 16, body_of(900)), vote(b"2" * 16, body_of(900))

    def flow() -> Flow:
        yield Step(Send("a", first), 0.001)
        yield Step(Send("b", second), 0.001)
        raise ClientDisconnected("in time")

    async def run() -> tuple[Connection, Connection]:
        a, b = Connection(), Connection()
        waiter: Waiter[Any] = Waiter()
        over = asyncio.Event()
        connections: Any = {"a": a, "b": b}
        Running(asyncio.get_running_loop(), connections, flow(), waiter, lambda running: over.set()).start()
        await over.wait()
        return a, b

    a, b = asyncio.run(run())
    assert (a.sent, a.withdrawn, b.sent, b.withdrawn) == ([first], [first], [second], [second])


def test_a_connection_sends_nothing_more_of_what_is_withdrawn() -> None:
    async def run() -> None:
        replica = Book().add("a")
        replica.connected = True
        loop = asyncio.get_running_loop()
        owner: Any = None
        connection = RealConnection(replica, owner, random.Random(1), loop, dial)
        batches: list[pb.RequestBatch] = []
        blocked = asyncio.Event()

        class BlockingStream:
            async def write(self, batch: pb.RequestBatch) -> None:
                batches.append(batch)
                if len(batches) == 3:
                    blocked.set()
                    await asyncio.Event().wait()

        answers: list[object] = []
        call, other = vote(b"1" * 16, body_of(900)), vote(b"2" * 16, body_of(900))
        stream: Any = BlockingStream()
        writer = asyncio.create_task(connection._write(stream))
        assert connection.send(call, answers.append) and connection.send(other, answers.append)
        await blocked.wait()
        assert connection._calls and replica.outstanding == 3
        connection.withdraw(call)
        assert not connection._calls and replica.outstanding == 0 and not answers
        assert [each.done for each in connection._transfers] == [True, False]
        writer.cancel()

    asyncio.run(run())


# ---- storages -----------------------------------------------------------------------------------------------


def test_a_large_transaction_goes_ahead_in_parts(cluster: FakeCluster, storage: Any) -> None:
    tid = store(storage, 100, 100, 100, 900)
    for oid, record in records(100, 100, 100, 900).items():
        assert storage.load(oid) == (record.data, tid)
    assert kinds(cluster, 1) == ["part"] * 9 + ["vote", "finish"]


def test_a_cluster_of_a_lower_level_gets_it_whole(cluster: FakeCluster) -> None:
    cluster.level = 0
    storage = ClientStorage(cluster.addresses, wait_timeout=5.0)
    store(storage, 900)
    storage.close()
    assert kinds(cluster, 1) == ["vote", "finish"]


def test_after_a_failover_all_parts_go_to_the_new_leader(cluster: FakeCluster, storage: Any) -> None:
    cluster.nodes[1].lose_request = "finish"
    cluster.nodes[1].on_loss = lambda: lead_by_itself(cluster, 2)
    tid = store(storage, 100, 100, 900)
    assert storage.loadSerial(p64(3), tid) == records(100, 100, 900)[p64(3)].data
    assert kinds(cluster, 2) == ["part"] * 8 + ["commit"]


def lead_by_itself(cluster: FakeCluster, node: int) -> None:
    """As FakeCluster.lead, called in the loop."""
    cluster.term += 1
    cluster.leader = node
    cluster.votes.clear()
    for each in cluster.nodes.values():
        each.publish(pb.Event(leader=cluster.leader_message()))


@pytest.mark.parametrize("reason", [pb.BUSY, pb.NOT_LEADER])
def test_a_refused_part_is_asked_again_with_all_others(cluster: FakeCluster, storage: Any, reason: int) -> None:
    cluster.fail_next["part"].append(reason)
    tid = store(storage, 900, 900, 900)
    assert storage.loadSerial(p64(3), tid) == records(900, 900, 900)[p64(3)].data
    numbers = [each.part.number for each in cluster.nodes[1].seen if each.HasField("part")]
    again = numbers.index(0, 1)
    assert numbers[again:] == list(range(18))
    assert numbers[:again] == list(range(again))


def test_a_part_that_is_refused_for_good_ends_the_transaction(cluster: FakeCluster, storage: Any) -> None:
    cluster.fail_next["part"].append(pb.TOO_LARGE)
    with pytest.raises(E.TransactionTooLargeError):
        store(storage, 900)
    store(storage, 100)


def test_a_stream_that_breaks_between_parts(cluster: FakeCluster, storage: Any) -> None:
    cluster.nodes[1].lose_request = "part"
    tid = store(storage, 900)
    assert storage.loadSerial(p64(1), tid) == records(900)[p64(1)].data


def test_loads_of_other_threads_get_between_the_parts(cluster: FakeCluster) -> None:
    cluster.max_record_bytes = cluster.max_transaction_bytes = 1 << 20
    cluster.stop(2, 3)
    storage: Any = ClientStorage(cluster.addresses.split(",")[0], wait_timeout=60.0, cache_size=0)
    try:
        store(storage, 10)
        node = cluster.nodes[1]
        began, over = threading.Event(), threading.Event()

        def load() -> None:
            began.wait(10)
            while not over.is_set():
                storage.load(p64(1))

        thread = threading.Thread(target=load)
        thread.start()
        gathered = node._gathered

        def see(request: pb.Request, stream: object) -> pb.Event | None:
            if request.HasField("part"):
                began.set()
            return gathered(request, stream)

        node._gathered = see  # type: ignore[method-assign]
        transaction = TransactionMetaData()
        storage.tpc_begin(transaction)
        storage.store(p64(9), bytes(8), bytes(500_000), "", transaction)
        storage.tpc_vote(transaction)
        over.set()
        thread.join()
        storage.tpc_finish(transaction)
        seen = [each.WhichOneof("call") for each in node.seen]
        first, last = seen.index("part"), len(seen) - seen[::-1].index("part")
        assert seen[first:last].count("load_before") > 3
    finally:
        storage.close()


def test_bulk_restores_in_parts_and_in_order(cluster: FakeCluster, storage: Any) -> None:
    source = Source([[100], [900, 900], [10], [700], [20]])
    storage.copyTransactionsFrom(source)
    assert [each.tid for each in cluster.transactions] == [each.tid for each in source.transactions]
    assert storage.loadSerial(p64(2), p64(2000)) == source.transactions[1].records[1].data
    assert kinds(cluster, 1).count("commit") == 5 and kinds(cluster, 1).count("part") > 10


def test_a_bulk_restore_survives_a_refused_part_and_a_failover(cluster: FakeCluster, storage: Any) -> None:
    cluster.fail_next["part"] += [pb.BUSY]
    cluster.nodes[1].lose_answer_of = "commit"
    cluster.nodes[1].on_loss = lambda: lead_by_itself(cluster, 3)
    source = Source([[900, 900], [10], [700], [20]])
    storage.copyTransactionsFrom(source)
    assert [each.tid for each in cluster.transactions] == [each.tid for each in source.transactions]


def test_a_bulk_restore_names_the_transaction_that_is_too_large(cluster: FakeCluster, storage: Any) -> None:
    with pytest.raises(E.TransactionTooLargeError, match=f"{p64(2000).hex()} has .* the limit is 5000"):
        storage.copyTransactionsFrom(Source([[100], [900] * 6]))


class Source:
    """A storage to copy from."""

    class Transaction:
        def __init__(self, number: int, sizes: list[int]) -> None:
            self.tid = p64(number * 1000)
            self.status, self.user, self.description, self.extension = b" ", b"u", b"d", {}
            self.records = [SourceRecord(*each) for each in records(*sizes).items()]

        def __iter__(self) -> Any:
            return iter(self.records)

    def __init__(self, sizes: list[list[int]]) -> None:
        self.transactions = [self.Transaction(number, each) for number, each in enumerate(sizes, 1)]

    def iterator(self) -> Any:
        return iter(self.transactions)


class SourceRecord:
    data_txn = None

    def __init__(self, oid: bytes, record: Record) -> None:
        self.oid, self.data = oid, record.data
