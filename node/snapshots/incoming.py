"""The folder that a snapshot is fetched into: what is there counts only after it was read back and fits.

manifest    what is being fetched: CRC32C (4 bytes, big-endian) and the serialized SnapshotManifest
positions   a line for each mark: checksum and size of the file, how many bytes of it were written, the checksum
            of those bytes, the name. Nothing here is believed: a mark is where it is worth looking.
files/      the files, each written from its beginning on
"""

from __future__ import annotations

import logging
import struct
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import google_crc32c
from google.protobuf.message import DecodeError
from raftstorage.node.snapshots.api import LARGEST_CHUNK, SnapshotError, SnapshotRefused, check_manifest
from raftstorage.node.snapshots.checksums import TURN_BYTES, extend
from raftstorage.node.snapshots.files import SnapshotFiles, remove_tree, write_durably
from raftstorage.node.snapshots.install import remove_database
from raftstorage.node.snapshots.pace import Pace
from raftstorage.node.snapshots.worker import Worker, opened
from raftstorage.proto import raft_pb2 as pb

log = logging.getLogger(__name__)

_CRC = struct.Struct(">I")
_Key = tuple[str, int, int]  # name, size, checksum: what makes two files the same


class BadChunk(SnapshotError):
    """What came is not what the manifest announced."""


@dataclass(slots=True)
class _Part:
    """A file of the manifest. `position`: how much of it is there, with the checksum `crc`."""

    file: pb.SnapshotFile
    position: int = 0
    crc: int = 0
    marked: int = 0
    complete: bool = False


