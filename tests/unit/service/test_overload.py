"""More than a node can do: what waits stays within its bounds, everybody is answered, and nobody is starved."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest import mock

import grpc
import pytest
from raftstorage.node import oids as node_oids
from raftstorage.node.admission import LEAST_MS, MOST_MS, Amount, Bounds
from raftstorage.node.raft.types import Role
from raftstorage.node.service import barriers, reads, sessions
from raftstorage.node.service.sessions import SessionLimits
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.session_world import ROOT, Client, World, oid, run, world

SMALL = Bounds(Amount(100, 1 << 20), Amount(200, 2 << 20), Amount(50, 1 << 20))


def body(*oids: int, data: bytes = b"data", tid: bytes = b"") -> bytes:
    records = [pb.NewRecord(oid=oid(n), base_serial=b"" if tid else ROOT, data=data) for n in oids]
    return pb.Transaction(records=records, tid=tid).SerializeToString()


def name(number: int) -> bytes:
    return b"%016d" % number


def commit(number: int, data: bytes = b"data", tid: bytes = b"") -> pb.Commit:
    return pb.Commit(transaction_id=name(number), transaction=body(number, data=data, tid=tid))


def vote(number: int, *oids: int, data: bytes = b"data") -> pb.Vote:
    return pb.Vote(transaction_id=name(number), transaction=body(*(oids or (number,)), data=data))


async def hello(it: World) -> Client:
    client = it.connect()
    await client.hello()
    return client


@asynccontextmanager
async def draining(
    it: World, entries: int, seconds: float, begin: asyncio.Event | None = None
) -> AsyncIterator[Counter[str]]:
    """Applies so many entries every so many seconds, from `begin` on. It yields the most that ever waited."""
    it.driver.held = True
    most: Counter[str] = Counter()

    def look() -> None:
        gate, found = it.service._gate, Counter[str]()
        found["proposed"], found["proposed bytes"] = it.driver.backlog.items, it.driver.backlog.bytes
        found["calls"] = sum(one.calls.items for one in it.service._sessions)
        found["of one"] = max((one.calls.items for one in it.service._sessions), default=0)
        found["bytes of one"] = max((one.calls.bytes for one in it.service._sessions), default=0)
        found["events"] = sum(one.queued.items for one in it.service._sessions)
        found["writing"] = len(gate._writing)
        most.update({key: max(0, value - most[key]) for key, value in found.items()})

    async def drain() -> None:
        if begin is not None:
            await begin.wait()
        while True:
            look()
            it.driver.apply(entries)
            await asyncio.sleep(seconds)

    task = asyncio.create_task(drain())
    try:
        yield most
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        it.driver.apply()


# ---- much too much --------------------------------------------------------------------------------------


@run
async def test_ten_times_what_is_drained() -> None:
    """Ten sessions send 100 writes of 2 KiB at once, again and again as they are told, until all are through."""
    limits = SessionLimits(calls=Amount(40, 1 << 20))
    offered = asyncio.Event()  # all that is too much is there before any of it goes, however slow this machine is
    async with world(limits, SMALL) as it, draining(it, 20, 0.01, offered) as most:
        clients = [await hello(it) for _ in range(10)]
        begun = 0
        refused: Counter[int] = Counter()
        hints: list[int] = []

        async def work(client: Client, first: int) -> None:
            nonlocal begun
            left = set(range(first, first + 100))
            while left:
                asked = {await client.send(commit=commit(n, b"x" * 2048)): n for n in sorted(left)}
                begun += 1
                if begun == len(clients):
                    offered.set()
                pause = 0
                while asked:
                    event = await client.event()
                    if not event.id:
                        continue
                    number = asked.pop(event.id)
                    refused[event.failure.reason] += 1
                    if event.HasField("committed"):
                        left.remove(number)
                    else:
                        pause = max(pause, event.failure.retry_after_ms)
                        hints.append(event.failure.retry_after_ms)
                await asyncio.sleep(pause / 1000)

        await asyncio.gather(*(work(client, 1000 * n) for n, client in enumerate(clients, 1)))
        assert set(refused) == {pb.REASON_UNSPECIFIED, pb.BUSY} and refused[pb.REASON_UNSPECIFIED] == 1000
        assert hints and all(LEAST_MS <= hint <= MOST_MS for hint in hints)
        assert it.metric("refused_total", reason="busy") == refused[pb.BUSY]
        # Nothing grew above its bound, and what was bounded was reached.
        assert SMALL.new.items * 0.9 <= most["proposed"] <= SMALL.new.items
        assert most["proposed bytes"] <= SMALL.new.bytes + 4096
        assert most["of one"] <= limits.calls.items and most["bytes of one"] <= limits.calls.bytes + 4096
        assert most["calls"] <= 10 * limits.calls.items
        assert most["writing"] == 10
    for session in it.service._sessions:
        assert session.calls.amount() == session.writes.amount() == session.blocked.amount() == Amount(0, 0)


@run
async def test_bytes_are_bounded_as_well() -> None:
    async with world(SessionLimits(), SMALL) as it, draining(it, 1, 0.005) as most:
        client = await hello(it)
        asked = {await client.send(commit=commit(n, b"x" * (200 << 10))) for n in range(1, 41)}
        answers = [await client.answer(number) for number in sorted(asked)]
        assert {event.failure.reason for event in answers} == {pb.REASON_UNSPECIFIED, pb.BUSY}
        assert SMALL.new.bytes // 2 <= most["proposed bytes"] <= SMALL.new.bytes + (201 << 10)


@run
async def test_a_client_with_a_thousand_writes_does_not_starve_one_with_one() -> None:
    async with world(SessionLimits(), SMALL) as it, draining(it, 10, 0.002):
        greedy, modest = await hello(it), await hello(it)
        done: Counter[str] = Counter()
        over, flooded = asyncio.Event(), asyncio.Event()
        numbers = iter(range(1, 1 << 30))

        async def many() -> None:
            """Obeys nobody: what is refused is sent again at once."""
            await greedy.send_all([{"commit": commit(next(numbers))} for _ in range(1000)])
            while not over.is_set():
                event = await greedy.event()
                if event.id:
                    done["greedy"] += event.HasField("committed")
                    done["greedy refused"] += event.failure.reason == pb.BUSY
                    await greedy.send(commit=commit(next(numbers)))
                if done["greedy"] > SMALL.new.items:
                    flooded.set()

        async def one() -> None:
            await flooded.wait()
            for _ in range(30):
                while True:
                    event = await modest.ask(commit=commit(next(numbers)))
                    if event.HasField("committed"):
                        break
                    done["modest refused"] += 1
                done["modest"] += 1
            over.set()

        flood = asyncio.create_task(many())
        async with asyncio.timeout(40):
            await one()
        await flood
        # Each of its writes waited for about what the bound lets in before it, and hardly any was refused.
        assert done["greedy"] <= (30 + 5) * 2 * SMALL.new.items
        assert done["greedy refused"] > 100 and done["modest refused"] <= 3


@run
async def test_a_session_that_does_not_write_does_not_count() -> None:
    async with world(SessionLimits(), SMALL) as it:
        it.driver.held = True
        readers = [await hello(it) for _ in range(5)]
        for reader in readers:
            await reader.ask(size=pb.Size())
        client = await hello(it)
        for n in range(1, 101):
            await client.send(commit=commit(n))
        await client.ask(read_barrier=pb.ReadBarrier())
        assert it.driver.backlog.items == 50, "alone it gets half"
        it.driver.apply()


# ---- one bound at a time ---------------------------------------------------------------------------------


@run
async def test_a_session_with_too_much_under_way_is_not_read_until_there_is_room() -> None:
    async with world(SessionLimits(calls=Amount(8, 1 << 20))) as it:
        it.driver.held = True
        client, other = await hello(it), await hello(it)
        for n in range(1, 21):
            await client.send(commit=commit(n))
        size = await client.send(size=pb.Size())
        for _ in range(20):
            await other.ask(read_barrier=pb.ReadBarrier())
        assert it.driver.backlog.items == 8
        it.driver.apply()
        for _ in range(20):
            await other.ask(read_barrier=pb.ReadBarrier())
        assert it.driver.backlog.items == 8
        it.driver.held = False
        it.driver.apply()
        assert (await client.answer(size)).HasField("size")
        assert sum(event.HasField("committed") for event in client.seen) == 20


@run
async def test_who_waits_for_its_own_vote_can_still_finish_it() -> None:
    """Were it not read any more, because all that it may have under way waits, only the lease would end that."""
    async with world(SessionLimits(calls=Amount(8, 1 << 20))) as it:
        client = await hello(it)
        await client.ask(vote=vote(1, 7))
        asked = [await client.send(vote=vote(n, 7)) for n in range(2, 22)]
        finished = await client.send(finish=pb.Finish(transaction_id=name(1)))
        assert (await client.answer(finished)).HasField("committed")
        refused = [event for event in client.seen if event.id in asked and event.failure.reason == pb.BUSY]
        assert len(refused) == 16 and all(event.failure.retry_after_ms == MOST_MS for event in refused)
        for event in refused:
            asked.remove(event.id)
        for number in asked:  # those that waited have got their turn: it was written under their hands
            assert (await client.answer(number)).vote.conflicts


@run
async def test_what_was_voted_for_is_finished_beyond_the_first_bound() -> None:
    bounds = Bounds(Amount(4, 1 << 20), Amount(6, 1 << 20), Amount(100, 1 << 20))
    async with world(None, bounds) as it:
        voters = [await hello(it) for _ in range(8)]
        for n, voter in enumerate(voters, 1):
            assert not (await voter.ask(vote=vote(n))).failure.reason
        it.driver.held = True
        finishing = [
            await voter.send(finish=pb.Finish(transaction_id=name(n))) for n, voter in enumerate(voters[:5], 1)
        ]
        for voter in voters:
            await voter.ask(read_barrier=pb.ReadBarrier())
        assert it.driver.backlog.items == 5
        refused = (await voters[7].ask(vote=vote(99))).failure
        assert refused.reason == pb.BUSY and refused.code == 8 and refused.retry_after_ms >= LEAST_MS
        assert (await voters[7].ask(commit=commit(98))).failure.reason == pb.BUSY
        # A Commit of what it voted for is as good as a Finish.
        sixth = await voters[5].send(commit=pb.Commit(transaction_id=name(6), transaction=body(6)))
        await voters[5].ask(read_barrier=pb.ReadBarrier())
        assert it.driver.backlog.items == 6
        assert (await voters[6].ask(finish=pb.Finish(transaction_id=name(7)))).failure.reason == pb.BUSY
        # What is on its way already adds nothing.
        again = await voters[7].send(commit=pb.Commit(transaction_id=name(6), transaction=body(6)))
        it.driver.held = False
        it.driver.apply()
        for number, voter in zip([*finishing, sixth, again], [*voters[:6], voters[7]], strict=True):
            assert (await voter.answer(number)).HasField("committed")
        # The vote that could not be finished is there still.
        assert (await voters[6].ask(finish=pb.Finish(transaction_id=name(7)))).HasField("committed")


@run
async def test_votes_without_an_end_are_bounded_and_those_of_others_go_on() -> None:
    async with world(None, SMALL) as it:
        hoarder, other = await hello(it), await hello(it)
        got = [(await hoarder.ask(vote=vote(n))).failure for n in range(1, 61)]
        assert sum(not failure.reason for failure in got) == SMALL.held.items // 2
        assert {failure.reason for failure in got} == {pb.REASON_UNSPECIFIED, pb.BUSY}
        assert not (await other.ask(vote=vote(100))).failure.reason
        assert (await other.ask(finish=pb.Finish(transaction_id=name(100)))).HasField("committed")
        await hoarder.ask(abort=pb.Abort(transaction_id=name(1)))
        assert not (await hoarder.ask(vote=vote(61))).failure.reason


@run
async def test_oids_from_a_block_are_given_whatever_waits() -> None:
    bounds = Bounds(Amount(2, 1 << 20), Amount(4, 1 << 20))
    async with world(None, bounds) as it:
        client = await hello(it)
        assert (await client.ask(allocate_oids=pb.AllocateOids(count=1))).oids.count == 1
        it.driver.held = True
        for n in range(1, 4):
            await (await hello(it)).send(commit=commit(n))
        assert (await client.ask(allocate_oids=pb.AllocateOids(count=10))).oids.count == 10
        assert (await client.ask(allocate_oids=pb.AllocateOids(count=9000))).failure.reason == pb.BUSY
        it.driver.apply()


@run
async def test_oid_requests_that_wait_are_bounded() -> None:
    with mock.patch.object(node_oids, "MAX_WAITING", 3):
        async with world() as it:
            it.driver.held = True
            client = await hello(it)
            asked = [await client.send(allocate_oids=pb.AllocateOids(count=1)) for _ in range(5)]
            refused = [(await client.answer(number)).failure for number in asked[3:]]
            assert [failure.reason for failure in refused] == [pb.BUSY] * 2
            it.driver.apply()
            for number in asked[:3]:
                assert (await client.answer(number)).oids.count == 1


@run
async def test_reads_that_wait_are_bounded_by_number_and_bytes() -> None:
    late = pb.LoadBefore(oid=oid(1), before=oid(1), at_least=b"\x7f" + bytes(7))
    for bound, fit in (
        (Amount(3, 1 << 20), 3),
        (Amount(100, 3 * pb.Request(id=9, load_before=late).ByteSize()), 3),
    ):
        with mock.patch.object(reads, "MAX_PARKED", bound), mock.patch.object(reads, "PATIENCE", 0.5):
            async with world() as it:
                client = await hello(it)
                asked = [await client.send(load_before=late) for _ in range(5)]
                got = [(await client.answer(number)).failure for number in reversed(asked)]
                assert [failure.reason for failure in reversed(got)] == [pb.LAGGING] * fit + [pb.BUSY] * (5 - fit)
                assert all(failure.retry_after_ms for failure in got if failure.reason == pb.BUSY)
                assert it.metric("queue_bytes", queue="parked_reads") == 0
                assert (await client.ask(load_before=late)).failure.reason == pb.LAGGING


@pytest.mark.parametrize("what", ["MAX_BARRIERS", "MAX_OF_SESSION"])
def test_barriers_are_bounded(what: str) -> None:
    @run
    async def test() -> None:
        with mock.patch.object(barriers, what, 3):
            async with world() as it:
                gate = asyncio.Event()
                it.driver.read_barrier = gate.wait  # type: ignore[assignment, method-assign]
                client = await hello(it)
                asked = [await client.send(read_barrier=pb.ReadBarrier()) for _ in range(5)]
                assert [(await client.answer(number)).failure.reason for number in asked[3:]] == [pb.BUSY] * 2
                assert it.metric("queue_items", queue="barriers") == 3
                gate.set()
                for number in asked[:3]:
                    assert (await client.answer(number)).HasField("read_point")
                assert it.metric("queue_items", queue="barriers") == 0

    test()


@run
async def test_writes_for_a_leader_that_is_not_ready_are_bounded_by_bytes() -> None:
    with mock.patch.object(sessions, "UNREADY_BYTES", 10_000):
        async with world() as it:
            client = await hello(it)
            it.driver.become(Role.LEADER, 1)
            asked = [await client.send(commit=commit(n, b"x" * 4000)) for n in range(1, 6)]
            refused = [(await client.answer(number)).failure for number in asked[3:]]
            assert [failure.reason for failure in refused] == [pb.BUSY] * 2
            assert 10_000 < (it.metric("queue_bytes", queue="unready") or 0) < 14_000
            it.driver.ready()
            for number in asked[:3]:
                assert (await client.answer(number)).HasField("committed")
            assert it.metric("queue_bytes", queue="unready") == 0


@run
async def test_there_is_a_most_of_sessions() -> None:
    async with world(SessionLimits(sessions=2)) as it:
        for _ in range(2):
            client = await hello(it)
        assert await it.connect().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await client.ask(size=pb.Size())).HasField("size")
