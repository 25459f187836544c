"""What a simulated node has around its production code."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from raftstorage.node.raft.types import Message

if TYPE_CHECKING:
    from tests.simulation.node import SimNode


class Peer(NamedTuple):
    """When it was heard last, and whether its disk had room, as it said then."""

    heard: float
    has_room: bool


class Wire:
    """`driver.Transport`: nothing to start or stop."""

    def __init__(self, node: SimNode) -> None:
        self._node = node

    def send(self, message: Message) -> None:
        self._node.send(message)

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Timeouts(random.Random):
    """The core's random source."""

    def __init__(self, node: SimNode) -> None:
        super().__init__(f"{node.world.seed}/core {node.id} {node.lives}")
        self._node = node

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        if self._node.world.now < self._node.crowded_until:
            return start
        return super().randrange(start, stop, step)


@dataclass
class Crash:
    """Strikes when the node passes `point` once more than `passes` times; it is down for `seconds` then."""

    point: str
    passes: int
    power: bool  # the machine goes, not the process alone
    seconds: float


class Uneven:
    """The driver's clock: applying an entry takes up to 4 ms of it, so that backlogs need uneven turns."""

    def __init__(self, node: SimNode) -> None:
        self._rng = random.Random(f"{node.world.seed}/applying {node.id} {node.lives}")
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self._rng.random() * 0.004
        return self._now
