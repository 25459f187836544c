"""Getting a snapshot from a peer."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raftstorage.node.snapshots.api import (
    SnapshotError,
    SnapshotObserver,
    SnapshotRefused,
    SnapshotSource,
    SnapshotTooLarge,
    SnapshotUnavailable,
    SourceFailed,
    Unobserved,
    check_manifest,
    total_bytes,
)
from raftstorage.node.snapshots.files import SYSTEM, SnapshotFiles
from raftstorage.node.snapshots.incoming import BadChunk, Incoming
from raftstorage.node.snapshots.install import current, folder_name
from raftstorage.node.snapshots.pace import Pace
from raftstorage.node.snapshots.worker import ThreadWorker, Worker
from raftstorage.proto import raft_pb2 as pb

log = logging.getLogger(__name__)

MIB = 1 << 20

_Stream = AsyncGenerator[pb.SnapshotChunk, None]


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Bytes and seconds as named. A rate of 0 is no limit.

    `bytes_per_second`: how fast data is taken, and read back. `reserve_bytes` stay free on the disk.
    `mark_bytes`: how much is written between two syncs; a crash loses no more of each file.
    `manifest_seconds`: how long a source may make and read its copy before it says what is in it; `stall_seconds`:
    how long it may be silent afterwards. A source is given up after `attempts` in a row that brought nothing new.
    """

    bytes_per_second: int = 0
    reserve_bytes: int = 64 * MIB
    mark_bytes: int = 16 * MIB
    manifest_seconds: float = 600.0
    stall_seconds: float = 30.0
    attempts: int = 8
    backoff_seconds: tuple[float, float] = (0.1, 5.0)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A database at `path`, whole and durable: the state behind entry `index` of `term`."""

    path: Path
    index: int
    term: int
    membership: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a fetch: bytes that are there and bytes of the whole (0: not known yet), and what went wrong last."""

    done: int
    total: int
    index: int
    problem: str = ""


