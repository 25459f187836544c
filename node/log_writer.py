"""Durable writes in a thread of their own, so that a sync never holds up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, Protocol

from raftstorage.node.raft.types import Entry, HardState, LogReader, Persist

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
    async def stop(self) -> None:
        """Returns when everything queued is durable."""


#: Takes what LogWriter does.
WriterFactory = Callable[
    [
        DurableLog,
        asyncio.AbstractEventLoop,
        Callable[[list[Persist]], None],
        Fatal,
        Callable[[float, int], None] | None,
    ],
    Writer,
]


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
    write raised. `synced(seconds, writes)`: for metrics, in the thread.
    """

    def __init__(
        self,
        wal: DurableLog,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[list[Persist]], None],
        fatal: Fatal,
        synced: Callable[[float, int], None] | None = None,
    ) -> None:
        self._wal = wal
        self._loop = loop
        self._done = done
        self._fatal = fatal
        self._synced = synced
        self._queue: queue.SimpleQueue[Persist | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="raftstorage-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, persist: Persist) -> None:
        self._queue.put(persist)

    async def stop(self) -> None:
        """Returns when everything queued is durable and the thread is gone."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _take(self) -> tuple[list[Persist], bool]:
        """All that waits, up to GROUP_BYTES and at least one; True when the end was among it."""
        batch: list[Persist] = []
        size = 0
        try:
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                size += sum(len(entry.data) for entry in item.entries)
                if size >= GROUP_BYTES:
                    return batch, False
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _run(self) -> None:
        last = False
        while not last:
            batch, last = self._take()
            if not batch:
                continue
            try:
                begin = time.perf_counter()
                for writes in slices(batch):
                    self._wal.write_many(writes)
                if self._synced is not None:
                    self._synced(time.perf_counter() - begin, len(batch))
            except BaseException as error:  # whatever it is, what the disk holds is not known any more
                self._fatal(error)
            # A closed loop means that nobody is left to be told.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._done, batch)
