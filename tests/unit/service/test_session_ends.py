"""Sessions that end for the node's sake: damage under it, and streams that say nothing."""

from __future__ import annotations

from typing import NoReturn
from unittest import mock

import grpc
import grpc.aio
import pytest
from raftstorage.node.engine.api import EngineError
from raftstorage.node.service.sessions import SessionLimits
from raftstorage.proto import PROTOCOL_VERSION
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.session_world import ROOT, World, oid, run, world

DAMAGED = EngineError("a damaged block")


def damage(it: World, what: str) -> None:
    def read(*_: object) -> NoReturn:
        raise DAMAGED

    setattr(it.driver.engine, what, read)


@run
async def test_a_record_that_cannot_be_read_ends_the_node() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        damage(it, "load_before")
        await client.send(load_before=pb.LoadBefore(oid=oid(1), before=oid(2)))
        await it.driver.ended.wait()
        assert it.driver.failed == [DAMAGED]


@run
async def test_a_serial_that_cannot_be_read_ends_the_node() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        damage(it, "conflicts")
        await client.send(vote=pb.Vote(transaction_id=b"t" * 16, transaction=b""))
        await it.driver.ended.wait()
        assert it.driver.failed == [DAMAGED]


@run
async def test_changes_that_cannot_be_read_end_the_node() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello()
        await client.commit(1, 1)
        damage(it, "changed_since")
        await it.connect().send(
            hello=pb.Hello(protocol_version=PROTOCOL_VERSION, client_id="0" * 32, after_tid=oid(1))
        )
        await it.driver.ended.wait()
        assert it.driver.failed == [DAMAGED]


@pytest.mark.parametrize("goes", [True, False], ids=["its holder goes", "its lease ends"])
def test_damage_shows_when_a_waiting_vote_gets_its_turn(goes: bool) -> None:
    @run
    async def test() -> None:
        async with world(SessionLimits(lease_ms=30_000 if goes else 300)) as it:
            body = pb.Transaction(records=[pb.NewRecord(oid=oid(1), base_serial=ROOT)]).SerializeToString()
            holder, waiter = it.connect(), it.connect()
            await holder.hello()
            await waiter.hello()
            await holder.ask(vote=pb.Vote(transaction_id=b"h" * 16, transaction=body))
            await waiter.send(vote=pb.Vote(transaction_id=b"w" * 16, transaction=body))
            await waiter.ask(read_barrier=pb.ReadBarrier())  # by then the vote has arrived
            damage(it, "conflicts")
            if goes:
                holder._call.cancel()
            await it.driver.ended.wait()
            assert it.driver.failed == [DAMAGED]

    test()


@run
async def test_a_stream_that_says_no_hello_is_ended() -> None:
    with mock.patch("raftstorage.node.service.sessions.HELLO_SECONDS", 0.1):
        async with world() as it:
            greeted, silent = it.connect(), it.connect()
            await greeted.hello()
            await silent._call.wait_for_connection()
            assert await silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert (await greeted.ask(read_barrier=pb.ReadBarrier())).HasField("read_point")
