"""A cluster of one inside an application's process: no port, and its clients' streams are in memory.

The same core, log, engine and sessions as a node that has a process to itself. What differs: it shares the loop of
the process's storages, it is opened and closed in threads so that this loop is never held up for long, and damage
or a write that failed ends the node and its storages, not the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import grpc
import grpc.aio
from raftstorage.node.compaction import Compactor
from raftstorage.node.driver import Driver
from raftstorage.node.durable import Durable, opened
from raftstorage.node.identity import DirectoryError, DirectoryLocked, NodeDirectory, NodeIdentity
from raftstorage.node.leadership import Leadership
from raftstorage.node.members import Members
from raftstorage.node.raft.membership import Member
from raftstorage.node.raft.types import Config, Message
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.sessions import SessionLimits, StorageService
from raftstorage.node.threads import in_thread
from raftstorage.node.versions import VERSIONS
from raftstorage.proto import storage_pb2 as pb

__all__ = ["CannotOpen", "Share", "share"]

log = logging.getLogger(__name__)

EOF = grpc.aio.EOF  # type: ignore[attr-defined]

MIB = 1 << 20
#: As a node's own process has them by default (`options.py`).
LIMITS = SessionLimits(max_record_bytes=16 * MIB, max_transaction_bytes=64 * MIB)
#: Nobody listens for this node's heartbeats: fewer ticks leave the application more of its time.
TICK_SECONDS = 0.1
#: How much of the log is applied before the loop has its turn again.
APPLY_BYTES = 64 << 10
#: Nobody was away: the log is kept for a second member that may come, and no longer.
KEEP_BYTES, KEEP_SECONDS = 64 * MIB, 3600.0

T = TypeVar("T")


class CannotOpen(Exception):
    """The directory cannot be used; the message names it. `locked`: another process has it."""

    def __init__(self, message: str, *, locked: bool = False) -> None:
        super().__init__(message)
        self.locked = locked


class _Ended(BaseException):
    """Raised where the node finds that it cannot go on; nothing of it may run after that."""


class _Nobody:
    """`driver.Transport` of a node without peers."""

    def send(self, message: Message) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class EmbeddedNode:
    """The node on one directory. Used from one loop; `failed(error)` is called there when it has ended itself."""

    def __init__(self, path: Path, failed: Callable[[BaseException], None]) -> None:
        self.path = path
        self.failure: BaseException | None = None
        self.metrics = NodeMetrics()
        self.directory: NodeDirectory | None = None
        self._failed = failed
        self._settled = asyncio.Event()  # ready, or over
        self._files = ExitStack()
        self._driver: Driver | None = None
        self._storage: StorageService | None = None
        self._work: list[asyncio.Task[None]] = []

    async def start(self, *, create: bool) -> None:
        """Returns when all that was ever committed here is applied and commits are taken. CannotOpen."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        try:
            identity, durable = await in_thread(lambda: self._open(create))
            self._driver = driver = Driver(
                Config(identity.node_id, frozenset(), max_apply_bytes=APPLY_BYTES),
                durable.wal,
                durable.engine,
                _Nobody(),
                membership=durable.membership,
                tick_seconds=TICK_SECONDS,
                fatal=self._fatal,
                observer=self.metrics,
                in_thread=in_thread,
            )
            self.metrics.watch(driver, identity)
            self._storage = StorageService(
                driver, identity, LIMITS, self.metrics, level=lambda: driver.membership.level
            )
            driver.on_ready.append(self._settled.set)
            members = Members(driver)
            members.introduced(Member(identity.node_id, instance=identity.instance, version=VERSIONS.level))
            compactor = Compactor(driver, durable.wal, keep_bytes=KEEP_BYTES, keep_seconds=KEEP_SECONDS)
            await driver.start()
            self._work = [
                self._loop.create_task(work)
                for work in (Leadership(driver, members, self.metrics).run(), compactor.run())
            ]
            await self._settled.wait()
            if self.failure is not None:
                raise self.failure
        except BaseException as error:
            with suppress(Exception):  # what went wrong first is what is told
                await self.stop()
            if not isinstance(error, Exception):
                raise
            text = str(error) if str(self.path) in str(error) else f"{self.path} cannot be used: {error}"
            raise CannotOpen(text, locked=isinstance(error, DirectoryLocked)) from error

    def _open(self, create: bool) -> tuple[NodeIdentity, Durable]:
        with ExitStack() as files:
            if not create and not self.path.exists():
                raise DirectoryError(f"there is no database in {self.path}")
            self.directory = directory = NodeDirectory.open(self.path)
            files.callback(self.close_directory)
            if directory.found is None and not create:
                raise DirectoryError(f"there is no database in {self.path}")
            new = directory.found is None
            founded = NodeIdentity(secrets.token_hex(16), 1, {1: ""}) if new else NodeIdentity("", 0, {})
            identity = directory.claim(founded)
            durable = files.enter_context(opened(directory, identity, flush=lambda: self.failure is None))
            if durable.membership.ids != {identity.node_id}:
                raise DirectoryError(
                    f"{self.path} is a node of a cluster with other members: run it with raftstorage serve"
                )
            self._files = files.pop_all()
        return identity, durable

    def close_directory(self) -> None:
        directory, self.directory = self.directory, None
        if directory is not None:
            directory.close()

    async def stop(self) -> None:
        """Ends all streams. When it returns all is on disk, and the lock is given back. OSError, EngineError."""
        if self._storage is not None:
            await self._storage.close()
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._driver is not None:
            await self._driver.stop()
        await in_thread(self._files.close)

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[Stream]:
        """A stream as a client has one to a node far away. EOFError when the node has ended."""
        if self._storage is None or self.failure is not None:
            raise EOFError(f"the node in {self.path} has ended")
        stream = Stream(self._storage)
        try:
            yield stream
        finally:
            stream.cancel()

    def _fatal(self, error: BaseException) -> NoReturn:
        """What the disk holds is not known any more: nothing of this node goes on. From any thread."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._end, error)
            raise SystemExit  # the log's thread, which ends without a word
        self._end(error)
        raise _Ended from error

    def _end(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            self._settled.set()
            log.critical("the node in %s has ended: %s", self.path, error, exc_info=error)
            self._failed(error)


class Stream:
    """A client's side of a Session, with what `grpc.aio`'s call has of methods."""

    def __init__(self, service: StorageService) -> None:
        self._requests: _Pipe[pb.RequestBatch] = _Pipe()
        self._events: _Pipe[pb.EventBatch] = _Pipe()
        self._details = ""
        self._task = asyncio.get_running_loop().create_task(self._serve(service))

    async def _serve(self, service: StorageService) -> None:
        try:
            await service.Session(self._incoming(), _Context(self._events))  # type: ignore[arg-type]
        except _Aborted as aborted:
            self._details = str(aborted)
        finally:
            self._requests.end()
            self._events.end()

    async def _incoming(self) -> AsyncIterator[pb.RequestBatch]:
        while (batch := await self._requests.get()) is not EOF:
            yield batch

    async def write(self, batch: pb.RequestBatch, /) -> None:
        await self._requests.put(batch)

    async def read(self) -> Any:
        return await self._events.get()

    async def details(self) -> str:
        return self._details

    def cancel(self) -> None:
        self._requests.end()
        self._events.end()
        self._task.cancel()


class _Context:
    """What StorageService needs of `grpc.aio.ServicerContext`."""

    def __init__(self, events: _Pipe[pb.EventBatch]) -> None:
        self._events = events

    async def write(self, batch: pb.EventBatch) -> None:
        try:
            await self._events.put(batch)
        except asyncio.InvalidStateError as error:
            raise grpc.aio.UsageError(str(error)) from error

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        raise _Aborted(f"{code.name} {details}")


class _Aborted(Exception):
    """A session was ended by the node, for the reason that is its text."""


class _Pipe(Generic[T]):
    """One direction. It holds one item: who writes faster than the other side reads waits, as on a socket."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._ended = False
        self._changed: deque[asyncio.Future[None]] = deque()

    async def put(self, item: T) -> None:
        """InvalidStateError when the stream is over."""
        while self._items and not self._ended:
            await self._wait()
        if self._ended:
            raise asyncio.InvalidStateError("the stream is over")
        self._items.append(item)
        self._wake()

    async def get(self) -> Any:
        """The next item, or EOF."""
        while not self._items:
            if self._ended:
                return EOF
            await self._wait()
        item = self._items.popleft()
        self._wake()
        return item

    def end(self) -> None:
        self._ended = True
        self._wake()

    async def _wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._changed.append(future)
        await future

    def _wake(self) -> None:
        while self._changed:
            future = self._changed.popleft()
            if not future.done():
                future.set_result(None)


