"""Keeps a cache of blobs near its size: what was used least recently goes first."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ZODB.blob import BLOB_SUFFIX

from .locks import FileLock

log = logging.getLogger(__name__)


class Bound:
    """`size` in bytes; `check` percent of it may come in before the directory is looked through again, in a thread
    of its own. `lock` takes the lock of that name, or returns None."""

    def __init__(self, directory: Path, size: int, check: int, lock: Callable[[str], FileLock | None]) -> None:
        if size < 0 or not 0 <= check < 100:
            raise ValueError(f"a blob cache cannot have {size} bytes, checked at {check} percent")
        self._directory = directory
        self._step = size * check // 100
        self._target = size - self._step
        self._lock = lock
        self._mutex = threading.Lock()
        self._added = 0
        self._thread: threading.Thread | None = None
        self._closed = False
        self._look()

    def added(self, size: int) -> None:
        """A file of `size` bytes came in."""
        with self._mutex:
            self._added += size
            due = self._added >= self._step
        if due:
            self._look()

    def close(self) -> None:
        """Waits until a look that is under way is through."""
        with self._mutex:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def _look(self) -> None:
        with self._mutex:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="raftstorage-blob-cache", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._mutex:
                self._added, added = 0, self._added
            lock = self._lock("bound")
            if lock is not None:
                try:
                    shrink(self._directory, self._target, self._lock)
                except OSError:
                    log.exception("the blob cache %s cannot be made smaller", self._directory)
                finally:
                    lock.release()
            with self._mutex:
                if lock is None:
                    self._added += added  # somebody else looks, perhaps not at all of it: with the next file again
                if lock is None or self._added < max(1, self._step) or self._closed:
                    self._thread = None
                    return


def shrink(directory: Path, target: int, lock: Callable[[str], FileLock | None]) -> int:
    """Removes files until those that are left have `target` bytes or less; how many bytes they have.

    A file whose lock somebody has is being opened, and stays. One that is open lives on until it is closed.
    """
    files = sorted(_files(directory))
    total = sum(size for _, size, _ in files)
    for _, size, name in files:
        if total <= target:
            break
        held = lock(name)
        if held is None:
            continue
        try:
            (directory / name).unlink(missing_ok=True)
        finally:
            held.release()
        total -= size
    return total


def _files(directory: Path) -> Iterator[tuple[int, int, str]]:
    """When it was used last, its bytes, and its name in `directory`, of each file of the cache."""
    with os.scandir(directory) as folders:
        names = [folder.name for folder in folders if folder.name.isdigit()]
    for name in names:
        with os.scandir(directory / name) as entries:
            for entry in entries:
                if not entry.name.endswith(BLOB_SUFFIX):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield max(status.st_atime_ns, status.st_mtime_ns), status.st_size, f"{name}{os.sep}{entry.name}"