class SnapshotFetcher:
    """Fetches into `directory`, a node's: `incoming/`, then `db-<index>-<term>`. One fetch at a time."""

    def __init__(
        self,
        directory: Path,
        *,
        options: FetchOptions | None = None,
        files: SnapshotFiles = SYSTEM,
        worker: Worker | None = None,
        rng: random.Random | None = None,
        observer: SnapshotObserver | None = None,
    ) -> None:
        self._directory = directory
        self._options = options or FetchOptions()
        self._files = files
        self._worker = worker or ThreadWorker()
        self._rng = rng or random.Random()
        self._observer = observer or Unobserved()
        self._pace = Pace(self._options.bytes_per_second, 4 * MIB)
        self._busy = False
        self._problem = ""
        self._incoming: Incoming | None = None
        self._best = 0  # the most that was ever there of this snapshot, in bytes
        self._advanced = False  # beyond that, in the newest stream
        self._checked = False  # a source has this snapshot, and it is wanted

    @property
    def progress(self) -> Progress | None:
        """None: nothing is being fetched."""
        incoming = self._incoming
        if incoming is None:
            return None
        manifest = incoming.manifest
        if manifest is None:
            return Progress(0, 0, 0, self._problem)
        return Progress(incoming.done_bytes, total_bytes(manifest), manifest.index, self._problem)

    async def close(self) -> None:
        """Ends the threads. A fetch must have ended."""
        await self._worker.close()

    async def fetch(
        self, source: SnapshotSource, check: Callable[[pb.SnapshotManifest], None] = lambda manifest: None
    ) -> Fetched:
        """The source's snapshot, in its own folder. Goes on where an earlier fetch ended, whatever ended it.

        `check` may raise SnapshotRefused for a manifest that makes sense but is not wanted. May be cancelled.

        SnapshotRefused: nothing was changed. SnapshotTooLarge: the disk has no room. SnapshotUnavailable: the
        source does not give it. InstallError: see `install.current`. OSError: this node's disk. What is in
        `incoming/` then is of use to the next fetch.
        """
        if self._busy:
            raise RuntimeError("a snapshot is being fetched already")
        self._busy = True
        self._checked = False
        incoming = self._make_incoming()
        try:
            self._incoming = incoming
            begin = asyncio.get_running_loop().time()
            await incoming.load()
            await self._fetch(source, check, incoming)
            fetched = await self._finish(incoming)
            self._observer.snapshot_done("fetched", asyncio.get_running_loop().time() - begin)
            return fetched
        except OSError as error:
            self._observer.snapshot_failed("fetch")
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SnapshotTooLarge(f"the disk has no room for the snapshot: {error}") from error
            raise
        except SnapshotError:
            self._observer.snapshot_failed("fetch")
            raise
        finally:
            try:
                with suppress(OSError):  # what is not marked is fetched again
                    await incoming.close()
            finally:
                self._busy = False
                self._incoming = None
                self._problem = ""
                self._observer.snapshot_progress(0, 0)

    async def discard(self) -> None:
        """Removes what an earlier fetch has left in `incoming/`. OSError."""
        if self._busy:
            raise RuntimeError("a snapshot is being fetched")
        await self._make_incoming().discard()

    def _make_incoming(self) -> Incoming:
        folder = self._directory / "incoming"
        return Incoming(folder, self._files, self._worker, self._pace, self._options.mark_bytes)

    # ---- one fetch -----------------------------------------------------------------------------------

    async def _fetch(
        self, source: SnapshotSource, check: Callable[[pb.SnapshotManifest], None], incoming: Incoming
    ) -> None:
        """Returns when all is there."""
        failures = 0
        changed = False
        self._best = incoming.done_bytes
        while not incoming.complete or not self._checked:
            self._advanced = False
            try:
                async with aclosing(source.open(incoming.request())) as stream:
                    if not await self._receive(stream, check, incoming):
                        if not changed:
                            changed = True
                            continue
                        raise SourceFailed("the source has another snapshot each time")
                    self._problem = "the stream ended too early"
            except (SourceFailed, BadChunk) as error:
                self._problem = str(error)
                if isinstance(error, SourceFailed) and error.final:
                    raise SnapshotUnavailable(self._problem) from error
            if incoming.complete and self._checked:
                break
            changed = False
            failures = 1 if self._advanced else failures + 1
            log.warning("the snapshot's transfer broke off (%d): %s", failures, self._problem)
            if failures >= self._options.attempts:
                raise SnapshotUnavailable(f"given up after {failures} attempts: {self._problem}")
            low, high = self._options.backoff_seconds
            await asyncio.sleep(self._rng.uniform(low, min(high, 2 * low * 2**failures)))

    async def _receive(
        self, stream: _Stream, check: Callable[[pb.SnapshotManifest], None], incoming: Incoming
    ) -> bool:
        """Takes what comes, to the end. False: it is another snapshot than was asked for: ask anew."""
        chunk = await _next(stream, self._options.manifest_seconds)
        if chunk is None or chunk.WhichOneof("kind") != "manifest":
            raise BadChunk("the stream does not begin with a manifest")
        manifest = chunk.manifest
        check_manifest(manifest)
        check(manifest)
        await self._check_here(manifest, incoming)
        held = incoming.manifest
        if held is None or held.snapshot_id != manifest.snapshot_id:
            await incoming.begin(manifest)
            self._best = incoming.done_bytes
            if held is not None:
                return False
        elif held != manifest:
            raise BadChunk("the manifest is not the one that the snapshot had before")
        self._checked = True
        self._tell(incoming, manifest)
        while not incoming.complete:
            chunk = await _next(stream, self._options.stall_seconds)
            if chunk is None:
                return True
            if chunk.WhichOneof("kind") != "data":
                raise BadChunk("the stream has something other than data behind its manifest")
            await self._pace.wait(len(chunk.data.data))
            await incoming.write(chunk.data)
            self._observer.snapshot_received(len(chunk.data.data))
            self._tell(incoming, manifest)
        with suppress(SourceFailed):  # its end, so that the source sees that all was taken
            await _next(stream, self._options.stall_seconds)
        return True

    async def _check_here(self, manifest: pb.SnapshotManifest, incoming: Incoming) -> None:
        """SnapshotRefused: this node has it, or cannot."""
        installed = await self._worker.run(partial(current, self._directory, self._files))
        if folder_name(manifest.index, manifest.term) == installed.name:
            raise SnapshotRefused(f"the database is the snapshot as of entry {manifest.index} already")
        room = await incoming.room() - self._options.reserve_bytes
        total = total_bytes(manifest)
        if total > room:
            raise SnapshotTooLarge(
                f"the snapshot has {total} bytes; {max(0, room)} are free for it below {self._directory}"
            )

    def _tell(self, incoming: Incoming, manifest: pb.SnapshotManifest) -> None:
        done = incoming.done_bytes
        if done > self._best:
            self._best = done
            self._advanced = True
        self._observer.snapshot_progress(done, total_bytes(manifest))

    async def _finish(self, incoming: Incoming) -> Fetched:
        if (manifest := incoming.manifest) is None:
            raise RuntimeError("nothing was fetched")
        target = self._directory / folder_name(manifest.index, manifest.term)
        try:
            await incoming.finish(target)
        except OSError:
            # Names whose sync has failed may look as if they were there.
            with suppress(OSError):
                await incoming.discard()
            raise
        return Fetched(target, manifest.index, manifest.term, manifest.membership)


async def _next(stream: _Stream, seconds: float) -> pb.SnapshotChunk | None:
    """None at the end. SourceFailed."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(stream, None)
    except TimeoutError as error:
        raise SourceFailed(f"the source said nothing for {seconds:g} s") from error
