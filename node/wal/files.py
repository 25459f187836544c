"""What the log needs of its system. The simulator's disk is another one of these."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """Files by descriptor, names by path. Every method may raise OSError.

    Nothing is durable before `sync` of its descriptor, no name before `sync_directory` of its folder.
    """

    def make_directory(self, path: Path) -> None:
        """Makes `path` with all above it, unless it is there."""

    def names(self, directory: Path) -> list[str]:
        """Names of the files in `directory`, sorted."""

    def remove(self, path: Path) -> None: ...
    def rename(self, path: Path, to: Path) -> None: ...
    def sync_directory(self, directory: Path) -> None:
        """Makes created, renamed and removed names in `directory` durable."""

    def create(self, path: Path, size: int) -> int:
        """An empty file of `size` zero bytes that are allocated; its descriptor."""

    def open(self, path: Path) -> int: ...
    def read_all(self, path: Path) -> bytes: ...
    def read(self, descriptor: int, length: int, offset: int) -> bytes: ...
    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        """All of it, or OSError."""

    def sync(self, descriptor: int) -> None:
        """Makes contents and length durable."""

    def close(self, descriptor: int) -> None: ...
    def salt(self, length: int) -> bytes:
        """Random bytes that no earlier file began with."""


class SystemFiles:
    """The operating system's."""

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names, not paths

    def remove(self, path: Path) -> None:
        path.unlink()

    def rename(self, path: Path, to: Path) -> None:
        path.rename(to)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def create(self, path: Path, size: int) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read_all(self, path: Path) -> bytes:
        return path.read_bytes()

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return os.pread(descriptor, length, offset)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view = view[written:]
            offset += written

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def salt(self, length: int) -> bytes:
        return secrets.token_bytes(length)


SYSTEM = SystemFiles()
