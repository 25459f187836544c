"""Where the disk is waited for: never on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from raftstorage.node.snapshots.files import SnapshotFiles

T = TypeVar("T")


class Worker(Protocol):
    """Runs short pieces of work that block. The simulator's runs them at once."""

    async def run(self, work: Callable[[], T]) -> T:
        """What `work()` returns or raises. A cancellation is raised only once `work` has ended: until then it may
        use a file that whoever is cancelled is about to close."""

    async def close(self) -> None: ...


class ThreadWorker:
    """A few threads of its own, so that a slow disk does not take those that others wait for."""

    def __init__(self, threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="raftstorage-snapshots")

    async def run(self, work: Callable[[], T]) -> T:
        """See Worker."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                try:
                    await asyncio.wait({future})
                except asyncio.CancelledError:
                    continue
            if not future.cancelled():
                future.exception()  # seen: whoever asked is gone
            raise

    async def close(self) -> None:
        """Returns when all work has ended."""
        await asyncio.to_thread(self._threads.shutdown)


class InlineWorker:
    """Runs everything where it is called, for a loop with nobody else on it."""

    async def run(self, work: Callable[[], T]) -> T:
        """See Worker."""
        return work()

    async def close(self) -> None:
        """Nothing to end."""


@asynccontextmanager
async def opened(worker: Worker, files: SnapshotFiles, opening: Callable[[], int]) -> AsyncIterator[int]:
    """The descriptor that `opening` returns, closed at the end whatever is cancelled meanwhile. OSError."""
    descriptors: list[int] = []
    try:
        await worker.run(lambda: descriptors.append(opening()))
        yield descriptors[0]
    finally:
        if descriptors:
            await worker.run(lambda: files.close(descriptors[0]))
