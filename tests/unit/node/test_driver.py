"""The driver over the real core and the real log, with messages carried in memory and failures put in."""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from raftstorage.node.driver import LeadershipLost
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.engine.api import Applied
from raftstorage.node.raft.types import (
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    NotLeader,
    Role,
    RoleChange,
    SnapshotBase,
)

from tests.unit.node.driver_cluster import (
    COMMAND,
    TICK,
    Cluster,
    open_wal,
    run,
    until,
)


def test_three_elect_commit_and_agree(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            indexes = [leader.propose(COMMAND) for _ in range(200)]
            assert indexes == list(range(indexes[0], indexes[0] + 200))
            for node in (1, 2, 3):
                await cluster[node].wait_applied(indexes[-1])
            assert cluster.applied[1] == cluster.applied[2] == cluster.applied[3]
            assert [entry.index for entry in cluster.applied[1]] == list(range(1, indexes[-1] + 1))
            assert [entry.data for entry in cluster.applied[1] if entry.kind is EntryKind.COMMAND] == [
                COMMAND
            ] * 200
            assert len({cluster[node].engine.digest() for node in (1, 2, 3)}) == 1
            follower = next(cluster[node] for node in (1, 2, 3) if cluster[node] is not leader)
            with pytest.raises(NotLeader):
                follower.propose(COMMAND)
            status = leader.status()
            assert (status.role, status.leader, status.ready) == (Role.LEADER, leader.node_id, True)
            assert {peer.node_id for peer in status.peers} == {1, 2, 3} - {leader.node_id}
            assert max(peer.match_index for peer in status.peers) == indexes[-1]

    run(work())


def test_several_commands_are_appended_with_nothing_between_them(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=1) as cluster:
            leader = await cluster.leader()
            before = leader.propose(COMMAND)
            first = leader.propose_many([b"one", b"two", b"three"])
            after = leader.propose(COMMAND)
            assert (first, after) == (before + 1, before + 4)
            await leader.wait_applied(after)
            assert [entry.data for entry in cluster.applied[1][-4:]] == [b"one", b"two", b"three", COMMAND]
            await leader.stop()
            with pytest.raises(NotLeader):
                leader.propose_many([COMMAND])

    run(work())


def test_one_turns_proposals_are_one_write_and_a_busy_disk_gathers_the_next(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=1) as cluster:
            leader, wal = await cluster.leader(), cluster.wals[1]
            wal.gate.clear()
            wal.entered.clear()
            wal.writes.clear()
            leader.propose(COMMAND)
            leader.propose(COMMAND)
            await asyncio.to_thread(wal.entered.wait)
            before = leader.applied_index
            for _ in range(20):  # each in a turn of its own, while the first write is held up
                last = leader.propose(COMMAND)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert leader.applied_index == before, "applied what is not durable"
            wal.gate.set()
            await leader.wait_applied(last)
            assert wal.writes == [1, 20]

    run(work())


def test_no_vote_leaves_before_it_is_durable(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=3) as cluster:
            cluster.network.cut = {2, 3}
            voter, wal = cluster[1], cluster.wals[1]
            wal.gate.clear()
            await asyncio.to_thread(wal.entered.wait, 0.01)
            voter.receive([Message(MessageType.VOTE, 2, 1, 100, transfer=True)])
            await asyncio.to_thread(wal.entered.wait)
            await asyncio.sleep(3 * TICK)

            def replies() -> list[Message]:
                return [
                    each
                    for each in cluster.network.sent
                    if each.type is MessageType.VOTE_REPLY and each.term == 100
                ]

            assert replies() == []
            assert wal.hard_state.term < 100
            wal.gate.set()
            await until(replies, lambda: asyncio.sleep(TICK))
            assert not replies()[0].reject
            assert wal.hard_state == HardState(100, 2)

    run(work())


# The thread ends with SystemExit here, where a node's process ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_sync_is_fatal_and_nothing_follows_it(tmp_path: Path) -> None:
    async def work() -> None:
        cluster = Cluster(tmp_path, nodes=1)
        async with cluster:
            leader, wal = await cluster.leader(), cluster.wals[1]
            wal.failure = OSError(errno.EIO, "Input/output error")
            applied = leader.applied_index
            leader.propose(COMMAND)
            assert await asyncio.to_thread(cluster.failures.happened.wait, 30)
            wal.failure = None  # a disk that recovers must not be written to again
            leader.propose(COMMAND)
            await asyncio.sleep(5 * TICK)
            assert cluster.failures.errors[0].args[0] == errno.EIO
            assert leader.applied_index == applied
            assert wal.last_index() == applied

    run(work())


def test_a_listener_that_fails_is_fatal(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, nodes=1)

    def broken(batch: Sequence[tuple[Entry, Applied]]) -> None:
        raise RuntimeError("lost an invalidation")

    async def work() -> None:
        cluster[1].on_applied.append(broken)
        await cluster[1].start()
        await asyncio.sleep(30)

    with pytest.raises(SystemExit):
        run(work())
    assert [str(error) for error in cluster.failures.errors] == ["lost an invalidation"]


def test_a_loop_that_was_held_up_makes_up_for_no_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=1) as cluster:
            await cluster.leader()
            ticks: list[float] = []
            tick = cluster[1]._core.tick
            monkeypatch.setattr(cluster[1]._core, "tick", lambda: (ticks.append(time.monotonic()), tick()))
            time.sleep(50 * TICK)  # noqa: ASYNC251 - this is the hold-up
            held_until = time.monotonic()
            await until(lambda: len(ticks) >= 3, lambda: asyncio.sleep(TICK / 4))
            assert ticks[0] >= held_until
            assert ticks[2] - ticks[0] >= 1.9 * TICK

    run(work())


