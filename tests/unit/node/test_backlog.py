"""What a driver has taken on: counted, and bounded where nobody asks for admission."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest import mock

from raftstorage.node import backlog
from raftstorage.node.admission import Amount
from raftstorage.node.backlog import Backlog
from raftstorage.node.raft.types import Entry, EntryKind, Message, MessageType, Persist
from raftstorage.node.waiting import SWEEP, ReadWaiters

from tests.unit.node.driver_cluster import COMMAND, TICK, Cluster, run, until


def test_proposals_are_counted_until_they_are_applied() -> None:
    work = Backlog()
    work.proposed(5, [bytes(50), bytes(60)])
    work.proposed(7, [bytes(70), bytes(80)])
    assert work.proposed_bytes == 260
    work.applied(6)
    assert work.proposed_bytes == 150
    work.lost_leadership()
    work.applied(8)
    assert work.proposed_bytes == 0


def test_writes_are_counted_until_they_are_durable() -> None:
    work = Backlog()
    entries = (Entry(1, 1, EntryKind.COMMAND, b"12345"), Entry(1, 2, EntryKind.NOOP))
    persists = [Persist(1, None, entries, ()), Persist(2, None, (), ())]
    for persist in persists:
        work.queued(persist)
    assert work.writes == Amount(2, 5) and not work.deaf
    work.durable(persists)
    assert work.writes == Amount(0, 0)
    with mock.patch.object(backlog, "MOST_WRITES", Amount(2, 1000)):
        for persist in persists:
            work.queued(persist)
        assert work.deaf
        work.durable(persists[:1])
        assert not work.deaf


def test_a_leaders_backlog_rises_and_drains(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=1) as cluster:
            leader, wal = await cluster.leader(), cluster.wals[1]
            await leader.wait_applied(leader.last_index)
            assert leader.backlog == Amount(0, 0)
            wal.gate.clear()
            last = 0
            for _ in range(7):
                last = leader.propose(COMMAND)
            assert leader.backlog == Amount(7, 7 * len(COMMAND))
            await asyncio.sleep(0)
            assert leader.work.writes.bytes == 7 * len(COMMAND)
            wal.gate.set()
            await leader.wait_applied(last)
            assert leader.backlog == Amount(0, 0)
            await until(lambda: leader.work.writes == Amount(0, 0), lambda: asyncio.sleep(TICK))

    run(work())


def test_a_follower_whose_disk_hangs_does_not_heap_up_writes(tmp_path: Path) -> None:
    """The answer to an append waits for the writes before it: each would be another one in the line."""

    async def work() -> None:
        async with Cluster(tmp_path, nodes=3) as cluster:
            leader = await cluster.leader()
            node = next(node for node in (1, 2, 3) if node != leader.node_id)
            follower, wal = cluster[node], cluster.wals[node]
            await follower.wait_applied(leader.last_index)
            await until(lambda: follower.work.writes.items == 0, lambda: asyncio.sleep(TICK))
            index = follower.last_index
            again = Message(MessageType.APPEND, leader.node_id, node, leader.term, index, leader.term)
            wal.gate.clear()
            wal.entered.clear()
            last = leader.propose(COMMAND)
            await asyncio.to_thread(wal.entered.wait)
            with mock.patch.object(backlog, "MOST_WRITES", Amount(50, 1 << 20)):
                for _ in range(500):
                    follower.receive([again])
                assert 40 <= follower.work.writes.items <= 50
                wal.gate.set()
                await until(lambda: follower.work.writes.items == 0, lambda: asyncio.sleep(TICK))
                await follower.wait_applied(last)

    run(work())


def test_reads_that_gave_up_are_not_kept() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        reads = ReadWaiters(10)
        alive = loop.create_future()
        reads.until(10**9, alive, 0)
        for _ in range(20):
            for _ in range(SWEEP):
                gone = loop.create_future()
                reads.until(10**9, gone, 0)
                gone.cancel()
            reads.tick()
        assert len(list(reads._all())) <= SWEEP + 1
        reads.applied(10**9)
        assert alive.done() and not alive.cancelled()

    run(work())
