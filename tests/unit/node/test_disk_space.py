"""A disk that gets full: when nothing new is taken, to whom leadership goes, and that it ends by itself."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from raftstorage.node import disk_space
from raftstorage.node.disk_space import (
    KNOWN_SECONDS,
    UNKNOWN_SECONDS,
    DiskWatcher,
    Gauge,
    Handover,
    Room,
    Space,
    default_reserve,
    measure,
)

from tests.unit.node.driver_cluster import until

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("total", "reserve"),
    [
        (100 * MIB, 10 * MIB),  # a tenth of a small one
        (1 * GIB, GIB // 10),
        (5 * GIB, 256 * MIB),
        (100 * GIB, 2 * GIB),  # 2 %
        (10_000 * GIB, 4 * GIB),
    ],
)
def test_the_default_reserve(total: int, reserve: int) -> None:
    assert default_reserve(total) == reserve


def test_room_comes_and_goes_with_hysteresis() -> None:
    gauge = Gauge(reserve=1000)
    steps = [
        (1000, Room.AMPLE),
        (999, Room.LOW),
        (1100, Room.LOW),  # a little more than the reserve is not enough
        (250, Room.LOW),
        (249, Room.NONE),
        (251, Room.LOW),
        (1249, Room.LOW),
        (1250, Room.AMPLE),
        (1001, Room.AMPLE),
    ]
    assert [gauge.look(Space(free, 10_000)) for free, _ in steps] == [room for _, room in steps]


def test_the_file_system_is_asked(tmp_path: Path) -> None:
    space = measure(tmp_path)
    assert 0 < space.free <= space.total
    with pytest.raises(OSError):
        measure(tmp_path / "nowhere")


VOTERS = {2: 70, 3: 90, 4: 80}


@pytest.mark.parametrize(
    ("having", "target"),
    [
        ({2: True, 3: False, 4: True}, 4),  # the furthest that has room
        ({2: True, 3: None, 4: None}, 2),  # known is better than far
        ({2: None, 3: False, 4: None}, 4),
        ({2: None, 3: None, 4: None}, 3),
        ({2: False, 3: False, 4: False}, 0),
    ],
)
def test_who_gets_leadership(having: dict[int, bool | None], target: int) -> None:
    assert Handover(having.__getitem__).target(VOTERS, 0.0) == target


@pytest.mark.parametrize(("room", "pause"), [(True, KNOWN_SECONDS), (None, UNKNOWN_SECONDS)])
def test_how_often_it_is_tried(room: bool | None, pause: float) -> None:
    handover = Handover(lambda node: room)
    times = [handover.target(VOTERS, float(second)) for second in range(200)]
    tried = [second for second, target in enumerate(times) if target]
    assert tried == list(range(0, 200, int(pause)))


class World:
    """A watcher that looks when it is told to."""

    def __init__(self) -> None:
        self.free = 1000
        self.voters: dict[int, int] = {}
        self.given: list[int] = []
        self.error: Exception | None = None
        self.broken = False
        self.having: dict[int, bool | None] = {}
        self.watcher = DiskWatcher(self.look, 1000, lambda: self.voters, self.give, self.having.get)

    def look(self) -> Space:
        if self.broken:
            raise OSError("stale file handle")
        return Space(self.free, 10_000)

    async def give(self, node: int) -> None:
        self.given.append(node)
        if self.error is not None:
            raise self.error

    def looks(self, times: int = 1) -> Room:
        async def work() -> None:
            for _ in range(times):
                await self.watcher.look()

        asyncio.run(work())
        return self.watcher.room


def test_a_leader_without_room_hands_over_and_a_follower_stays() -> None:
    world = World()
    world.free = 10
    assert world.looks() is Room.NONE and world.given == []
    world.voters = VOTERS
    world.looks(3)
    assert world.given == [3]
    assert "10 bytes are free, 1000 are kept" in world.watcher.problem()


def test_it_recovers_by_itself() -> None:
    world = World()
    world.voters = VOTERS
    world.free = 900
    assert world.looks() is Room.LOW
    world.free = 5000
    assert world.looks(5) is Room.AMPLE and world.watcher.problem() == ""
    assert world.given == [3]


def test_a_handover_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.voters, world.free, world.error = VOTERS, 10, TimeoutError()
    with caplog.at_level(logging.WARNING):
        assert world.looks() is Room.NONE
    assert "node 3 did not take over: TimeoutError" in caplog.text


def test_a_disk_that_cannot_be_asked_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.free = 10
    world.looks()
    world.broken = True
    with caplog.at_level(logging.WARNING):
        assert world.looks(5) is Room.NONE, "what was known last counts"
    assert caplog.text.count("stale file handle") == 1


def test_it_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "LOOK_SECONDS", 0.001)
    world = World()

    async def work() -> None:
        await world.watcher.start()
        assert world.watcher.room is Room.AMPLE
        world.free = 10
        async with asyncio.timeout(10):
            await until(lambda: world.watcher.room is Room.NONE, lambda: asyncio.sleep(0.001))
            world.free = 5000
            await until(lambda: world.watcher.room is Room.AMPLE, lambda: asyncio.sleep(0.001))
        await world.watcher.stop()

    asyncio.run(work())