# ---- one node for all storages of this process --------------------------------------------------------------


class Share:
    """One storage's part in the node of a directory. Made by `share`, given back by `close`."""

    def __init__(self, place: _Place, node: EmbeddedNode, failed: Callable[[str], None]) -> None:
        self.node = node
        self.failed = failed
        self._place = place

    def dial(self) -> AbstractAsyncContextManager[Stream]:
        """A stream to the node. EOFError when it has ended."""
        return self.node.dial()

    async def close(self) -> None:
        """The last one stops the node. What it raises, `EmbeddedNode.stop` raised."""
        await self._place.leave(self)


class _Place:
    """What this process has in one directory. The lock: one opens or closes at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.node: EmbeddedNode | None = None
        self._lock = asyncio.Lock()
        self._shares: set[Share] = set()
        self._clearing: asyncio.Task[None] | None = None

    async def enter(self, failed: Callable[[str], None], create: bool) -> Share:
        async with self._lock:
            if self.node is not None and self.node.failure is not None:
                await self._stop()
            if self.node is None:
                node = EmbeddedNode(self.path, lambda error: self._failed(node, error))
                await node.start(create=create)
                self.node = node
            one = Share(self, self.node, failed)
            self._shares.add(one)
            return one

    async def leave(self, one: Share) -> None:
        async with self._lock:
            if one in self._shares:
                self._shares.remove(one)
                if not self._shares:
                    await self._stop()

    async def _stop(self) -> None:
        node, self.node = self.node, None
        if node is not None:
            await node.stop()

    def _failed(self, node: EmbeddedNode, error: BaseException) -> None:
        """The node ended: its storages are told, and whoever opens the directory afterwards begins anew."""
        if self.node is not node:
            return  # it is starting, or stopping: who does that sees it
        shares, self._shares = self._shares, set()
        for one in shares:
            one.failed(f"the node in {self.path} has ended: {error}")
        self._clearing = asyncio.get_running_loop().create_task(self._clear(node))

    async def _clear(self, node: EmbeddedNode) -> None:
        async with self._lock:
            if self.node is node:
                try:
                    await self._stop()
                except Exception:
                    log.exception("the directory %s could not be closed", self.path)


_places: dict[Path, _Place] = {}


async def share(directory: Path, failed: Callable[[str], None], *, create: bool = True) -> Share:
    """The node on `directory`, begun there unless `create` is False, started unless this process runs it already.

    CannotOpen. `failed(why)` is called in the loop if the node ends itself; the share is over then. For one loop.
    """
    path = Path(os.path.realpath(directory))
    return await _places.setdefault(path, _Place(path)).enter(failed, create)


def _unlock_in_child() -> None:
    """A child of a fork has a copy of every descriptor, and would keep the directories locked."""
    for place in _places.values():
        if place.node is not None:
            place.node.close_directory()


os.register_at_fork(after_in_child=_unlock_in_child)
