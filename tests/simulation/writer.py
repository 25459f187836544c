"""The log's writer without a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raftstorage.node.log_writer import DurableLog, Fatal
from raftstorage.node.raft.types import (
    Persist,
    SnapshotBase,
)

from tests.simulation.world import Exit

if TYPE_CHECKING:
    from tests.simulation.node import SimNode


class SimWriter:
    """`log_writer.LogWriter` without a thread: a batch becomes durable some time after the disk got to it."""

    def __init__(
        self,
        node: SimNode,
        wal: DurableLog,
        loop: asyncio.AbstractEventLoop,
        done: Any,
        fatal: Fatal,
        install: Callable[[SnapshotBase], None],
    ) -> None:
        self._node = node
        self._wal = wal
        self._loop = loop
        self._done = done
        self._fatal = fatal
        self._install = install
        self._queue: list[Persist | tuple[Callable[[], object], asyncio.Future[None]]] = []
        self._busy = False
        self._idle = asyncio.Event()

    def start(self) -> None: ...

    def put(self, persist: Persist) -> None:
        self._enqueue(persist)

    def run(self, job: Callable[[], object]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        self._enqueue((job, done))
        return done

    def _enqueue(self, item: Any) -> None:
        self._queue.append(item)
        if not self._busy:
            self._busy = True
            self._loop.call_later(self._node.disk_delay(), self._turn)

    def _turn(self) -> None:
        batch: list[Persist] = []
        while self._queue and isinstance(first := self._queue[0], Persist) and first.snapshot is None:
            batch.append(first)
            del self._queue[0]
        try:
            if batch:
                self._write(batch)
            else:
                self._alone(self._queue.pop(0))
        except Exit:
            raise
        except BaseException as error:
            self._fatal(error)
        if self._queue:
            self._loop.call_later(self._node.disk_delay(), self._turn)
        else:
            self._busy = False
            self._idle.set()

    def _alone(self, item: Any) -> None:
        if isinstance(item, Persist):
            assert item.snapshot is not None
            self._wal.write_many([(item.hard_state, ())])
            self._install(item.snapshot)
            self._write([item])
        else:
            job, done = item
            job()
            if not done.done():
                done.set_result(None)

    def _write(self, batch: list[Persist]) -> None:
        votes = any(persist.hard_state is not None for persist in batch)
        entries = any(persist.entries for persist in batch)
        if votes:
            self._node.point("before vote save")
        if entries:
            self._node.point("before entries save")
        self._wal.write_many([(persist.hard_state, persist.entries) for persist in batch])
        if votes:
            self._node.point("after vote save")
        if entries:
            self._node.point("after entries save")
        self._node.wrote(batch)
        self._loop.call_soon(self._tell, batch)

    def _tell(self, batch: list[Persist]) -> None:
        self._node.point("before acknowledgement")
        self._done(batch)
        self._node.point("after acknowledgement")

    async def stop(self) -> None:
        while self._busy:
            self._idle.clear()
            await self._idle.wait()
