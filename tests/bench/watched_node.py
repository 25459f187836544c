"""`raftstorage.node` that writes into WATCHED_FILE what held its loop for more than 20 ms, as lines of JSON.

Each says where the time went, in ms: `wall`, of that `cpu` of the loop's thread and `queued` for a processor; the
rest went on waiting for the disk, or for the interpreter, which another thread had.
"""

from __future__ import annotations

import json
import os
import runpy
import time
from asyncio import events
from pathlib import Path

LONG_SECONDS = 0.02
_KEEP = []  # the loop's own file of the kernel's account, opened in the loop's thread


def _queued() -> float:
    """Seconds that this thread has waited for a processor."""
    if not _KEEP:
        _KEEP.append(os.open("/proc/thread-self/schedstat", os.O_RDONLY))
    return int(os.pread(_KEEP[0], 100, 0).split()[1]) / 1e9


def _name(handle: events.Handle) -> str:
    callback = handle._callback  # type: ignore[attr-defined]
    task = getattr(callback, "__self__", None)
    if hasattr(task, "get_coro"):
        coroutine = task.get_coro()
        while getattr(coroutine, "cr_await", None) is not None and hasattr(coroutine.cr_await, "cr_code"):
            coroutine = coroutine.cr_await
        return f"task {getattr(coroutine, '__qualname__', coroutine)}"
    return str(
        getattr(callback, "__qualname__", getattr(getattr(callback, "func", None), "__qualname__", callback))
    )


def watch(path: Path) -> None:
    """From here on, for all loops of this process."""
    original = events.Handle._run  # type: ignore[attr-defined]
    out = path.open("a", buffering=1)

    def run(handle: events.Handle) -> None:
        name = _name(handle)
        wall, cpu, queued = time.perf_counter(), time.thread_time(), _queued()
        original(handle)
        wall = time.perf_counter() - wall
        if wall > LONG_SECONDS:
            cpu, queued = time.thread_time() - cpu, _queued() - queued
            told = {"wall": wall, "cpu": cpu, "queued": queued}
            line = {
                "at": time.time(),
                "what": name,
                **{key: round(1000 * value, 1) for key, value in told.items()},
            }
            out.write(json.dumps(line) + "\n")

    events.Handle._run = run  # type: ignore[attr-defined]


if __name__ == "__main__":
    watch(Path(os.environ["WATCHED_FILE"]))
    runpy.run_module("raftstorage.node", run_name="__main__", alter_sys=True)
