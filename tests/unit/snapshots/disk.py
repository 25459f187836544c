"""A disk with folders that forgets what was not synced: `node.snapshots.files.SnapshotFiles`, in memory.

Names are kept by folder. A power cut takes each folder back to any of the states it had since it was synced last,
and each file to a mixture of what was synced and what was written since, whatever became of the others.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raftstorage.node.snapshots.files import FileInfo

SECTOR = 64
#: How a life may end: the process, or the power with nothing, everything or something of what was not synced.
ENDS = ("kill", "nothing", "everything", "something", "something else")


class Crash(BaseException):
    """The process ends here."""


@dataclass(eq=False)
class _File:
    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    writes: int = 0


@dataclass(eq=False)
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    states: list[dict[str, _File | _Folder]] = field(default_factory=lambda: [{}])  # the first one is durable

    def changed(self) -> None:
        self.states.append(dict(self.names))


class ModelDisk:
    """`crash_at`: the step (counted in `steps`) that does not happen. `fails(step)`: an errno, or 0.

    A step is a name like "sync /node/incoming/files/a". `lies`: syncs that do nothing.
    """

    def __init__(self, rng: random.Random, lies: tuple[str, ...] = ()) -> None:
        self._rng = rng
        self._root = _Folder()
        self._open: dict[int, tuple[Path, _File]] = {}
        self._next = 3
        self.lies = lies
        self.dead = False
        self.crash_at: int | None = None
        self.steps: list[str] = []
        self.fails: Callable[[str], int] = lambda step: 0
        self.free = 1 << 40

    # ---- folders -------------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        at = self._root
        for name in path.parts[1:]:
            if name not in at.names:
                self._step(f"make {path}")
                at.names[name] = _Folder()
                at.changed()
            at = self._folder_in(at, name, path)

    def names(self, directory: Path) -> list[str]:
        self._alive()
        return sorted(self._folder(directory).names)

    def is_directory(self, path: Path) -> bool:
        self._alive()
        try:
            self._folder(path)
        except OSError:
            return False
        return True

    def remove(self, path: Path) -> None:
        self._file(path)
        self._step(f"remove {path}")
        self._unlink(path)

    def remove_directory(self, path: Path) -> None:
        if self._folder(path).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        self._step(f"remove {path}")
        self._unlink(path)

    def rename(self, path: Path, to: Path) -> None:
        found = self._entry(path)
        self._step(f"rename {path} {to}")
        source, target = self._folder(path.parent), self._folder(to.parent)
        there = target.names.get(to.name)
        if isinstance(there, _Folder) and there.names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(to))
        del source.names[path.name]
        target.names[to.name] = found
        source.changed()
        if target is not source:
            target.changed()

    def sync_directory(self, directory: Path) -> None:
        folder = self._folder(directory)
        if self._step(f"sync {directory}"):
            folder.states = [dict(folder.names)]

    def free_bytes(self, directory: Path) -> int:
        self._folder(directory)
        return self.free

    # ---- files ---------------------------------------------------------------------------------------

    def info(self, path: Path) -> FileInfo:
        file = self._file(path)
        return FileInfo(len(file.content), (id(file), file.writes))

    def begin(self, path: Path) -> int:
        self._step(f"begin {path}")
        folder = self._folder(path.parent)
        folder.names[path.name] = _File()
        folder.changed()
        return self.open(path)

    def create(self, path: Path, size: int) -> int:
        descriptor = self.begin(path)
        self._open[descriptor][1].content.extend(bytes(size))
        return descriptor

    def open(self, path: Path) -> int:
        file = self._file(path)
        self._next += 1
        self._open[self._next] = path, file
        return self._next

    def open_to_read(self, path: Path) -> int:
        return self.open(path)

    def read_all(self, path: Path) -> bytes:
        return bytes(self._file(path).content)

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        self._alive()
        return bytes(self._open[descriptor][1].content[offset : offset + length])

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        path, file = self._open[descriptor]
        try:
            self._step(f"write {path}")
        except (Crash, OSError):
            self._put(file, data[: self._rng.randrange(len(data) + 1)], offset)
            raise
        self._put(file, data, offset)

    def truncate(self, descriptor: int, size: int) -> None:
        path, file = self._open[descriptor]
        if len(file.content) != size:
            self._step(f"truncate {path}")
            del file.content[size:]
            file.writes += 1

    def sync(self, descriptor: int) -> None:
        path, file = self._open[descriptor]
        if self._step(f"sync {path}"):
            file.durable = bytearray(file.content)

    def forget_pages(self, descriptor: int) -> None:
        self._alive()

    def close(self, descriptor: int) -> None:
        self._alive()
        del self._open[descriptor]

    def salt(self, length: int) -> bytes:
        return self._rng.randbytes(length)

    # ---- what a test does ----------------------------------------------------------------------------

    def open_files(self) -> int:
        return len(self._open)

    def put(self, path: Path, content: bytes) -> None:
        """A file with its folder, all durable."""
        self.make_directory(path.parent)
        descriptor = self.begin(path)
        self.write(descriptor, content, 0)
        self.sync(descriptor)
        self.close(descriptor)
        self.sync_directory(path.parent)
        for folder in path.parents:
            self.sync_directory(folder)
        self.steps.clear()

    def flip(self, path: Path, offset: int) -> None:
        file = self._file(path)
        file.content[offset] ^= 1
        file.durable = bytearray(file.content)

    def folder_contents(self, path: Path) -> dict[str, bytes]:
        return {name: self.read_all(path / name) for name in self.names(path)}

    def end(self, how: str) -> None:
        """Ends the life; the next one begins with what is left."""
        self.dead = False
        self.crash_at = None
        self.steps.clear()
        self._open.clear()
        if how != "kill":
            self._lose(self._root, how)

    def _lose(self, folder: _Folder, how: str) -> None:
        states = {"nothing": folder.states[:1], "everything": folder.states[-1:]}.get(how, folder.states)
        folder.names = dict(self._rng.choice(states))
        folder.states = [dict(folder.names)]
        for entry in folder.names.values():
            if isinstance(entry, _Folder):
                self._lose(entry, how)
            else:
                entry.durable = bytearray(self._survives(entry, how))
                entry.content = bytearray(entry.durable)
                entry.writes += 1

    def _survives(self, file: _File, how: str) -> bytes:
        old, new = bytes(file.durable), bytes(file.content)
        if how == "nothing" or old == new:
            return old
        if how == "everything":
            return new
        low, high = sorted((len(old), len(new)))
        length = self._rng.randint(low, high)
        share = self._rng.random()
        pieces = []
        for at in range(0, length, SECTOR):
            source = new if self._rng.random() < share else old
            until = min(at + SECTOR, length)
            pieces.append(source[at:until].ljust(until - at, b"\0"))
        return b"".join(pieces)

    # ---- parts ---------------------------------------------------------------------------------------

    def _alive(self) -> None:
        if self.dead:
            raise Crash

    def _step(self, step: str) -> bool:
        """Whether the step is to be done. Crash, OSError."""
        self._alive()
        if len(self.steps) == self.crash_at:
            self.dead = True
            raise Crash
        self.steps.append(step)
        if error := self.fails(step):
            raise OSError(error, os.strerror(error))
        return step not in self.lies

    def _put(self, file: _File, data: bytes, offset: int) -> None:
        if len(file.content) < offset:
            file.content.extend(bytes(offset - len(file.content)))
        file.content[offset : offset + len(data)] = data
        file.writes += 1

    def _unlink(self, path: Path) -> None:
        folder = self._folder(path.parent)
        del folder.names[path.name]
        folder.changed()

    def _entry(self, path: Path) -> _File | _Folder:
        self._alive()
        at: _File | _Folder = self._root
        for name in path.parts[1:]:
            if not isinstance(at, _Folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            if name not in at.names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            at = at.names[name]
        return at

    def _folder_in(self, folder: _Folder, name: str, path: Path) -> _Folder:
        found = folder.names[name]
        if not isinstance(found, _Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return found

    def _folder(self, path: Path) -> _Folder:
        found = self._entry(path)
        if not isinstance(found, _Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return found

    def _file(self, path: Path) -> _File:
        found = self._entry(path)
        if not isinstance(found, _File):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return found
