"""Packs: orders of clients, and the work at them beside all else that the loop does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from raftstorage.node.driver import Driver
from raftstorage.node.engine.api import Applied
from raftstorage.node.failures import failed
from raftstorage.node.oids import Reply
from raftstorage.node.packing import Packer
from raftstorage.node.raft.types import Entry, Role, RoleChange
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb

#: So long it works at a time, in seconds; then others have the loop for so many times as long.
SLICE_SECONDS = 0.002
REST = 4
#: When it may not write, or the log takes nothing, it is asked again after so many seconds.
AGAIN_SECONDS = 0.05


class Packs:
    """Used from the loop; listens to the driver, behind those who listened before.

    `wall_clock`: seconds since 1970. `work_clock`: what slices of work are measured with, in seconds. `guard`:
    around what reaches the engine.
    """

    def __init__(
        self,
        driver: Driver,
        level: Callable[[], int],
        wall_clock: Callable[[], float],
        guard: Callable[[], AbstractContextManager[None]],
        work_clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.packer = Packer(driver.engine, driver.propose, lambda: driver.term, lambda: driver.last_index)
        self._driver = driver
        self._level = level
        self._wall_clock = wall_clock
        self._guard = guard
        self._work_clock = work_clock
        self._handle: asyncio.TimerHandle | None = None
        self._closed = False
        self._led_term = 0
        driver.on_proposed.append(self.packer.proposed)
        driver.on_applied.append(self._applied)
        driver.on_role.append(self._role)
        driver.on_ready.append(self._ready)
        driver.on_installed.append(self._wake)

    def ask(self, asked: pb.Pack, reply: Reply) -> None:
        """A Pack, on a leader that is ready."""
        if self._level() < HISTORY_LEVEL:
            reply(failed(pb.UNSUPPORTED, "not all members of the cluster know packs yet"))
        else:
            self.packer.pack(asked, self._wall_clock(), reply)

    def _applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        self.packer.applied(entries)
        self._wake()

    def _ready(self) -> None:
        self.packer.became_ready()
        self._wake()

    def _role(self, change: RoleChange) -> None:
        leads = change.role is Role.LEADER
        if not leads or change.term != self._led_term:
            self.packer.lost_leadership()
        self._led_term = change.term if leads else 0
        self._wake()

    def _wake(self) -> None:
        """There may be work: it is gone on with in later turns of the loop."""
        if self._handle is None and not self._closed and self.packer.work:
            self._handle = asyncio.get_running_loop().call_later(0, self._slice)

    def _slice(self) -> None:
        self._handle = None
        if not self._driver.may_write:
            self._handle = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._slice)
            return
        begin = self._work_clock()
        spent, more = 0.0, True
        with self._guard():
            while more and spent < SLICE_SECONDS:
                more = self.packer.step()
                spent = self._work_clock() - begin
        if more:
            self._handle = asyncio.get_running_loop().call_later(REST * spent, self._slice)
        elif self.packer.refused:
            self._handle = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._slice)

    def close(self) -> None:
        self._closed = True
        if self._handle is not None:
            self._handle.cancel()
