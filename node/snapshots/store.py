"""The snapshots that this node serves: one is made at a time, each is kept as long as somebody needs it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from raftstorage.node.snapshots.api import FORMAT, Checkpointed, SnapshotError, SnapshotObserver, Unobserved
from raftstorage.node.snapshots.checksums import FileChecksums
from raftstorage.node.snapshots.files import SYSTEM, SnapshotFiles, remove_tree
from raftstorage.node.snapshots.pace import Pace
from raftstorage.node.snapshots.worker import ThreadWorker, Worker
from raftstorage.proto import raft_pb2 as pb

log = logging.getLogger(__name__)

MIB = 1 << 20
#: Streams that one receiver may have: its newest, and one whose end this node has not heard of yet.
STREAMS_OF_ONE = 2


class TooManyReceivers(SnapshotError):
    """As many as are allowed are being served; ask again later."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Bytes, seconds, numbers of entries as named. A rate of 0 is no limit.

    `bytes_per_second`: what all receivers together are sent. `read_bytes_per_second`: how fast files are read for
    their checksums. A snapshot is given to a new receiver while it is no older than `max_age_seconds` and no more
    than `max_lag` entries behind. For `linger_seconds` after a stream has ended, its receiver may go on where it
    broke, and the log behind the snapshot counts as needed: so long may it take to install what it has.
    """

    chunk_bytes: int = MIB // 2
    bytes_per_second: int = 64 * MIB
    read_bytes_per_second: int = 256 * MIB
    max_receivers: int = 2
    max_age_seconds: float = 300.0
    max_lag: int = 100_000
    linger_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not MIB // 4 <= self.chunk_bytes <= MIB:
            raise ValueError(f"chunk_bytes {self.chunk_bytes} is not between {MIB // 4} and {MIB}")
        if self.max_receivers < 1:
            raise ValueError("a store with room for no receiver serves nobody")


class Snapshot:
    """One that can be read. `readers` and `needed_until` (loop time) say how long it is kept."""

    def __init__(self, directory: Path, manifest: pb.SnapshotManifest, now: float) -> None:
        self.directory = directory
        self.manifest = manifest
        self.made = now
        self.readers = 0
        self.needed_until = now

    @property
    def index(self) -> int:
        return self.manifest.index


class SnapshotStore:
    """Makes, keeps and removes the folders below `directory`. On the loop; the disk is used in `worker`.

    `checkpoint(path)` makes the folder `path`, a consistent and durable copy of the database. `floor()`: the index
    that a snapshot must hold to be of use, the base of this node's log. `applied()`: the newest that one can hold.
    """

    def __init__(
        self,
        directory: Path,
        checkpoint: Callable[[Path], Awaitable[Checkpointed]],
        *,
        floor: Callable[[], int] = lambda: 0,
        applied: Callable[[], int] = lambda: 0,
        options: ServeOptions | None = None,
        files: SnapshotFiles = SYSTEM,
        worker: Worker | None = None,
        observer: SnapshotObserver | None = None,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self.options = options or ServeOptions()
        self.files = files
        self.worker = worker or ThreadWorker()
        self.observer = observer or Unobserved()
        self.pace = Pace(self.options.bytes_per_second, 4 * self.options.chunk_bytes)
        self._directory = directory
        self._checkpoint = checkpoint
        self._floor = floor
        self._applied = applied
        self._new_id = new_id
        read_pace = Pace(self.options.read_bytes_per_second, 4 * MIB)
        self._checksums = FileChecksums(files, self.worker, read_pace)
        self._snapshots: dict[str, Snapshot] = {}
        self._newest: Snapshot | None = None
        self._making: asyncio.Task[Snapshot] | None = None
        self._receivers: dict[str, int] = {}  # streams of each
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._tidying: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Makes the folder, and removes what an earlier life of the node has left in it. OSError."""
        await self.worker.run(self._begin)

    def _begin(self) -> None:
        self.files.make_directory(self._directory)
        for name in self.files.names(self._directory):
            path = self._directory / name
            if self.files.is_directory(path):
                remove_tree(self.files, path)
            else:
                self.files.remove(path)

    async def stop(self) -> None:
        """Returns when the streams, which must be ending, have ended, and so has all else. The folders stay."""
        self._stopping = True
        await self._idle.wait()
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tidying, *([self._making] if self._making else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.worker.close()

    @property
    def needed_index(self) -> int | None:
        """The lowest index of a snapshot whose receiver still needs the log behind it; None: nobody does."""
        now = _now()
        return min(
            (each.index for each in self._snapshots.values() if each.readers or now < each.needed_until),
            default=None,
        )

    @asynccontextmanager
    async def open(self, receiver: str, snapshot_id: str = "") -> AsyncIterator[Snapshot]:
        """A snapshot for `receiver` (a name for who it is), kept until the end: the one it had begun if that is
        still here and of use, or the newest, or one made now.

        TooManyReceivers; SnapshotError when none can be made.
        """
        if self._stopping:
            raise SnapshotError("this node stops")
        streams = self._receivers.get(receiver, 0)
        if streams >= STREAMS_OF_ONE or (not streams and len(self._receivers) >= self.options.max_receivers):
            raise TooManyReceivers(f"{len(self._receivers)} nodes are being sent a snapshot already")
        self._receivers[receiver] = streams + 1
        self._idle.clear()
        try:
            snapshot = self._snapshots.get(snapshot_id)
            if snapshot is None or snapshot.index < self._floor():
                snapshot = await self._fresh()
            snapshot.readers += 1
            try:
                yield snapshot
            finally:
                snapshot.readers -= 1
                snapshot.needed_until = _now() + self.options.linger_seconds
                self._tidy_soon()
        finally:
            self._receivers[receiver] -= 1
            if not self._receivers[receiver]:
                del self._receivers[receiver]
            if not self._receivers:
                self._idle.set()

    # ---- making --------------------------------------------------------------------------------------

    async def _fresh(self) -> Snapshot:
        """The newest while it will do; else a new one, which all that wait for one share."""
        if self._newest is not None and self._will_do(self._newest):
            return self._newest
        if self._making is None:
            # A task of its own: a receiver that gives up waiting finds the snapshot when it asks again.
            self._making = asyncio.create_task(self._make(), name="raftstorage-snapshot")
            self._making.add_done_callback(self._made)
        try:
            return await asyncio.shield(self._making)
        except SnapshotError:
            raise
        except Exception as error:
            raise SnapshotError(f"no snapshot can be made: {error}") from error

    def _will_do(self, snapshot: Snapshot) -> bool:
        return (
            snapshot.index >= self._floor()
            and self._applied() - snapshot.index <= self.options.max_lag
            and _now() - snapshot.made <= self.options.max_age_seconds
        )

    async def _make(self) -> Snapshot:
        begin = _now()
        snapshot_id = self._new_id()
        directory = self._directory / snapshot_id
        try:
            state = await self._checkpoint(directory)
            names = await self.worker.run(partial(self.files.names, directory))
            sums = await self._checksums.of([directory / name for name in names])
        except BaseException:
            await self._remove(directory)
            raise
        listed = [pb.SnapshotFile(name=n, size=s, crc32c=crc) for n, (s, crc) in zip(names, sums, strict=True)]
        manifest = pb.SnapshotManifest(
            snapshot_id=snapshot_id,
            index=state.index,
            term=state.term,
            membership=state.membership,
            files=listed,
            format=FORMAT,
        )
        self._newest = self._snapshots[snapshot_id] = snapshot = Snapshot(directory, manifest, _now())
        self._tidy_soon()
        self.observer.snapshot_done("made", _now() - begin)
        log.info("made a snapshot as of entry %d in %.1f s", state.index, _now() - begin)
        return snapshot

    def _made(self, task: asyncio.Task[Snapshot]) -> None:
        self._making = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.observer.snapshot_failed("make")
            log.error("no snapshot can be made: %s", error, exc_info=error)

    # ---- removing ------------------------------------------------------------------------------------

    def _tidy_soon(self) -> None:
        task = asyncio.create_task(self._tidy(), name="raftstorage-snapshots-tidy")
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def _tidy(self) -> None:
        """Removes what nobody needs, and comes back when the next one may be due."""
        now = _now()
        due = []
        unneeded = []
        for snapshot_id, snapshot in list(self._snapshots.items()):
            until = snapshot.needed_until
            if snapshot is self._newest:
                until = max(until, snapshot.made + self.options.max_age_seconds)
            if snapshot.readers:
                continue
            if now < until:
                due.append(until)
                continue
            unneeded.append(snapshot)
            del self._snapshots[snapshot_id]
            if snapshot is self._newest:
                self._newest = None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(min(due), self._tidy_soon) if due else None
        for snapshot in unneeded:
            await self._remove(snapshot.directory)

    async def _remove(self, directory: Path) -> None:
        try:
            await self.worker.run(partial(remove_tree, self.files, directory))
        except OSError as error:
            log.warning("%s cannot be removed now; the next start will: %s", directory, error)


def _now() -> float:
    return asyncio.get_running_loop().time()
