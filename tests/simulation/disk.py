"""A disk that tears writes, loses what was not synced, fails, fills up, and flips bits."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
LOG = Path("/log")
#: Of a log's segments; each node draws one. Small ones can be cut sooner.
SEGMENT_BYTES = (2 << 10, 6 << 10)
#: Bytes that are free on a disk with room, more than a run ever needs.
PLENTY = 600 << 10


@dataclass
class _File:
    """`content` is what the system shows; `durable` what a power cut leaves, but for some of `pending`."""

    content: bytearray
    durable: bytearray
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, data in self.pending:
            self.durable[offset : offset + len(data)] = data
        self.pending.clear()


class SimFiles:
    """`node.wal.files.Files` of one node. `point(name)` is called at each place where a crash may strike."""

    def __init__(self, rng: random.Random, point: Callable[[str], None]) -> None:
        self._rng = rng
        self._point = point
        self._files: dict[Path, _File] = {}
        self._durable_names: dict[Path, _File] = {}
        self._renames: list[dict[Path, _File]] = []  # states of the names since they were synced last
        self._removed: dict[Path, _File] = {}  # since then; a power cut may bring each of them back
        self._open: dict[int, _File] = {}
        self._next = 3
        self.full = False
        self.left = PLENTY  # by all others, in bytes
        self.fail_writes = 0  # so many of the next writes fail
        self.fail_syncs = 0
        self._written: tuple[_File, int] | None = None  # where the newest records begin; zeros are none
        self._synced: tuple[_File, int] | None = None

    @property
    def free(self) -> int:
        return 0 if self.full else self.left

    # ---- Files -----------------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> None: ...

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self._files if path.parent == directory)

    def remove(self, path: Path) -> None:
        self._point("before remove")
        self._removed[path] = self._files.pop(path)
        self._renamed()
        self._point("after remove")

    def rename(self, path: Path, to: Path) -> None:
        self._point("before rename")
        self._files[to] = self._files.pop(path)
        self._renamed()
        self._point("after rename")

    def sync_directory(self, directory: Path) -> None:
        self._point("before directory sync")
        self._durable_names = dict(self._files)
        self._renames.clear()
        self._removed.clear()
        self._point("after directory sync")

    def create(self, path: Path, size: int) -> int:
        self._point("before create")
        if size > self.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._files[path] = _File(bytearray(size), bytearray(size))
        self._renamed()
        return self.open(path)

    def open(self, path: Path) -> int:
        self._next += 1
        self._open[self._next] = self._files[path]
        return self._next

    def read_all(self, path: Path) -> bytes:
        return bytes(self._files[path].content)

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return bytes(self._open[descriptor].content[offset : offset + length])

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        self._point("before write")
        file = self._open[descriptor]
        if self.fail_writes:
            self.fail_writes -= 1
            done = self._rng.randrange(len(data) + 1)
            self._put(file, data[:done], offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._put(file, data, offset)
        self._point("after write")

    def sync(self, descriptor: int) -> None:
        self._point("before sync")
        file = self._open[descriptor]
        if self.fail_syncs:
            self.fail_syncs -= 1
            self._tear(file)
            file.pending.clear()  # the system takes it for written: the next sync will not try again
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        file.sync()
        self._synced = self._written
        self._point("after sync")

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]

    def salt(self, length: int) -> bytes:
        return self._rng.randbytes(length)

    # ---- faults ----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """The process is gone; the system and what it holds stay."""
        self._open.clear()

    def lose_power(self) -> None:
        """Some of what was not synced is there, some not, sector by sector; names up to some moment."""
        self._open.clear()
        states = [self._durable_names, *self._renames]
        self._files = dict(self._rng.choice(states))
        for path, file in self._removed.items():
            # A removal later than others may be on disk, and the others not.
            if self._durable_names.get(path) is file and self._rng.random() < 0.5:
                self._files.setdefault(path, file)
        self._durable_names = dict(self._files)
        self._renames.clear()
        self._removed.clear()
        for file in self._files.values():
            self._tear(file)
            file.pending.clear()
            file.content = bytearray(file.durable)

    def flip(self) -> str:
        """Flips one bit in front of the last synced write; says where, empty when there is nothing.

        In the last write nobody can tell it from a torn one (see `node.wal`): no node can answer for that.
        """
        used = []
        for path, file in sorted(self._files.items()):
            length = len(file.durable.rstrip(b"\0"))
            if self._synced is not None and self._synced[0] is file:
                length = min(length, self._synced[1])
            if length:
                used.append((path, length))
        if not used:
            return ""
        path, length = self._rng.choice(used)
        file = self._files[path]
        offset, bit = self._rng.randrange(length), 1 << self._rng.randrange(8)
        file.durable[offset] ^= bit
        file.content[offset] ^= bit
        return f"{path.name}:{offset}"

    def after_power_cut(self) -> SimFiles:
        """A copy that holds only what is certain to be durable."""
        copy = SimFiles(random.Random(0), lambda name: None)
        copy._files = {
            path: _File(bytearray(file.durable), bytearray(file.durable))
            for path, file in self._durable_names.items()
        }
        copy._durable_names = dict(copy._files)
        return copy

    def _put(self, file: _File, data: bytes, offset: int) -> None:
        if any(data):
            self._written = (file, offset)
        file.content[offset : offset + len(data)] = data
        file.pending.append((offset, data))

    def _tear(self, file: _File) -> None:
        for offset, data in file.pending:
            whole = self._rng.random()
            position = 0
            while position < len(data):
                step = min(SECTOR - (offset + position) % SECTOR, len(data) - position)
                if self._rng.random() < whole:
                    file.durable[offset + position : offset + position + step] = data[position : position + step]
                position += step

    def _renamed(self) -> None:
        self._renames.append(dict(self._files))
