"""Whether a node's disk has room, and what a leader without room does about it.

A write that finds no room ends a node: what its log holds is not known any more. So a leader stops taking writes
before, with a reserve left for what was voted for already, and hands leadership to a voter that has room. A node
that follows goes on following: it would only be missed.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
#: Between two attempts to hand leadership to a voter that is known to have room, and to one that may have none.
KNOWN_SECONDS, UNKNOWN_SECONDS = 5.0, 60.0
LEAST_RESERVE, MOST_RESERVE = 256 << 20, 4 << 30


class Room(enum.Enum):
    AMPLE = "there is room"
    LOW = "less than the reserve: nothing new is taken"
    NONE = "less than a quarter of the reserve: no write is taken"


class Space(NamedTuple):
    """Bytes that this process may use, and that the file system has."""

    free: int
    total: int


def measure(directory: Path) -> Space:
    """OSError. May take as long as the file system does."""
    found = os.statvfs(directory)
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def default_reserve(total: int) -> int:
    """Bytes to keep free: 256 MiB or 2 %, whichever is more; but not above 4 GiB, nor a tenth of a small disk."""
    return min(max(LEAST_RESERVE, min(MOST_RESERVE, total // 50)), total // 10)


class Gauge:
    """Room with hysteresis: what was low is ample again a quarter above the reserve. Pure.

    `reserve`: bytes; 0: `default_reserve` of the file system.
    """

    def __init__(self, reserve: int = 0) -> None:
        self._reserve = reserve
        self.space = Space(0, 0)
        self.room = Room.AMPLE

    @property
    def reserve(self) -> int:
        return self._reserve or default_reserve(self.space.total)

    def look(self, space: Space) -> Room:
        """What `space` means."""
        self.space = space
        reserve = self.reserve
        enough = reserve + reserve // 4 if self.room is not Room.AMPLE else reserve
        self.room = Room.NONE if space.free < reserve // 4 else Room.LOW if space.free < enough else Room.AMPLE
        return self.room


class Handover:
    """To whom a leader without room gives leadership, and how often it tries. Pure."""

    def __init__(self, peer_has_room: Callable[[int], bool | None]) -> None:
        self._peer_has_room = peer_has_room
        self._last: float | None = None

    def target(self, voters: Mapping[int, int], now: float) -> int:
        """A node id, 0: nobody now. `voters`: the others that are in reach, and the last index that each has.

        Of those that are known to have room, or else of those of which nothing is known, it is the furthest.
        """
        known = {node: self._peer_has_room(node) for node in voters}
        having = [node for node, room in known.items() if room]
        pause = KNOWN_SECONDS if having else UNKNOWN_SECONDS
        candidates = having or [node for node, room in known.items() if room is None]
        if not candidates or (self._last is not None and now - self._last < pause):
            return 0
        self._last = now
        return max(candidates, key=lambda node: (voters[node], -node))


class DiskWatcher:
    """Looks at the disk every second, on the loop; a slow file system holds nobody up.

    `look`: OSError when it cannot tell; called by `in_thread`. `voters`: the other voters in reach, with the last
    index that each is known to have; empty on a node that does not lead. `hand_over(node)`: raises what it likes
    when leadership stays here.
    """

    def __init__(
        self,
        look: Callable[[], Space],
        reserve: int,
        voters: Callable[[], Mapping[int, int]],
        hand_over: Callable[[int], Awaitable[object]],
        peer_has_room: Callable[[int], bool | None] = lambda node: None,
        in_thread: Callable[[Callable[[], Space]], Awaitable[Space]] = asyncio.to_thread,
    ) -> None:
        self.gauge = Gauge(reserve)
        self._look = look
        self._voters = voters
        self._hand_over = hand_over
        self._in_thread = in_thread
        self._handover = Handover(peer_has_room)
        self._task: asyncio.Task[None] | None = None
        self._blind = False

    @property
    def room(self) -> Room:
        return self.gauge.room

    def problem(self) -> str:
        """For a person; empty when there is none."""
        if self.gauge.room is Room.AMPLE:
            return ""
        free, reserve = self.gauge.space.free, self.gauge.reserve
        return f"the disk is nearly full: {free} bytes are free, {reserve} are kept in reserve; writes are refused"

    async def start(self) -> None:
        """Returns when the disk was looked at once."""
        await self.look()
        self._task = asyncio.create_task(self._run(), name="raftstorage-disk-space")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Looks now; a leader without room tries to hand over."""
        try:
            space = await self._in_thread(self._look)
        except OSError as error:
            if not self._blind:
                log.warning("cannot tell how much room the disk has: %s", error)
            self._blind = True
            return
        self._blind = False
        before = self.gauge.room
        room = self.gauge.look(space)
        if room is not before:
            numbers = {"free": space.free, "reserve": self.gauge.reserve}
            log.log(logging.INFO if room is Room.AMPLE else logging.WARNING, "disk: %s", room.value, extra=numbers)
        if room is not Room.AMPLE and (voters := self._voters()):
            target = self._handover.target(voters, asyncio.get_running_loop().time())
            if target:
                await self._give(target)

    async def _give(self, target: int) -> None:
        log.warning("hands leadership to node %d: this node's disk is nearly full", target)
        try:
            await self._hand_over(target)
        except Exception as error:
            log.warning("node %d did not take over: %s", target, str(error) or type(error).__name__)
