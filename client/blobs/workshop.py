"""Where one storage's files are while they come in: a directory of its own, beside the finished ones."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import time
from pathlib import Path

from .locks import FileLock

LOCK_SUFFIX = ".lock"
#: ZODB itself leaves files behind in `tmp` when a process dies. Whose they were cannot be seen.
ABANDONED_SECONDS = 7 * 86_400.0


class Workshop:
    """`home`: shared by all storages that use a blob directory. What dead ones left in it is removed."""

    def __init__(self, home: Path) -> None:
        home.mkdir(exist_ok=True)
        self._numbers = itertools.count(1)
        self._home = home
        while True:
            name = secrets.token_hex(8)
            lock = FileLock.take(home / (name + LOCK_SUFFIX))
            if lock is not None:
                break
        self._lock = lock
        self._mine = home / name
        self._mine.mkdir()
        _sweep(home)

    def new_path(self) -> Path:
        """Of a file that does not exist."""
        return self._mine / str(next(self._numbers))

    def lock(self, name: str) -> FileLock | None:
        """A lock that all storages of the directory know; None: somebody has it."""
        return FileLock.take(self._home / (name.replace(os.sep, "-") + LOCK_SUFFIX))

    def close(self) -> None:
        _remove(self._mine)
        self._lock.release()


def _sweep(home: Path) -> None:
    """Removes what nobody holds the lock of."""
    for entry in sorted(home.iterdir()):
        name = entry.name.removesuffix(LOCK_SUFFIX)
        lock = FileLock.take(home / (name + LOCK_SUFFIX))
        if lock is None:
            continue
        if (home / name).is_dir():
            _remove(home / name)
        lock.release()


def remove_abandoned(directory: Path, now: float | None = None) -> None:
    """Removes what has not been touched in a directory of uncommitted files for a week."""
    limit = (time.time() if now is None else now) - ABANDONED_SECONDS
    for entry in directory.iterdir():
        try:
            if entry.lstat().st_mtime >= limit:
                continue
            if entry.is_dir() and not entry.is_symlink():
                _remove(entry)
            else:
                entry.unlink()
        except FileNotFoundError:
            continue  # somebody else was faster


def _remove(directory: Path) -> None:
    def failed(function: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(error[1], FileNotFoundError):  # a thread may be removing its own file
            raise error[1]

    shutil.rmtree(directory, onerror=failed)
