"""Whoever shares the loop with a snapshot's transfer must not feel it."""

from __future__ import annotations

import threading
import time
from asyncio import events
from pathlib import Path

import pytest

from tests.unit.snapshots.rpc import UNLIMITED, Watched, receiving, serving, write_files
from tests.unit.snapshots.sources import run


class Holds:
    """How long single callbacks held the loop: by the clock, and in processor time of the loop's thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = self.processor = 0.0
        original = events.Handle._run

        def measured(handle: events.Handle) -> None:
            clock, processor = time.perf_counter(), time.thread_time()
            original(handle)
            self.processor = max(self.processor, time.thread_time() - processor)
            self.clock = max(self.clock, time.perf_counter() - clock)

        monkeypatch.setattr(events.Handle, "_run", measured)


def test_neither_side_holds_up_the_loop(disk_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MB through one loop that serves and receives. The bound is in processor time, which other work on the
    machine does not change, and a multiple of what one chunk costs; a wait for the disk is seen by its thread.
    """
    size = 300 * 1_000_000

    async def work() -> None:
        database = write_files(disk_directory / "db", 5, size // 5)
        loop_thread = threading.get_ident()
        mine = Watched()
        chunks = size / UNLIMITED.chunk_bytes
        async with (
            serving(disk_directory, database) as server,
            receiving(disk_directory / "n2", files=mine) as fetching,
        ):
            holds = Holds(monkeypatch)
            begin, processor = time.perf_counter(), time.thread_time()
            fetched = await fetching.fetch(server.source)
            seconds, used = time.perf_counter() - begin, time.thread_time() - processor
            print(
                f"{size / seconds / 1e6:.0f} MB/s; the longest hold of the loop {holds.clock * 1000:.1f} ms, "
                f"{holds.processor * 1000:.2f} ms of processor time; a chunk costs {used / chunks * 1000:.2f} ms"
            )
            assert loop_thread not in mine.threads | server.files.threads
        assert sum(path.stat().st_size for path in fetched.path.iterdir()) == size
        assert holds.processor < 20 * used / chunks + 0.005

    run(work())
