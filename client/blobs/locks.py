"""Locks between processes that share a directory. The kernel frees them when a process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """Held until `release`. The file is there only while somebody has the lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """None: somebody has it, another thread of this process perhaps."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, descriptor):
                    return cls(path, descriptor)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # whoever had it has removed the file: there is a new one, or none

    def release(self) -> None:
        self._path.unlink(missing_ok=True)  # the whole directory may have been removed
        os.close(self._descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
