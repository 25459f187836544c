"""Gets a snapshot when the leader's log no longer has what this node needs, and makes it this node's database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from raftstorage.node.driver import Driver
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.rocks import CACHE_BYTES, RocksStore
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import FetchSnapshot, SnapshotBase
from raftstorage.node.snapshots import (
    Fetched,
    SnapshotError,
    SnapshotFetcher,
    SnapshotObserver,
    SnapshotSource,
    point_to,
)
from raftstorage.node.snapshots.install import folder_name, remove_database
from raftstorage.node.wal import Wal

log = logging.getLogger(__name__)


class Healer:
    """Listens to the driver. One snapshot at a time; wishes that come meanwhile are dropped: they are repeated.

    `source(node id, host:port)`: where a snapshot is pulled from. Used from the loop.
    """

    def __init__(
        self,
        driver: Driver,
        directory: Path,
        wal: Wal,
        fetcher: SnapshotFetcher,
        source: Callable[[int, str], SnapshotSource],
        observer: SnapshotObserver,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._driver = driver
        self._cache_bytes = cache_bytes
        self._directory = directory
        self._wal = wal
        self._fetcher = fetcher
        self._source = source
        self._observer = observer
        self._task: asyncio.Task[None] | None = None
        driver.on_fetch.append(self._wanted)

    async def stop(self) -> None:
        """Gives up what is on its way; what came of it stays for the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _wanted(self, fetch: FetchSnapshot) -> None:
        member = self._driver.membership.member(fetch.from_node)
        if self._task is None:
            address = member.address if member is not None else ""
            self._task = asyncio.create_task(self._heal(fetch.from_node, address), name="raftstorage-snapshot")
            self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._driver.fail(error)

    async def _heal(self, node_id: int, address: str) -> None:
        try:
            fetched = await self._fetcher.fetch(self._source(node_id, address))
        except SnapshotError as error:
            self._observer.snapshot_failed("fetch")
            log.warning("no snapshot of node %d at %s yet: %s", node_id, address, error)
            return
        await self._install(fetched)

    async def _install(self, fetched: Fetched) -> None:
        """What is wrong with the files shows before anything is changed: then it is fetched anew."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            membership = Membership.decode(fetched.membership)
            store = await asyncio.to_thread(_open, fetched, self._cache_bytes)
        except (ValueError, EngineError) as error:
            self._observer.snapshot_failed("install")
            log.error("the snapshot at entry %d cannot be used: %s", fetched.index, error)
            await asyncio.to_thread(remove_database, fetched.path)
            return
        old = await self._driver.install(store, SnapshotBase(fetched.index, fetched.term, membership))
        await asyncio.to_thread((old or store).close)
        if old is None:
            await asyncio.to_thread(remove_database, fetched.path)
            return
        self._observer.snapshot_done("installed", loop.time() - begin)
        self._wal.forget(fetched.index)
        await self._driver.in_writer(self._wal.clean)
        await asyncio.to_thread(self._remove_others, fetched.path)

    def _remove_others(self, keep: Path) -> None:
        for path in self._directory.glob("db*"):
            if path.is_dir() and path != keep:
                remove_database(path)


def _open(fetched: Fetched, cache_bytes: int) -> RocksStore:
    """The snapshot's store, if it holds what it says. EngineError."""
    store = RocksStore(fetched.path, cache_bytes)
    state = StateMachine(store)
    if (state.applied_index, state.applied_term) != (fetched.index, fetched.term):
        store.close()
        raise EngineError(f"{fetched.path} holds the state at entry {state.applied_index}, not at {fetched.index}")
    return store


def placer(directory: Path, wal: Wal) -> Callable[[SnapshotBase], None]:
    """`Driver`'s `place`: first the database, then the log, for a start can catch the log up with the database."""

    def place(base: SnapshotBase) -> None:
        point_to(directory, folder_name(base.index, base.term), base.index, base.term)
        wal.reset(base.index, base.term)

    return place
