"""Refusals with more to them than being busy: restores out of order, and a disk without room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest import mock

from raftstorage.node.admission import FULL_MS, Amount, Bounds
from raftstorage.node.disk_space import Room
from raftstorage.node.raft.types import Role
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.session_world import oid, run, world
from tests.unit.service.test_overload import commit, hello, name, vote

# ---- restoring --------------------------------------------------------------------------------------------


def tid(number: int) -> bytes:
    return (0x03F0000000000000 + number).to_bytes(8, "big")


@run
async def test_after_a_refused_restore_no_later_one_is_taken() -> None:
    """Tids rise: with a later one in the log, the one that was refused could never be restored."""
    bounds = Bounds(Amount(4, 1 << 20), Amount(8, 1 << 20))
    async with world(None, bounds) as it:
        client = await hello(it)
        assert (await client.ask(commit=commit(1, tid=tid(1)))).HasField("committed")
        it.driver.held = True
        asked = [await client.send(commit=commit(n, tid=tid(n))) for n in range(2, 6)]
        refused = [(await client.answer(number)).failure.reason for number in asked[2:]]
        assert refused == [pb.BUSY] * 2
        it.driver.held = False
        it.driver.apply()  # there is room again, and the client does not know yet
        for n in range(6, 9):
            assert (await client.ask(commit=commit(n, tid=tid(n)))).failure.reason == pb.BUSY
        for n in range(2, 9):  # it begins again with the first that is not committed, or with one before
            assert (await client.ask(commit=commit(n, tid=tid(n)))).committed.tid == tid(n)


@run
async def test_after_a_restore_that_met_no_leader_no_later_one_is_taken() -> None:
    async with world() as it:
        client = await hello(it)
        await client.ask(commit=commit(1, tid=tid(1)))
        it.driver.become(Role.FOLLOWER, 2)
        assert (await client.ask(commit=commit(2, tid=tid(2)))).failure.reason == pb.NOT_LEADER
        it.driver.become(Role.LEADER, 1, ready=True)  # before the client has heard of it
        assert (await client.ask(commit=commit(3, tid=tid(3)))).failure.reason == pb.BUSY
        for n in (2, 3):
            assert (await client.ask(commit=commit(n, tid=tid(n)))).committed.tid == tid(n)


@run
async def test_a_restore_that_was_given_up_is_forgotten() -> None:
    with mock.patch("raftstorage.node.service.session.RESTORE_PAUSE", 0.2):
        async with world() as it:
            client = await hello(it)
            await client.ask(commit=commit(1, tid=tid(1)))
            it.room = Room.LOW
            assert (await client.ask(commit=commit(2, tid=tid(2)))).failure.reason == pb.STORAGE_FULL
            it.room = Room.AMPLE
            assert (await client.ask(commit=commit(5, tid=tid(5)))).failure.reason == pb.BUSY
            await asyncio.sleep(0.3)
            assert (await client.ask(commit=commit(5, tid=tid(5)))).HasField("committed")


# ---- a disk without room ------------------------------------------------------------------------------------


def reason(event: pb.Event) -> int:
    return event.failure.reason


@run
async def test_a_leader_whose_disk_is_nearly_full() -> None:
    async with world() as it:
        client = await hello(it)
        first = (await client.ask(commit=commit(1))).committed.tid
        for n in (2, 3):
            await client.ask(vote=vote(n))
        it.room = Room.LOW
        calls: dict[str, Callable[[], dict[str, object]]] = {
            "vote": lambda: {"vote": vote(4)},
            "commit": lambda: {"commit": commit(4)},
            "oids": lambda: {"allocate_oids": pb.AllocateOids(count=1)},
        }
        for call in calls.values():
            refused = (await client.ask(**call())).failure
            assert (refused.reason, refused.code, refused.retry_after_ms) == (pb.STORAGE_FULL, 8, FULL_MS)
        assert it.metric("refused_total", reason="storage_full") == 3
        # Reads go on, and what was voted for is finished.
        load = pb.LoadBefore(oid=oid(1), before=b"\x7f" + b"\xff" * 7, at_least=first)
        assert (await client.ask(load_before=load)).record.data == b"data"
        assert (await client.ask(finish=pb.Finish(transaction_id=name(2)))).HasField("committed")
        # Committed long ago: an answer needs no room.
        assert (await client.ask(commit=commit(1))).committed.tid == first
        it.room = Room.NONE
        assert reason(await client.ask(finish=pb.Finish(transaction_id=name(3)))) == pb.STORAGE_FULL
        assert (await client.ask(load_before=load)).record.data == b"data"
        assert (await client.ask(abort=pb.Abort(transaction_id=name(9)))).HasField("aborted")
        it.room = Room.AMPLE
        assert (await client.ask(finish=pb.Finish(transaction_id=name(3)))).HasField("committed")
        assert (await client.ask(commit=commit(4))).HasField("committed")
        assert (await client.ask(allocate_oids=pb.AllocateOids(count=1))).oids.count == 1