def test_role_listeners_hear_of_leadership_before_it_is_ready(tmp_path: Path) -> None:
    async def work() -> None:
        cluster = Cluster(tmp_path, nodes=1)
        heard: list[str] = []

        def role(change: RoleChange) -> None:
            heard.append(change.role.value)
            assert not cluster[1].is_ready_leader

        cluster[1].on_role.append(role)
        cluster[1].on_ready.append(lambda: heard.append(f"ready at {cluster[1].applied_index}"))
        async with cluster:
            await cluster.leader()
            assert heard[-2:] == ["leader", "ready at 1"]

    run(work())


def test_a_read_barrier_waits_for_what_was_committed_before(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            follower = next(cluster[node] for node in (1, 2, 3) if cluster[node] is not leader)
            for _ in range(20):
                index = leader.propose(COMMAND)
                await leader.wait_applied(index)
                await asyncio.gather(*(follower.read_barrier() for _ in range(5)))
                assert follower.applied_index >= index
            await leader.read_barrier()

    run(work())


def test_a_node_that_is_cut_off_confirms_no_read_until_it_is_back(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            cluster.network.cut = {leader.node_id}
            deposed = leader
            barrier = asyncio.create_task(deposed.read_barrier(30))
            with pytest.raises((TimeoutError, LeadershipLost)):
                await deposed.read_barrier(0.02)
            new = await cluster.leader()
            assert new is not deposed
            index = new.propose(COMMAND)
            await new.wait_applied(index)
            with pytest.raises(LeadershipLost):
                await deposed.read_barrier(1.0)
            assert not barrier.done()
            cluster.network.cut = set()
            await barrier
            assert deposed.applied_index >= index, "a read was confirmed that does not see an earlier commit"

    run(work())


def test_leadership_goes_where_it_is_sent(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            to = next(node for node in (1, 2, 3) if node != leader.node_id)
            assert await leader.transfer_leader(to, timeout=10) == to
            assert (await cluster.leader()).node_id == to
            with pytest.raises(NotLeader):
                await leader.transfer_leader(to)
            with pytest.raises(LookupError):
                await cluster[to].transfer_leader(9)
            assert await cluster[to].transfer_leader(to) == to

    run(work())


def test_a_lone_leader_has_nobody_to_hand_over_to(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=1) as cluster:
            with pytest.raises(LookupError):
                await (await cluster.leader()).transfer_leader(0)

    run(work())


def test_a_backlog_is_applied_in_slices(tmp_path: Path) -> None:
    """What another life of the node left unapplied does not hold the loop in one piece."""
    entries = [Entry(1, 1, EntryKind.NOOP)] + [
        Entry(1, index, EntryKind.COMMAND, COMMAND) for index in range(2, 3001)
    ]
    wal = open_wal(tmp_path / "1")
    wal.write(HardState(1, 1), entries)
    wal.close()

    async def work() -> None:
        cluster = Cluster(tmp_path, nodes=1, max_apply_bytes=1000)
        slices: list[int] = []
        turns: list[int] = []
        cluster[1].on_applied.append(lambda batch: slices.append(len(batch)))
        async with cluster:
            waiting = asyncio.create_task(cluster[1].wait_applied(3001))
            while not waiting.done():
                turns.append(cluster[1].applied_index)
                await asyncio.sleep(0)
            await waiting
        assert sum(slices) == 3001
        assert len({index for index in turns if 0 < index < 3000}) >= 5, "nothing else ran in between"
        assert max(slices) < 1000

    run(work())


def test_a_turn_of_applying_is_bounded_in_time(tmp_path: Path) -> None:
    """However many entries fit into the bytes of a turn; in a clock that applying one entry moves by 2 ms."""

    async def work() -> None:
        now = 0.0

        def clock() -> float:
            nonlocal now
            now += 0.002
            return now

        cluster = Cluster(tmp_path, nodes=1, clock=clock)
        slices: list[int] = []
        cluster[1].on_applied.append(lambda batch: slices.append(len(batch)))
        async with cluster:
            leader = await cluster.leader()
            last = leader.propose_many([COMMAND] * 50) + 49
            await leader.wait_applied(last)
            assert leader.engine.applied_index == last
        assert sum(slices) == last
        assert max(slices) == 3

    run(work())


def test_a_congested_engine_is_left_alone_and_the_node_goes_on(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=1) as cluster:
            leader = await cluster.leader()
            await leader.wait_applied(leader.propose(COMMAND))
            before = leader.applied_index
            leader.engine._store.congested = True  # type: ignore[attr-defined]
            last = leader.propose_many([COMMAND] * 10) + 9
            with pytest.raises(TimeoutError):
                await leader.wait_applied(last, timeout=10 * TICK)
            assert (leader.applied_index, leader.commit_index, leader.role) == (before, last, Role.LEADER)
            leader.engine._store.congested = False  # type: ignore[attr-defined]
            await leader.wait_applied(last)

    run(work())


def test_nothing_is_applied_where_the_state_must_stay(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, nodes=1) as cluster:
            leader = await cluster.leader()
            await leader.wait_applied(leader.propose(COMMAND))
            with leader.applying_nothing():
                before = leader.applied_index
                last = leader.propose_many([COMMAND] * 10) + 9
                await until(lambda: leader.commit_index == last, leader.flush)
                assert leader.applied_index == before
            await leader.wait_applied(last)

    run(work())


def test_a_snapshot_takes_the_place_of_what_is_left_to_apply(tmp_path: Path) -> None:
    """One entry in a turn: the snapshot comes long before the follower is through with what is committed."""

    async def work() -> None:
        ticking = itertools.count()
        async with Cluster(tmp_path, clock=lambda: float(next(ticking))) as cluster:
            leader = await cluster.leader()
            follower = next(cluster[node] for node in (1, 2, 3) if cluster[node] is not leader)
            ahead = MemoryEngine()
            for index in range(1, 4001):
                ahead.apply(Entry(1, index, EntryKind.COMMAND, COMMAND))
            last = leader.propose_many([COMMAND] * 3000) + 2999
            await until(lambda: follower.commit_index >= last, lambda: asyncio.sleep(0))
            assert follower.applied_index < last - 1000
            cluster.network.cut.add(follower.node_id)
            base = SnapshotBase(ahead.applied_index, leader.term, leader.membership)
            assert await follower.install(ahead._store, base) is not None
            assert follower.applied_index == base.index
            await follower.flush()
            assert follower.applied_index == base.index and not cluster.failures.errors

    run(work())


def test_stopping_tells_those_who_wait(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            waiting = [
                asyncio.create_task(leader.wait_applied(10_000)),
                asyncio.create_task(leader.wait_role()),
            ]
            await asyncio.sleep(0)
            await leader.stop()
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, LeadershipLost)
            with pytest.raises(LeadershipLost):
                await leader.read_barrier()
            with pytest.raises(NotLeader):
                leader.propose(COMMAND)

    run(work())
