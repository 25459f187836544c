"""CRC32C of whole files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import google_crc32c
from raftstorage.node.snapshots.files import FileInfo, SnapshotFiles
from raftstorage.node.snapshots.pace import Pace
from raftstorage.node.snapshots.worker import Worker, opened

#: What the interpreter lock is held for at a time (some 100 µs), and what one turn in the thread reads.
SLICE_BYTES = 1 << 20
TURN_BYTES = 8 << 20


def extend(files: SnapshotFiles, descriptor: int, offset: int, end: int, crc: int) -> tuple[int, int]:
    """(where it ended: before `end` if the file does; `crc` carried on from `offset` to there). OSError."""
    while offset < end:
        data = files.read(descriptor, min(SLICE_BYTES, end - offset), offset)
        if not data:
            break
        crc = google_crc32c.extend(crc, data)
        offset += len(data)
    return offset, crc


class FileChecksums:
    """Sizes and checksums of files that are written once and then linked into one snapshot after another.

    What was computed is remembered for as long as the file is the same (`FileInfo.version`, which a hard link
    shares with what it links): a name and a size may be those of another file once the database was replaced.
    """

    def __init__(self, files: SnapshotFiles, worker: Worker, pace: Pace) -> None:
        self._files = files
        self._worker = worker
        self._pace = pace
        self._known: dict[tuple[str, FileInfo], int] = {}

    async def of(self, paths: Iterable[Path]) -> list[tuple[int, int]]:
        """(size, CRC32C) of each; forgets all others. OSError."""
        known: dict[tuple[str, FileInfo], int] = {}
        found = []
        for path in paths:
            info = await self._worker.run(partial(self._files.info, path))
            key = (path.name, info)
            if (crc := self._known.get(key)) is None:
                crc = await self._compute(path, info.size)
            known[key] = crc
            found.append((info.size, crc))
        self._known = known
        return found

    async def _compute(self, path: Path, size: int) -> int:
        async with opened(self._worker, self._files, partial(self._files.open_to_read, path)) as descriptor:
            offset = crc = 0
            while offset < size:
                until = min(size, offset + TURN_BYTES)
                await self._pace.wait(until - offset)
                offset, crc = await self._worker.run(partial(extend, self._files, descriptor, offset, until, crc))
                if offset < until:
                    raise OSError(f"{path} has {offset} bytes; it had {size} a moment ago")
            return crc
