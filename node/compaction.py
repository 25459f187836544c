"""Bounds the log: what is old, or more than is to be kept, is cut once the database has it on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from raftstorage.node.driver import Driver

log = logging.getLogger(__name__)

#: How often it is looked whether there is something to cut, in seconds.
LOOK_SECONDS = 5.0


class CuttableLog(Protocol):
    """What is needed of a log; `node.wal.Wal` is one. See there for which thread calls what."""

    def first_index(self) -> int: ...
    def cut_point(self, *, max_bytes: int | None = None, max_seconds: float | None = None) -> int: ...
    def write_base(self, index: int) -> None: ...
    def forget(self, index: int) -> None: ...
    def clean(self) -> object: ...


class Compactor:
    """Cuts `wal` behind what the driver's engine has on disk, when there is more or older than is to be kept.

    What is kept lets a member that was away for a while catch up entry by entry: that takes time for what it
    missed. One that was away for longer is sent a snapshot, which takes time for the whole database.
    `needed()`: an index behind which somebody who is receiving a snapshot still needs the log; None: nobody.
    `every`: seconds from one look to the next.
    """

    def __init__(
        self,
        driver: Driver,
        wal: CuttableLog,
        *,
        keep_bytes: int,
        keep_seconds: float,
        needed: Callable[[], int | None] = lambda: None,
        every: float = LOOK_SECONDS,
    ) -> None:
        self._driver = driver
        self._wal = wal
        self._keep_bytes = keep_bytes
        self._keep_seconds = keep_seconds
        self._needed = needed
        self._every = every

    async def run(self) -> None:
        """Until it is cancelled. A failed write or flush ends the process."""
        while True:
            await asyncio.sleep(self._every)
            await self.cut()

    async def cut(self) -> int:
        """Cuts now, if there is something to cut; returns the log's first index."""
        driver, wal = self._driver, self._wal
        wanted = wal.cut_point(max_bytes=self._keep_bytes, max_seconds=self._keep_seconds)
        needed = self._needed()
        wanted = min(wanted, driver.applied_index, wanted if needed is None else needed)
        if wanted < wal.first_index():
            return wal.first_index()
        if driver.engine.durable_index < wanted:
            await driver.flush()
        index = min(wanted, driver.engine.durable_index)
        if index >= wal.first_index():
            await driver.in_writer(lambda: wal.write_base(index))
            if index >= wal.first_index():  # a snapshot may have moved it further meanwhile
                wal.forget(index)
            await driver.in_writer(wal.clean)
            log.info("cut the log", extra={"first_index": wal.first_index()})
        return wal.first_index()
