"""Transactions of very many objects: their invalidations come in pieces, whole, and before all that shows them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from raftstorage.client.cluster.connection import dial
from raftstorage.client.cluster.feed import Feed
from raftstorage.client.cluster.metrics import Metrics
from raftstorage.client.cluster.replicas import Replicas, Surroundings
from raftstorage.node.engine.layout import PAGE_OIDS
from raftstorage.node.service.pieces import PIECE_PAGES, Pieces
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import change, in_fragments, p64
from tests.unit.node.driver_cluster import until
from tests.unit.service.session_world import Client, World, run, world

PIECE = PIECE_PAGES * PAGE_OIDS
OBJECTS = 3 * PIECE - 500
OIDS = [p64(number) for number in range(1, OBJECTS + 1)]


def commit_large(it: World, tid: int, base: int = 0) -> bytes:
    """Through the log, as the leader would; its tid."""
    oids = range(1, OBJECTS + 1)
    parts = [change(*oids[at : at + 5000], base=base) for at in range(0, OBJECTS, 5000)]
    it.driver.propose_many(in_fragments(p64(tid) * 2, tid, *parts))
    return p64(tid)


async def told(client: Client, tid: bytes) -> list[pb.Invalidation]:
    """Everything that the client is told up to the last of `tid`."""
    got: list[pb.Invalidation] = []
    while not got or got[-1].tid != tid or got[-1].more:
        got += (await client.event()).invalidations.transactions
    return got


@run
async def test_pieces_come_in_order_and_before_what_shows_them() -> None:
    async with world() as it:
        client, old = it.connect(), it.connect()
        await client.hello(takes_pages=True)
        await old.hello()
        tid = commit_large(it, 10)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert it.driver.engine.last_tid == tid, "it is applied before the next request"
        load = await client.send(load_before=pb.LoadBefore(oid=p64(7), before=p64(11), at_least=tid))
        next_tid = commit_large(it, 20, base=10)
        first = await told(client, tid)
        assert [one.more for one in first] == [True, True, False]
        assert [len(one.oids) for one in first] == [PIECE, PIECE, PIECE - 500]
        assert [oid for one in first for oid in one.oids] == OIDS
        record = (await client.answer(load)).record
        assert (record.serial, client.seen[-1].id) == (tid, load)
        second = await told(client, next_tid)
        assert {one.tid for one in second} == {next_tid} and len(second) == 3
        assert [(one.tid, list(one.oids), one.more) for one in await told(old, next_tid)] == [
            (tid, OIDS, False),
            (next_tid, OIDS, False),
        ], "who does not know pieces gets each in one"


@run
async def test_catching_up_with_large_ones_between_small_ones() -> None:
    async with world() as it:
        writer = it.connect()
        await writer.hello(takes_pages=True)
        tids = [(await writer.commit(n, OBJECTS + n)).committed.tid for n in (1, 2)]
        start = int.from_bytes(tids[-1], "big")
        tids.append(commit_large(it, start + 1))
        tids.append(commit_large(it, start + 2, base=start + 1))
        await told(writer, tids[-1])
        tids.append((await writer.commit(3, OBJECTS + 3)).committed.tid)
        for takes_pages in (True, False):
            client = it.connect()
            await client.hello(after_tid=tids[0], takes_pages=takes_pages)
            got = await told(client, tids[-1])
            assert [one.tid for one in got if not one.more] == tids[1:]
            large = [oid for one in got if one.tid == tids[3] for oid in one.oids]
            assert large == OIDS
            assert len(got) == (2 + 6 if takes_pages else 4)


@run
async def test_a_page_that_cannot_be_read_ends_the_node() -> None:
    async with world() as it:
        client = it.connect()
        await client.hello(takes_pages=True)
        commit_large(it, 10)
        await until(lambda: it.driver.engine.last_tid == p64(10), lambda: asyncio.sleep(0))
        pages = [key for key, _ in it.driver.engine._store.scan("pages", b"")]
        it.driver.engine._store.write([("pages", pages[-1], b"nonsense")])
        await asyncio.wait_for(it.driver.ended.wait(), 10)
        assert "checksum" in str(it.driver.failed[0])


class Told(Feed):
    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[bytes, Sequence[bytes]]] = []
        self.news = asyncio.Event()

    def accept(self, tid: bytes, oids: Sequence[bytes]) -> None:
        if tid > self.accepted:
            self.changes.append((tid, oids))
            self.accepted = tid
        self.news.set()


class Breaking:
    """Dials as a client does; the first stream that brings a piece is lost behind it."""

    def __init__(self) -> None:
        self.broken = False

    @asynccontextmanager
    async def dial(self, address: str) -> AsyncIterator[Any]:
        async with dial(address) as stream:
            yield _Broken(stream, self)


class _Broken:
    def __init__(self, stream: Any, breaking: Breaking) -> None:
        self._stream = stream
        self._breaking = breaking
        self._lost = False
        self.write, self.cancel, self.details = stream.write, stream.cancel, stream.details

    def read(self) -> Awaitable[Any]:
        return self._read()

    async def _read(self) -> Any:
        if self._lost:
            raise EOFError("lost")
        batch = await self._stream.read()
        if any(one.more for event in batch.events for one in event.invalidations.transactions):
            self._lost = not self._breaking.broken
            self._breaking.broken = True
        return batch


@run
async def test_a_client_takes_a_change_when_all_of_it_is_there() -> None:
    """Also when the stream is lost in the middle: what had come of it counts for nothing."""
    async with world() as it:
        feed, breaking = Told(), Breaking()
        connected = asyncio.Event()
        replicas = Replicas(
            [it.address],
            Surroundings(asyncio.get_running_loop(), random.Random(1), breaking.dial),
            feed,
            Metrics("watcher", CollectorRegistry()),
            client_id="0" * 32,
            changed=connected.set,
        )
        replicas.start()
        while not replicas.book.connected():
            connected.clear()
            await connected.wait()
        replicas.begin(bytes(8))
        tids = [commit_large(it, 10), commit_large(it, 20, base=10)]
        while len(feed.changes) < 2:
            feed.news.clear()
            await feed.news.wait()
        assert breaking.broken
        assert [(tid, list(oids)) for tid, oids in feed.changes] == [(tid, OIDS) for tid in tids]
        await asyncio.gather(*replicas.stop())


class Some:
    """`Oids` in `page_count` pages of one oid."""

    last = ()

    def __init__(self, page_count: int) -> None:
        self.page_count = page_count

    def __len__(self) -> int:
        return self.page_count

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("all in one go")

    def pages(self, first: int = 0) -> Iterator[tuple[bytes, ...]]:
        return iter([(p64(number),) for number in range(first, self.page_count)])


@pytest.mark.parametrize("pages", [1, PIECE_PAGES, PIECE_PAGES + 1])
def test_every_number_of_pages(pages: int) -> None:
    made = Pieces(p64(1), Some(pages))
    told = [made[number].invalidations.transactions[0] for number in range(len(made))]
    assert [oid for one in told for oid in one.oids] == [p64(number) for number in range(pages)]
    assert [one.more for one in told] == [True] * (len(told) - 1) + [False]
