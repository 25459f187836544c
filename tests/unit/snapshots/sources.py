"""Snapshots of a few bytes, and sources that hand them out, truly or not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
from raftstorage.node.snapshots import Fetched, FetchOptions, SnapshotFetcher, SourceFailed
from raftstorage.node.snapshots.api import FORMAT, Unobserved
from raftstorage.node.snapshots.worker import InlineWorker
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.disk import ModelDisk

T = TypeVar("T")

NODE = Path("/node")
CHUNK = 100
CONTENTS = {
    "000007.sst": random.Random(7).randbytes(950),
    "000008.sst": random.Random(8).randbytes(100),
    "CURRENT": b"MANIFEST-000005\n",
    "EMPTY": b"",
    "MANIFEST-000005": random.Random(5).randbytes(333),
}
TOTAL = sum(map(len, CONTENTS.values()))
OPTIONS = FetchOptions(attempts=3, backoff_seconds=(0.0, 0.0), mark_bytes=256, reserve_bytes=0)

#: What becomes of chunk number n of one stream (0: the manifest). May raise SourceFailed.
Mangle = Callable[[int, pb.SnapshotChunk], Iterable[pb.SnapshotChunk]]


def run(work: Coroutine[Any, Any, T]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(limited())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


def honest(number: int, chunk: pb.SnapshotChunk) -> Iterable[pb.SnapshotChunk]:
    return [chunk]


def manifest_of(
    contents: dict[str, bytes], index: int = 9, term: int = 2, snapshot_id: str = "a" * 32, **changes: Any
) -> pb.SnapshotManifest:
    fields: dict[str, Any] = {
        "snapshot_id": snapshot_id,
        "index": index,
        "term": term,
        "membership": b"members",
        "format": FORMAT,
        "files": [
            pb.SnapshotFile(name=name, size=len(content), crc32c=google_crc32c.value(content))
            for name, content in contents.items()
        ],
    }
    return pb.SnapshotManifest(**fields | changes)


def piece(name: str, offset: int, data: bytes) -> pb.SnapshotChunk:
    crc = google_crc32c.value(data)
    return pb.SnapshotChunk(data=pb.SnapshotData(file=name, offset=offset, data=data, crc32c=crc))


class Source:
    """Streams `contents` as a node does. `mangles`: of the first streams; `always`: of all behind them."""

    def __init__(
        self,
        contents: dict[str, bytes] = CONTENTS,
        manifest: pb.SnapshotManifest | None = None,
        mangles: Iterable[Mangle] = (),
        always: Mangle | None = None,
    ) -> None:
        self.contents = contents
        self.manifest = manifest or manifest_of(contents)
        self.requests: list[pb.SnapshotRequest] = []
        self.streams = 0
        self.sent = 0
        self._mangles = list(mangles)
        self._always = always or honest

    async def open(self, request: pb.SnapshotRequest) -> AsyncGenerator[pb.SnapshotChunk, None]:
        self.requests.append(request)
        mangle = self._mangles.pop(0) if self._mangles else self._always
        self.streams += 1
        try:
            for number, chunk in enumerate(self._chunks(request)):
                for each in mangle(number, chunk):
                    await asyncio.sleep(0)
                    self.sent += len(each.data.data)
                    yield each
        finally:
            self.streams -= 1

    def _chunks(self, request: pb.SnapshotRequest) -> Iterable[pb.SnapshotChunk]:
        yield pb.SnapshotChunk(manifest=self.manifest)
        if request.snapshot_id not in ("", self.manifest.snapshot_id):
            return
        have = {each.file: each.bytes for each in request.have}
        for name, content in self.contents.items():
            for offset in range(have.get(name, 0), len(content), CHUNK):
                yield piece(name, offset, content[offset : offset + CHUNK])


def breaks_at(number: int, *, final: bool = False) -> Mangle:
    """`final`: and with it the fetch, by SnapshotUnavailable."""

    def mangle(at: int, chunk: pb.SnapshotChunk) -> Iterable[pb.SnapshotChunk]:
        if at == number:
            raise SourceFailed("the connection is gone", final=final)
        return [chunk]

    return mangle


def fetcher(disk: ModelDisk, **changes: Any) -> SnapshotFetcher:
    fields: dict[str, Any] = {"options": OPTIONS, "files": disk, "worker": InlineWorker(), "rng": random.Random(0)}
    return SnapshotFetcher(NODE, **fields | changes)


def new_disk(rng: random.Random, lies: tuple[str, ...] = ()) -> ModelDisk:
    """With a node's directory, and in it the database `db` that the node begins with."""
    disk = ModelDisk(rng, lies)
    disk.put(NODE / "db" / "CURRENT", b"old")
    disk.put(NODE / "db" / "000001.sst", b"old table")
    return disk


OLD = {"CURRENT": b"old", "000001.sst": b"old table"}


def check_finished(disk: ModelDisk, *wholes: dict[str, bytes]) -> None:
    """Every folder that has a database's name is whole."""
    for name in disk.names(NODE):
        if name.startswith("db"):
            assert disk.folder_contents(NODE / name) in (OLD, *wholes), f"{name} is not whole"


def check_fetched(disk: ModelDisk, fetched: Fetched, contents: dict[str, bytes] = CONTENTS) -> None:
    assert disk.folder_contents(fetched.path) == contents
    assert "incoming" not in disk.names(NODE)
    assert disk.open_files() == 0


class Seen(Unobserved):
    def __init__(self) -> None:
        self.received = 0
        self.done: list[str] = []
        self.failed: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def snapshot_received(self, count: int) -> None:
        self.received += count

    def snapshot_done(self, what: str, seconds: float) -> None:
        self.done.append(what)

    def snapshot_failed(self, what: str) -> None:
        self.failed.append(what)

    def snapshot_progress(self, done: int, total: int) -> None:
        self.progress.append((done, total))
