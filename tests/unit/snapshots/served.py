"""A node's database folder of a few tables, and the store that makes snapshots of it."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
from raftstorage.node.snapshots import ServeOptions, SnapshotStore, stream
from raftstorage.node.snapshots.api import Unobserved
from raftstorage.node.snapshots.files import SystemSnapshotFiles
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.sources import run

MIB = 1 << 20


@dataclass
class State:
    index: int
    term: int = 2
    membership: bytes = b"members"


class Counting(SystemSnapshotFiles):
    """Counts what is read, by file name, and can fail."""

    def __init__(self) -> None:
        self.names_of: dict[int, str] = {}
        self.bytes_read: dict[str, int] = {}
        self.open_now = 0
        self.error = 0

    def open_to_read(self, path: Path) -> int:
        descriptor = super().open_to_read(path)
        self.names_of[descriptor] = path.name
        self.open_now += 1
        return descriptor

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        data = super().read(descriptor, length, offset)
        name = self.names_of[descriptor]
        self.bytes_read[name] = self.bytes_read.get(name, 0) + len(data)
        return data

    def close(self, descriptor: int) -> None:
        self.open_now -= 1
        super().close(descriptor)


class Events(Unobserved):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.sent = 0

    def snapshot_sent(self, count: int) -> None:
        self.sent += count

    def snapshot_done(self, what: str, seconds: float) -> None:
        self.events.append(what)

    def snapshot_failed(self, what: str) -> None:
        self.events.append(f"{what} failed")


class Served:
    """A database folder, and the store that makes snapshots of it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.database = directory / "db"
        self.database.mkdir()
        self.put("000001.sst", random.Random(1).randbytes(3 * MIB // 2))
        self.put("CURRENT", b"MANIFEST-000001\n")
        self.index = 10
        self.floor = 0
        self.made = 0
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        self.files = Counting()
        self.events = Events()
        fields = {"bytes_per_second": 0, "read_bytes_per_second": 0}
        self.store = SnapshotStore(
            directory / "snapshots",
            self.checkpoint,
            floor=lambda: self.floor,
            applied=lambda: self.index,
            options=ServeOptions(**fields | options),
            files=self.files,
            observer=self.events,
        )

    def put(self, name: str, content: bytes) -> None:
        (self.database / name).write_bytes(content)

    async def checkpoint(self, path: Path) -> State:
        self.made += 1
        index = self.index
        path.mkdir()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        for file in self.database.iterdir():
            if file.suffix == ".sst":
                os.link(file, path / file.name)
            else:
                (path / file.name).write_bytes(file.read_bytes())
        return State(index)

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "snapshots").iterdir())

    async def take(
        self, receiver: str = "2", request: pb.SnapshotRequest | None = None, until: int | None = None
    ) -> tuple[pb.SnapshotManifest, dict[str, bytes]]:
        """The manifest and the files' bytes, checked chunk by chunk; `until`: leaves after so many chunks."""
        contents: dict[str, bytes] = {}
        manifest = pb.SnapshotManifest()
        chunks = stream(self.store, receiver, request or pb.SnapshotRequest())
        count = 0
        async for chunk in chunks:
            if count == 0:
                manifest = chunk.manifest
                contents = {file.name: b"" for file in manifest.files}
                assert manifest.snapshot_id
            else:
                data = chunk.data
                assert 0 < len(data.data) <= self.store.options.chunk_bytes
                assert google_crc32c.value(data.data) == data.crc32c
                contents[data.file] += data.data
            count += 1
            if until is not None and count > until:
                break
        await chunks.aclose()
        return manifest, contents


def served(tmp_path: Path, work: Callable[[Served], Any], **options: Any) -> Served:
    async def all_of_it() -> Served:
        node = Served(tmp_path, **options)
        await node.store.start()
        await work(node)
        await node.store.stop()
        assert node.files.open_now == 0
        return node

    return run(all_of_it())
