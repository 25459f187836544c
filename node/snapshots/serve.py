"""One snapshot's way out: the chunks of one stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import google_crc32c
from raftstorage.node.snapshots.api import SnapshotError
from raftstorage.node.snapshots.files import SnapshotFiles
from raftstorage.node.snapshots.store import Snapshot, SnapshotStore
from raftstorage.node.snapshots.worker import opened
from raftstorage.proto import raft_pb2 as pb

log = logging.getLogger(__name__)


class BadRequest(SnapshotError):
    """The request does not fit the snapshot that it names."""


class SnapshotDamaged(SnapshotError):
    """A file is not what it was when the snapshot was made: this node's disk, and so its database, is damaged."""


async def stream(
    store: SnapshotStore,
    receiver: str,
    request: pb.SnapshotRequest,
    damaged: Callable[[Path], None] = lambda path: None,
) -> AsyncGenerator[pb.SnapshotChunk, None]:
    """What `receiver` is sent for `request` (see raft.proto): the manifest, then the data, no faster than the
    store's pace. Nothing is read before it is asked for. Close it, or the snapshot stays in use.

    TooManyReceivers, BadRequest, SnapshotDamaged (and `damaged` is called), SnapshotError, OSError.
    """
    begin = asyncio.get_running_loop().time()
    try:
        async with store.open(receiver, request.snapshot_id) as snapshot:
            manifest = snapshot.manifest
            have = _positions(request, manifest)
            yield pb.SnapshotChunk(manifest=manifest)
            if request.snapshot_id not in ("", manifest.snapshot_id):
                return  # the receiver sees what it has of it, and asks for the rest
            for file in manifest.files:
                async with aclosing(_file(store, snapshot, file, have.get(file.name, 0))) as chunks:
                    async for chunk in chunks:
                        yield chunk
    except SnapshotDamaged as error:
        log.critical("%s", error)
        damaged(snapshot.directory)
        raise
    store.observer.snapshot_done("served", asyncio.get_running_loop().time() - begin)


def _positions(request: pb.SnapshotRequest, manifest: pb.SnapshotManifest) -> dict[str, int]:
    """File name -> where it is to go on. BadRequest. Names come from the manifest, never from the request."""
    if request.snapshot_id != manifest.snapshot_id:
        return {}
    have = {position.file: position.bytes for position in request.have}
    sizes = {file.name: file.size for file in manifest.files}
    for name, position in have.items():
        if name not in sizes:
            raise BadRequest(f"the snapshot has no file {name[:64]!r}")
        if position > sizes[name]:
            raise BadRequest(f"{name} has {sizes[name]} bytes, not {position}")
    return have


async def _file(
    store: SnapshotStore, snapshot: Snapshot, file: pb.SnapshotFile, offset: int
) -> AsyncGenerator[pb.SnapshotChunk, None]:
    if offset == file.size:
        return
    files, worker = store.files, store.worker
    path = snapshot.directory / file.name
    # A stream that has the whole file sees whether it still is what the manifest says.
    from_begin = offset == 0
    whole = 0
    async with opened(worker, files, partial(files.open_to_read, path)) as descriptor:
        while offset < file.size:
            length = min(store.options.chunk_bytes, file.size - offset)
            await store.pace.wait(length)
            data, crc, whole = await worker.run(partial(_read, files, descriptor, length, offset, whole))
            if len(data) < length:
                raise SnapshotDamaged(f"{path} ends at {offset + len(data)}; the database wrote {file.size} bytes")
            if offset + length == file.size and from_begin and whole != file.crc32c:
                raise SnapshotDamaged(f"{path} does not match its checksum any more")
            yield pb.SnapshotChunk(data=pb.SnapshotData(file=file.name, offset=offset, data=data, crc32c=crc))
            store.observer.snapshot_sent(length)
            offset += length


def _read(files: SnapshotFiles, descriptor: int, length: int, offset: int, whole: int) -> tuple[bytes, int, int]:
    """(data, its checksum, `whole` carried on over it)."""
    data = files.read(descriptor, length, offset)
    return data, google_crc32c.value(data), google_crc32c.extend(whole, data)
