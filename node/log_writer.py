"""Durable writes in a thread of their own, so that a sync never holds up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from raftstorage.node.raft.types import Entry, HardState, LogReader, Persist, SnapshotBase
from raftstorage.node.waiting import resolve

#: One sync carries at most about this many bytes, so that a flood does not hold back the first answers.
GROUP_BYTES = 4 << 20

Fatal = Callable[[BaseException], NoReturn]


class DurableLog(LogReader, Protocol):
    """What the driver needs of a log; `node.wal.Wal` is one."""

    @property
    def hard_state(self) -> HardState: ...
    def write_many(self, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> None: ...
    def bytes_on_disk(self) -> int: ...


class Writer(Protocol):
    """Makes writes durable in their order, and says so on the loop."""

    def start(self) -> None: ...
    def put(self, persist: Persist) -> None: ...
    def run(self, job: Callable[[], object]) -> asyncio.Future[None]:
        """Calls `job` where writes are made, behind all that is queued; resolves when it is done."""

    async def stop(self) -> None:
        """Returns when everything queued is durable."""


#: Takes what LogWriter does.
WriterFactory = Callable[
    [
        DurableLog,
        asyncio.AbstractEventLoop,
        Callable[[list[Persist]], None],
        Fatal,
        Callable[[SnapshotBase], None],
        Callable[[float, int], None] | None,
    ],
    Writer,
]


@dataclass(frozen=True, slots=True)
class _Job:
    """Something else that the thread is to do, in its place in the queue."""

    do: Callable[[], object]
    done: asyncio.Future[None]


def slices(batch: Sequence[Persist]) -> Iterator[list[tuple[HardState | None, Sequence[Entry]]]]:
    """What `batch` writes, in several writes when it is large: the entries of a large transaction come as one.

    Putting all of them into one piece of memory would hold the interpreter, and with it the loop.
    """
    writes: list[tuple[HardState | None, Sequence[Entry]]] = []
    size = 0
    for persist in batch:
        state: HardState | None = persist.hard_state
        begin = 0
        for end, entry in enumerate(persist.entries, 1):
            size += len(entry.data)
            if size >= GROUP_BYTES:
                yield [*writes, (state, persist.entries[begin:end])]
                writes, size, state, begin = [], 0, None, end
        if state is not None or begin < len(persist.entries):
            writes.append((state, persist.entries[begin:]))
    if writes:
        yield writes


class LogWriter:
    """The thread that writes. All writes that queued up while it was busy share one sync (group commit).

    `done(persists)` is called on `loop` after each sync, in order. `fatal` is called in the thread with whatever a
    write raised. `install(base)` replaces the log by a snapshot's base, durably, in the thread. `synced(seconds,
    writes)`: for metrics, in the thread.
    """

    def __init__(
        self,
        wal: DurableLog,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[list[Persist]], None],
        fatal: Fatal,
        install: Callable[[SnapshotBase], None],
        synced: Callable[[float, int], None] | None = None,
    ) -> None:
        self._wal = wal
        self._loop = loop
        self._done = done
        self._fatal = fatal
        self._install = install
        self._synced = synced
        self._queue: queue.SimpleQueue[Persist | _Job | None] = queue.SimpleQueue()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="raftstorage-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, persist: Persist) -> None:
        self._queue.put(persist)

    def run(self, job: Callable[[], object]) -> asyncio.Future[None]:
        """See Writer. What it raises ends the process, as a write's failure does."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(_Job(job, done))
        return done

    async def stop(self) -> None:
        """Returns when everything queued is durable and the thread is gone."""
        self._queue.put(None)
        await self._ended.wait()  # not a join in an executor: that takes none when the interpreter is at its end
        self._thread.join()

    def _take(self) -> tuple[list[Persist], _Job | Persist | None, bool]:
        """All writes that wait, up to GROUP_BYTES, and what comes alone behind them; True: it was the end."""
        batch: list[Persist] = []
        size = 0
        item = self._queue.get()
        while item is not None:
            if isinstance(item, _Job) or item.snapshot is not None:
                return batch, item, False
            batch.append(item)
            size += sum(len(entry.data) for entry in item.entries)
            if size >= GROUP_BYTES:
                return batch, None, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, None, False
        return batch, None, True

    def _run(self) -> None:
        try:
            with contextlib.suppress(SystemExit):  # `fatal`, where it may not end more than this thread
                self._write_all()
        finally:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)

    def _write_all(self) -> None:
        last = False
        while not last:
            batch, alone, last = self._take()
            try:
                if batch:
                    self._write(batch)
                if isinstance(alone, Persist):
                    if alone.snapshot is not None:
                        # The vote first: no log may begin in a term that the node does not remember.
                        self._wal.write_many([(alone.hard_state, ())])
                        self._install(alone.snapshot)
                    self._write([alone])
                elif alone is not None:
                    alone.do()
                    self._tell(resolve, alone.done)
            except BaseException as error:  # whatever it is, what the disk holds is not known any more
                self._fatal(error)

    def _write(self, batch: list[Persist]) -> None:
        begin = time.perf_counter()
        for writes in slices(batch):
            self._wal.write_many(writes)
        if self._synced is not None:
            self._synced(time.perf_counter() - begin, len(batch))
        self._tell(self._done, batch)

    def _tell(self, function: Callable[[Any], object], argument: object) -> None:
        # A closed loop means that nobody is left to be told.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, argument)


def cannot_place(base: SnapshotBase) -> None:
    """For who takes no snapshots."""
    raise RuntimeError(f"a driver without `place` was given the snapshot at entry {base.index}")
