"""What a leader does beside consensus, when it takes over and once a second: keeps the membership up to date,
measures followers' lag."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

from raftstorage.node.driver import Driver
from raftstorage.node.engine.api import Applied
from raftstorage.node.lag import Lag, LagMeter
from raftstorage.node.members import Members
from raftstorage.node.raft.types import Entry, Role, RoleChange

TEND_SECONDS = 1.0
NO_LAG = Lag(0, 0, 0, 0.0)


class LagObserver(Protocol):
    """`service.metrics.NodeMetrics` is one."""

    def lags(self, lags: dict[int, Lag]) -> None:
        """Of all followers by node id; empty on a node that does not lead."""


class Leadership:
    """Listens to the driver from the start. `run` until it is cancelled."""

    def __init__(self, driver: Driver, members: Members, observer: LagObserver) -> None:
        self._driver = driver
        self._members = members
        self._observer = observer
        self._meter = LagMeter()
        self._transactions = 0
        self._bytes = 0
        self._took_over = asyncio.Event()
        driver.on_ready.append(self._took_over.set)
        driver.on_applied.append(self._applied)
        driver.on_role.append(self._role)

    def lag(self, match: int) -> Lag:
        """Of a follower that has everything up to `match`."""
        if self._driver.role is not Role.LEADER:
            return NO_LAG
        self._sample()
        return self._meter.lag(match, asyncio.get_running_loop().time())

    def _applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        self._bytes += sum(len(entry.data) for entry, _ in entries)
        self._transactions += sum(outcome.tid is not None and not outcome.repeated for _, outcome in entries)

    def _role(self, change: RoleChange) -> None:
        self._meter.clear()
        if change.role is not Role.LEADER:
            self._observer.lags({})

    def _sample(self) -> None:
        """What is applied, not what was appended: what no majority has is nothing to be behind of."""
        now = asyncio.get_running_loop().time()
        self._meter.sample(now, self._driver.applied_index, self._transactions, self._bytes)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TEND_SECONDS):  # wait_for loses a cancellation beside the event
                    await self._took_over.wait()
            self._took_over.clear()
            if self._driver.role is Role.LEADER:
                self._observer.lags(
                    {peer.node_id: self.lag(peer.match_index) for peer in self._driver.status().peers}
                )
                await self._members.tend()
