"""Reads of much data leave the loop its turns, and are answered whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.fragments import split
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.service import long_reads
from raftstorage.node.service.reads import Reads
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import change, everything, feed, in_fragments, p64
from tests.unit.service.session_world import run, world


def filled() -> MemoryEngine:
    """Small transactions round a large one, and an object with a long history."""
    engine = MemoryEngine()
    for tid in range(1, 1300):
        feed(engine, *in_fragments(p64(tid) * 2, tid, change(1, base=tid - 1)))
    feed(engine, *in_fragments(b"L" * 16, 2000, *split(change(*range(100, 5000), size=400)), change(7)))
    for tid in range(2001, 2010):
        feed(engine, *in_fragments(p64(tid) * 2, tid, change(1, base=1299 if tid == 2001 else tid - 1)))
    return engine


async def read(engine: MemoryEngine, **call: Any) -> tuple[pb.Event, int]:
    """The answer, and how many turns of the loop it took."""
    answers: list[pb.Event] = []
    failed: list[BaseException] = []
    asked = Reads(engine, failed.append)
    over = asked.read(pb.Request(id=1, **call), next(iter(call)), 0.0, answers.append)
    turns = 0
    while over is not None and not over.done() and not failed:
        await asyncio.sleep(0)
        turns += 1
    if failed:
        raise failed[0]
    (answer,) = answers
    return answer, turns


@run
async def test_transactions_are_answered_whole() -> None:
    engine = filled()
    every = everything(engine)
    for size in (1000, 100_000, 3 << 20, 64 << 20):
        got: list[pb.CommittedTransaction] = []
        most, more, start = 0, True, bytes(8)
        while more:
            asked = pb.ReadTransactions(start=start, max_bytes=size)
            answer, turns = await read(engine, read_transactions=asked)
            page, more = answer.transactions.transactions, answer.transactions.more
            assert page
            assert len(page) == 1 or sum(each.ByteSize() for each in page) <= size
            got += page
            start = p64(int.from_bytes(page[-1].tid, "big") + 1)
            most = max(most, turns)
        assert got == every
        assert most >= 4, "the large one is read in one turn"
    asked = pb.ReadTransactions(start=p64(2000), stop=p64(2003), max_bytes=3 << 20)
    answer, _turns = await read(engine, read_transactions=asked)
    assert [each.tid for each in answer.transactions.transactions] == [p64(tid) for tid in range(2000, 2004)]
    assert not answer.transactions.more


@run
async def test_a_history_is_answered_whole() -> None:
    engine = filled()
    answer, turns = await read(engine, history=pb.History(oid=p64(1), size=10_000))
    assert [each.tid for each in answer.history.revisions] == [
        p64(tid) for tid in [*range(2009, 2000, -1), *range(1299, 0, -1)]
    ]
    assert turns >= 2
    answer, turns = await read(engine, history=pb.History(oid=p64(1), size=600))
    assert (len(answer.history.revisions), answer.history.revisions[-1].tid) == (600, p64(1299 - 590))
    answer, turns = await read(engine, history=pb.History(oid=p64(1), size=5))
    assert (len(answer.history.revisions), turns) == (5, 0)
    answer, turns = await read(engine, history=pb.History(oid=p64(99_999), size=5))
    assert (answer.failure.reason, turns) == (pb.NO_SUCH_OBJECT, 0)


@run
async def test_a_history_is_cut_where_its_answer_would_be_too_large() -> None:
    with mock.patch.object(long_reads, "MAX_PAGE_BYTES", 1000):
        answer, _turns = await read(filled(), history=pb.History(oid=p64(1), size=10_000))
    assert len(answer.history.revisions) == 500


@run
async def test_damage_found_late_ends_the_node() -> None:
    engine = filled()
    engine._store.write([("records", p64(4900) + p64(2000), b"nonsense")])
    with pytest.raises(EngineError, match="checksum"):
        await read(engine, read_transactions=pb.ReadTransactions(start=p64(2000)))


def failing(after: int, real: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(1000))

    def call(*arguments: Any) -> Any:
        if next(calls) >= after:
            raise RuntimeError("a bug")
        return real(*arguments)

    return call


@run
async def test_an_unexpected_error_is_answered() -> None:
    for after in (0, 1):
        engine = filled()
        engine.history = failing(after, engine.history)  # type: ignore[method-assign]
        answer, _turns = await read(engine, history=pb.History(oid=p64(1), size=10_000))
        assert answer.failure.reason == pb.INTERNAL


@run
async def test_a_session_has_one_long_read_at_a_time() -> None:
    async with world() as it:
        it.driver.engine.adopt(filled()._store)
        client = it.connect()
        await client.hello()
        long = pb.ReadTransactions(start=p64(2000), stop=p64(2000), max_bytes=1)
        first, second = await client.send(read_transactions=long), await client.send(size=pb.Size())
        whole = await client.answer(first)
        await client.answer(second)
        assert len(whole.transactions.transactions[0].records) == 4901
        kinds = [each.WhichOneof("kind") for each in client.seen]
        assert kinds.index("transactions") < kinds.index("size")
        other = it.connect()
        await other.hello()
        behind = asyncio.ensure_future(client.ask(read_transactions=long))
        await other.ask(size=pb.Size())
        assert (await behind).transactions.transactions[0].tid == p64(2000)
