"""Transactions that name very many objects: what holds the names grows, and is let go, a little at a time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable

import pytest
from raftstorage.node import serials
from raftstorage.node.engine.api import Z64
from raftstorage.node.serials import Leaving, Serials
from raftstorage.proto import storage_pb2 as pb

from tests.unit.node.driver_cluster import until
from tests.unit.service.session_world import oid, run, world


def test_the_names_of_very_many_objects_are_freed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds them last lets them go."""
    monkeypatch.setattr(serials, "MANY", 50)
    leaving = Leaving()
    for many, pieces in ((50, 0), (51, 16)):
        names = Serials(leaving)
        for number in range(many):
            names.add(oid(number), Z64)
        del names
        assert len(leaving._pieces) == pieces
    for _ in range(16):
        assert leaving
        leaving.free_some()
    assert not leaving
    leaving.free_some()


def test_a_node_frees_them_however_the_transaction_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serials, "MANY", 50)
    taken: list[int] = []

    class Counted(Leaving):
        def take(self, pieces: Iterable[dict[bytes, bytes]]) -> None:
            some = list(pieces)
            taken.append(sum(map(len, some)))
            super().take(some)

    monkeypatch.setattr("raftstorage.node.parts.Leaving", Counted)

    @run
    async def work() -> None:
        async with world() as it:
            client = it.connect()
            await client.hello()
            gatherer = it.service._transacting._gatherer

            async def freed(count: int) -> None:
                await until(lambda: len(taken) == count and not gatherer.leaving, lambda: asyncio.sleep(0.01))
                assert taken[-1] == 200

            async def parts(letter: bytes, base: bytes) -> bytes:
                records = [pb.NewRecord(oid=oid(n), base_serial=base, data=b"x") for n in range(1000, 1200)]
                await client.send_parts(letter * 16, [pb.Transaction(records=records).SerializeToString()])
                return letter * 16

            first = await client.ask(commit=pb.Commit(transaction_id=await parts(b"A", Z64), parts=1))
            assert first.committed.tid
            await freed(1)
            refused = await client.ask(commit=pb.Commit(transaction_id=await parts(b"B", b"\x7f" * 8), parts=1))
            assert refused.HasField("failure")
            await freed(2)
            await client.ask(abort=pb.Abort(transaction_id=await parts(b"C", Z64)))
            await freed(3)

    work()


def test_what_holds_very_many_names_grows_a_little_at_a_time() -> None:
    """No thousand of names makes more than a few of its dictionaries grow."""
    serials = Serials()
    sizes = [sys.getsizeof(shard) for shard in serials._shards]
    most = 0
    for start in range(0, 300_000, 1000):
        for number in range(start, start + 1000):
            assert serials.add(oid(number), Z64)
        now = [sys.getsizeof(shard) for shard in serials._shards]
        if start >= 50_000:  # small ones grow in no time
            most = max(most, sum(before != after for before, after in zip(sizes, now, strict=True)))
        sizes = now
    assert 1 <= most <= 3
    assert len(serials) == 300_000 and oid(77_777) in serials and oid(300_000) not in serials
    assert serials[oid(5)] == Z64 and not serials.add(oid(5), Z64)
    assert sorted(serials) == [oid(number) for number in range(300_000)]