class Incoming:
    """`load` first; `begin` when another snapshot is to be fetched; `write` for each chunk; `finish` at the end.

    `mark_bytes`: how much is written before it is synced and marked. A crash loses no more of a file than that,
    and the log's own syncs never wait for more of ours.

    OSError from `write` and `finish`: the disk failed; the file that was written to is gone.
    """

    def __init__(self, directory: Path, files: SnapshotFiles, worker: Worker, pace: Pace, mark_bytes: int) -> None:
        self._directory = directory
        self._folder = directory / "files"
        self._files = files
        self._worker = worker
        self._pace = pace
        self._mark_bytes = mark_bytes
        self._parts: dict[str, _Part] = {}
        self._open: tuple[_Part, int] | None = None
        self.manifest: pb.SnapshotManifest | None = None

    @property
    def done_bytes(self) -> int:
        return sum(part.position for part in self._parts.values())

    @property
    def complete(self) -> bool:
        return self.manifest is not None and all(part.complete for part in self._parts.values())

    def request(self) -> pb.SnapshotRequest:
        """For the rest of what is being fetched, or for whatever there is."""
        if self.manifest is None:
            return pb.SnapshotRequest()
        have = [
            pb.SnapshotPosition(file=name, bytes=part.position)
            for name, part in self._parts.items()
            if part.position
        ]
        return pb.SnapshotRequest(snapshot_id=self.manifest.snapshot_id, have=have)

    async def room(self) -> int:
        """How many bytes a snapshot may have: what is free, and what the files here take. OSError."""
        return await self._worker.run(self._room)

    async def load(self) -> None:
        """Looks at what an earlier fetch has left, and reads it back. OSError."""
        self.manifest = await self._worker.run(self._read_manifest)
        self._parts = {}
        if self.manifest is None:
            return
        await self._worker.run(self._repair)
        marks = await self._worker.run(self._read_marks)
        for file in self.manifest.files:
            part = self._parts[file.name] = _Part(file)
            await self._verify(part, marks.get(_key(file), {}))

    async def begin(self, manifest: pb.SnapshotManifest) -> None:
        """From here on `manifest`, which was checked, is what is fetched. Files that it shares with what was being
        fetched stay; all others go. OSError.
        """
        same = {_key(part.file): part for part in self._parts.values() if part.position or part.complete}
        parts = {file.name: same.get(_key(file)) or _Part(file) for file in manifest.files}
        keep = {name for name, part in parts.items() if part.position}
        await self.close()
        await self._worker.run(partial(self._begin, manifest, keep, list(parts.values())))
        self.manifest, self._parts = manifest, parts
        for part in parts.values():
            if part.file.size == 0:
                part.complete = True

    async def write(self, data: pb.SnapshotData) -> None:
        """BadChunk: it is not the next piece of a file. OSError."""
        part = self._parts.get(data.file)
        if part is None:
            raise BadChunk(f"data of {data.file[:64]!r}, which the snapshot does not have")
        end = data.offset + len(data.data)
        if data.offset != part.position or end > part.file.size or not 0 < len(data.data) <= LARGEST_CHUNK:
            raise BadChunk(f"bytes {data.offset} to {end} of {data.file} in place of those behind {part.position}")
        await self._worker.run(partial(self._write, part, data))
        if part.position == part.file.size:
            await self._complete(part)

    async def close(self) -> None:
        """Closes the file that is being written; all that was written is marked."""
        await self._worker.run(self._close)

    async def finish(self, target: Path) -> None:
        """All of it, which is complete, becomes the folder `target`, durable, name and all. OSError."""
        if not self.complete or self.manifest is None:
            raise SnapshotError("a snapshot that is not complete cannot be finished")
        await self._worker.run(partial(self._finish, target))
        self.manifest, self._parts = None, {}

    async def discard(self) -> None:
        """Removes all of it. OSError."""
        await self.close()
        await self._worker.run(partial(remove_tree, self._files, self._directory))
        self.manifest, self._parts = None, {}

    # ---- reading back --------------------------------------------------------------------------------

    async def _verify(self, part: _Part, marks: dict[int, int]) -> None:
        """Sets how much of the file is there, as far as a mark proves it; what is behind that is cut off."""
        if part.file.size == 0:
            marks = {0: 0}
        path = self._folder / part.file.name
        try:
            async with opened(self._worker, self._files, partial(self._files.open, path)) as descriptor:
                # A sync that failed in an earlier life leaves bytes that only the page cache has.
                await self._worker.run(partial(self._files.sync, descriptor))
                await self._worker.run(partial(self._files.forget_pages, descriptor))
                offset = crc = 0
                for mark in sorted(marks):
                    offset, crc = await self._read_on(descriptor, offset, mark, crc)
                    if offset < mark:
                        break
                    if crc == marks[mark]:
                        part.position, part.crc = mark, crc
                part.marked = part.position
                if part.position == part.file.size and part.crc != part.file.crc32c:
                    part.position = part.crc = part.marked = 0
                part.complete = part.position == part.file.size
                await self._worker.run(partial(self._files.truncate, descriptor, part.position))
        except FileNotFoundError:
            if part.file.size == 0:
                await self._worker.run(partial(self._make_empty, path))
                part.complete = True

    async def _read_on(self, descriptor: int, offset: int, end: int, crc: int) -> tuple[int, int]:
        """`checksums.extend`, piece by piece, at the pace."""
        while offset < end:
            until = min(end, offset + TURN_BYTES)
            await self._pace.wait(until - offset)
            offset, crc = await self._worker.run(partial(extend, self._files, descriptor, offset, until, crc))
            if offset < until:
                break
        return offset, crc

    async def _complete(self, part: _Part) -> None:
        """The file has its size: it counts once it is durable and was read back."""
        await self.close()
        path = self._folder / part.file.name
        async with opened(self._worker, self._files, partial(self._files.open_to_read, path)) as descriptor:
            offset, crc = await self._read_on(descriptor, 0, part.file.size, 0)
        if offset == part.file.size and crc == part.file.crc32c:
            part.complete = True
            return
        await self._worker.run(partial(self._drop, part))
        raise BadChunk(f"{part.file.name} does not match its checksum")

    # ---- in the worker -------------------------------------------------------------------------------

    def _read_manifest(self) -> pb.SnapshotManifest | None:
        try:
            data = self._files.read_all(self._directory / "manifest")
        except FileNotFoundError:
            return None
        body = data[_CRC.size :]
        try:
            if len(data) < _CRC.size or _CRC.unpack_from(data)[0] != google_crc32c.value(body):
                raise SnapshotRefused("it does not match its checksum")
            manifest = pb.SnapshotManifest.FromString(body)
            check_manifest(manifest)
        except (SnapshotRefused, DecodeError) as error:
            log.warning("%s: %s; what was fetched so far is not used", self._directory / "manifest", error)
            return None
        return manifest

    def _room(self) -> int:
        files = self._files
        try:
            used = sum(files.info(self._folder / name).size for name in files.names(self._folder))
        except FileNotFoundError:
            used = 0
        return used + files.free_bytes(self._directory.parent)

    def _read_marks(self) -> dict[_Key, dict[int, int]]:
        """Of each file: positions, and the checksum up to there."""
        marks: defaultdict[_Key, dict[int, int]] = defaultdict(dict)
        try:
            lines = self._files.read_all(self._directory / "positions").decode(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            fields = line.split(" ", 4)
            try:
                crc, prefix = int(fields[0], 16), int(fields[3], 16)
                size, position = int(fields[1]), int(fields[2])
                if 0 < position <= size:
                    marks[fields[4], size, crc][position] = prefix
            except (ValueError, IndexError):  # torn
                continue
        return marks

    def _repair(self) -> None:
        """A crash may have left a manifest alone."""
        self._files.make_directory(self._folder)
        if "positions" not in self._files.names(self._directory):
            write_durably(self._files, self._directory / "positions", b"")

    def _begin(self, manifest: pb.SnapshotManifest, keep: set[str], parts: list[_Part]) -> None:
        files = self._files
        files.make_directory(self._folder)
        for name in files.names(self._folder):
            if name not in keep:
                files.remove(self._folder / name)
        lines = "".join(_mark(part) for part in parts if part.position)
        write_durably(files, self._directory / "positions", lines.encode())
        for part in parts:
            if part.file.size == 0:
                self._make_empty(self._folder / part.file.name)
        files.sync_directory(self._folder)
        body = manifest.SerializeToString()
        write_durably(files, self._directory / "manifest", _CRC.pack(google_crc32c.value(body)) + body)
        files.sync_directory(self._directory.parent)

    def _make_empty(self, path: Path) -> None:
        descriptor = self._files.begin(path)
        try:
            self._files.sync(descriptor)
        finally:
            self._files.close(descriptor)

    def _write(self, part: _Part, data: pb.SnapshotData) -> None:
        content = data.data
        if google_crc32c.value(content) != data.crc32c:
            raise BadChunk(f"bytes {data.offset} and on of {data.file} do not match their checksum")
        if self._open is None or self._open[0] is not part:
            self._close()
            path = self._folder / part.file.name
            self._open = part, self._files.open(path) if part.position else self._files.begin(path)
        try:
            self._files.write(self._open[1], content, part.position)
            part.position += len(content)
            part.crc = google_crc32c.extend(part.crc, content)
            if part.position - part.marked >= self._mark_bytes or part.position == part.file.size:
                self._files.sync(self._open[1])
                self._add_mark(part)
        except OSError:
            self._drop(part)
            raise

    def _add_mark(self, part: _Part) -> None:
        path = self._directory / "positions"
        descriptor = self._files.open(path)
        try:
            self._files.write(descriptor, _mark(part).encode(), self._files.info(path).size)
        finally:
            self._files.close(descriptor)
        part.marked = part.position

    def _close(self) -> None:
        if self._open is None:
            return
        (part, descriptor), self._open = self._open, None
        try:
            if part.position > part.marked:
                self._add_mark(part)
        finally:
            self._files.close(descriptor)

    def _drop(self, part: _Part) -> None:
        """What the disk holds of the file is not known any more, or wrong."""
        if self._open is not None:
            descriptor, self._open = self._open[1], None
            self._files.close(descriptor)
        part.position = part.crc = part.marked = 0
        part.complete = False
        with suppress(FileNotFoundError):
            self._files.remove(self._folder / part.file.name)

    def _finish(self, target: Path) -> None:
        files = self._files
        found, expected = set(files.names(self._folder)), set(self._parts)
        if found != expected:
            raise OSError(f"{self._folder} has not the files that were written: {sorted(found ^ expected)}")
        files.sync_directory(self._folder)
        remove_database(target, files)
        files.rename(self._folder, target)
        files.sync_directory(target.parent)
        remove_tree(files, self._directory)
        files.sync_directory(target.parent)


def _key(file: pb.SnapshotFile) -> _Key:
    return file.name, file.size, file.crc32c


def _mark(part: _Part) -> str:
    """Begins on a line of its own, whatever a crash has left of the one before."""
    file = part.file
    return f"\n{file.crc32c:08x} {file.size} {part.position} {part.crc:08x} {file.name}\n"
