"""What snapshots need of their system, beside what the log needs. Tests put a disk that fails in its place."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raftstorage.node.wal.files import Files, SystemFiles


@dataclass(frozen=True, slots=True)
class FileInfo:
    """`size` in bytes; `version`: equal as long as it is the same file and nobody has written to it."""

    size: int
    version: Hashable


class SnapshotFiles(Files, Protocol):
    """Files and folders. Every method may raise OSError; FileNotFoundError for what is not there."""

    def is_directory(self, path: Path) -> bool:
        """A link to a folder is none."""

    def info(self, path: Path) -> FileInfo:
        """Of a file; OSError when it is none."""

    def free_bytes(self, directory: Path) -> int:
        """How much more may be written below `directory`."""

    def begin(self, path: Path) -> int:
        """The descriptor of an empty file, which `path` names from now on."""

    def open_to_read(self, path: Path) -> int: ...
    def truncate(self, descriptor: int, size: int) -> None: ...
    def forget_pages(self, descriptor: int) -> None:
        """What is read next comes from the disk, as far as the system can be told so. After `sync` only."""

    def remove_directory(self, path: Path) -> None:
        """Removes an empty folder."""


class SystemSnapshotFiles(SystemFiles):
    """The operating system's."""

    def is_directory(self, path: Path) -> bool:
        return path.is_dir() and not path.is_symlink()

    def info(self, path: Path) -> FileInfo:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a file")
        return FileInfo(found.st_size, (found.st_dev, found.st_ino, found.st_mtime_ns))

    def free_bytes(self, directory: Path) -> int:
        return shutil.disk_usage(directory).free

    def begin(self, path: Path) -> int:
        path.unlink(missing_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open_to_read(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def forget_pages(self, descriptor: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def remove_directory(self, path: Path) -> None:
        path.rmdir()


SYSTEM: SnapshotFiles = SystemSnapshotFiles()


def remove_tree(files: SnapshotFiles, path: Path) -> None:
    """Removes a folder with all in it, if it is there. OSError."""
    try:
        names = files.names(path)
    except FileNotFoundError:
        return
    for name in names:
        if files.is_directory(path / name):
            remove_tree(files, path / name)
        else:
            files.remove(path / name)
    files.remove_directory(path)


def write_durably(files: SnapshotFiles, path: Path, content: bytes) -> None:
    """Puts `content` in the place of `path`, which names either the old or the new at any moment. OSError.

    Durable when it returns. A crash may leave `path` with the suffix `.tmp` behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    descriptor = files.begin(temporary)
    try:
        files.write(descriptor, content, 0)
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    files.rename(temporary, path)
    files.sync_directory(path.parent)
