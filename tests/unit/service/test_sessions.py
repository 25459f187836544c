"""Sessions over a real gRPC stream; the driver is replaced by one that applies what is proposed when told to."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from raftstorage.node.driver import LeadershipLost
from raftstorage.node.raft.types import Role
from raftstorage.node.service.sessions import SessionLimits
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.session_world import CLUSTER, ROOT, oid, run, world


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
