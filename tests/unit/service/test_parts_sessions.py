"""Large transactions over a real gRPC stream: parts, then the vote or commit, and everybody else in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from raftstorage.node import examination
from raftstorage.node.raft.types import Role
from raftstorage.node.service.sessions import SessionLimits
from raftstorage.proto import PART_BYTES, PARTS_LEVEL
from raftstorage.proto import storage_pb2 as pb

from tests.unit.pieces import pieces
from tests.unit.service.session_world import Client, oid, run, world

A, B = b"A" * 16, b"B" * 16


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(examination, "SLICE", 2)
    yield


def change(*numbers: int, data: bytes = b"data", **fields: Any) -> pb.Transaction:
    return pb.Transaction(user=b"me", records=[pb.NewRecord(oid=oid(n), data=data) for n in numbers], **fields)


async def ask(client: Client, kind: str, identity: bytes, transaction: pb.Transaction, size: int = 3) -> pb.Event:
    """A vote or a commit, in parts of so many records; the rest has none."""
    bodies, rest = pieces(transaction, [size] * 1000)
    await client.send_parts(identity, bodies)
    message = {"vote": pb.Vote, "commit": pb.Commit}[kind](
        transaction_id=identity, transaction=rest, parts=len(bodies)
    )
    return await client.ask(**{kind: message})


@run
async def test_parts_and_a_vote_and_its_finish() -> None:
    async with world() as it:
        client, other = it.connect(), it.connect()
        assert (await client.hello()).welcome.level == PARTS_LEVEL
        await other.hello()
        assert (await ask(client, "vote", A, change(*range(1, 12)))) == pb.Event(id=5 + 1, vote=pb.VoteReply())
        tid = (await client.ask(finish=pb.Finish(transaction_id=A))).committed.tid
        told = (await other.event()).invalidations.transactions[0]
        assert (told.tid, list(told.oids)) == (tid, [oid(n) for n in range(1, 12)])
        load = pb.LoadBefore(oid=oid(11), before=b"\x7f" + b"\xff" * 7, at_least=tid)
        assert (await other.ask(load_before=load)).record.data == b"data"
        assert all(event.WhichOneof("kind") != "failure" for event in client.seen)


@run
async def test_parts_and_a_commit_and_the_same_again() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        tid = (await ask(client, "commit", A, change(*range(1, 12)))).committed.tid
        assert tid and (await ask(client, "commit", A, change(*range(1, 12)))).committed.tid == tid
        refused = (await ask(client, "commit", B, change(9, 50, data=b"other"))).failure
        assert (refused.reason, refused.oid, refused.data) == (pb.CONFLICT, oid(9), b"data")


@run
async def test_parts_that_do_not_fit_are_refused_and_so_is_their_vote() -> None:
    async with world(SessionLimits(max_record_bytes=100, max_transaction_bytes=400)) as it:
        client = it.connect()
        await client.hello()
        for bodies, reason in (
            ([b"\xff"], pb.INVALID),
            ([change(1).SerializeToString()], pb.INVALID),
            (pieces(change(1, 2, data=b"x" * 101), [1, 1])[0], pb.TOO_LARGE),
            (pieces(change(*range(30)), [3] * 10)[0], pb.TOO_LARGE),
            (pieces(change(1, 2), [1, 1])[0] + pieces(change(2), [1])[0], pb.INVALID),
        ):
            numbers = await client.send_parts(A, bodies)
            vote = await client.send(vote=pb.Vote(transaction_id=A, parts=len(bodies)))
            failed = await client.event()
            assert failed.id in numbers and failed.failure.reason == reason
            assert (await client.answer(vote)).failure.reason == reason
        (number,) = await client.send_parts(A, pieces(change(1), [1])[0], first=4)
        assert (await client.answer(number)).failure.reason == pb.BUSY
        (number,) = await client.send_parts(b"short", [b""])
        assert (await client.answer(number)).failure.reason == pb.INVALID
        rest = change().SerializeToString()
        asked = await client.ask(commit=pb.Commit(transaction_id=B, transaction=rest, parts=1))
        assert asked.failure.reason == pb.BUSY
        assert (await ask(client, "commit", A, change(1))).committed.tid


@run
async def test_the_sum_of_all_parts_and_the_rest_is_limited() -> None:
    async with world(SessionLimits(max_transaction_bytes=100)) as it:
        client = it.connect()
        await client.hello()
        bodies, _rest = pieces(change(1, 2, 3), [3])
        await client.send_parts(A, bodies)
        rest = pb.Transaction(user=b"u" * 50).SerializeToString()
        asked = await client.ask(vote=pb.Vote(transaction_id=A, transaction=rest, parts=1))
        assert asked.failure.reason == pb.TOO_LARGE


@run
async def test_too_much_in_parts_is_busy_and_says_when_to_come_again() -> None:
    async with world(SessionLimits(session_part_bytes=200)) as it:
        client = it.connect()
        await client.hello()
        await client.send_parts(A, pieces(change(1, data=b"x" * 150), [1])[0])
        (number,) = await client.send_parts(B, pieces(change(2, data=b"x" * 150), [1])[0])
        refused = (await client.answer(number)).failure
        assert refused.reason == pb.BUSY and refused.retry_after_ms
        await client.ask(abort=pb.Abort(transaction_id=A))
        assert (await ask(client, "commit", B, change(2, data=b"x" * 150))).committed.tid


@run
async def test_votes_are_bounded_in_bytes() -> None:
    async with world(SessionLimits(held_bytes=5000)) as it:
        client = it.connect()
        await client.hello()
        await ask(client, "vote", A, change(*range(1, 15)))
        refused = (await ask(client, "vote", B, change(*range(20, 35)))).failure
        assert refused.reason == pb.BUSY and refused.retry_after_ms
        await client.ask(abort=pb.Abort(transaction_id=A))
        assert (await ask(client, "vote", B, change(*range(20, 35)))).HasField("vote")


@run
async def test_parts_end_with_their_session_their_lease_and_leadership() -> None:
    async with world(SessionLimits(lease_ms=200)) as it:
        gatherer = it.service._transacting._gatherer
        client, watcher = it.connect(), it.connect()
        await client.hello()
        await watcher.hello()
        await client.send_parts(A, pieces(change(1), [1])[0])
        await client.ask(size=pb.Size())
        assert gatherer.weight
        while gatherer.weight:
            await watcher.ask(size=pb.Size())
        late = await client.ask(vote=pb.Vote(transaction_id=A, parts=1))
        assert late.failure.reason == pb.BUSY
        await client.send_parts(A, pieces(change(1), [1])[0])
        await client.ask(size=pb.Size())
        it.driver.become(Role.FOLLOWER, 2)
        assert not gatherer.weight
        (number,) = await client.send_parts(A, pieces(change(2), [1])[0], first=1)
        refused = (await client.answer(number)).failure
        assert (refused.reason, refused.leader.address) == (pb.NOT_LEADER, "two:2")
        it.driver.become(Role.LEADER, 1)
        await client.send_parts(B, pieces(change(1), [1])[0])
        await client.ask(size=pb.Size())
        assert gatherer.weight, "its vote waits too, until this leader is ready"
        asked = asyncio.create_task(client.ask(commit=pb.Commit(transaction_id=B, parts=1)))
        await watcher.ask(read_barrier=pb.ReadBarrier())
        it.driver.ready()
        assert (await asked).committed.tid
        await client.send_parts(A, pieces(change(1), [1])[0])
        await client.ask(size=pb.Size())
        client._call.cancel()
        while gatherer.weight:
            await watcher.ask(size=pb.Size())


@run
async def test_a_read_only_session_gathers_nothing() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello(read_only=True)
        (number,) = await client.send_parts(A, pieces(change(1), [1])[0])
        assert (await client.answer(number)).failure.reason == pb.READ_ONLY
        assert not it.service._transacting._gatherer.weight


@run
async def test_others_are_served_while_a_large_one_is_looked_at() -> None:
    async with world() as it:
        client, other = it.connect(), it.connect()
        await client.hello()
        await other.hello()
        bodies, rest = pieces(change(*range(1, 3001)), [500] * 6)
        await client.send_parts(A, bodies)
        number = await client.send(vote=pb.Vote(transaction_id=A, transaction=rest, parts=len(bodies)))
        answers = 0
        coordinator = it.service._coordinator
        while not coordinator._preparing:
            await other.ask(size=pb.Size())
        while coordinator._preparing:
            await other.ask(size=pb.Size())
            answers += 1
        assert answers > 1, "an answer a turn, or more turns when the machine has much else to do"
        assert (await client.answer(number)).HasField("vote")


@run
async def test_a_large_commit_holds_the_loop_for_moments_only() -> None:
    """32 MiB here; every step's length goes with a part and not with the whole."""
    async with world() as it:
        client, other = it.connect(), it.connect()
        await client.hello()
        await other.hello()
        longest, over = 0.0, False

        async def measure() -> None:
            nonlocal longest
            while not over:
                begun = time.perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, time.perf_counter() - begun)

        it.driver.held = True
        measuring = asyncio.create_task(measure())
        data = bytes(PART_BYTES - 100)
        bodies = [
            pb.Transaction(records=[pb.NewRecord(oid=oid(n), data=data)]).SerializeToString() for n in range(128)
        ]
        await client.send_parts(A, bodies)
        number = await client.send(commit=pb.Commit(transaction_id=A, parts=len(bodies)))
        while not it.driver._log:
            await other.ask(size=pb.Size())
        over = True
        await measuring
        assert len(it.driver._log) == 129
        assert longest < 0.5, f"the loop was held for {longest * 1000:.0f} ms"
        it.driver.apply()
        assert (await client.answer(number)).committed.tid
