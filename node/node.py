"""A storage node as an asyncio object: what `python -m raftstorage.node` runs, and what one embeds."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import NoReturn

from raftstorage.node.disk_space import DiskWatcher, measure
from raftstorage.node.driver import Driver, LeadershipLost
from raftstorage.node.engine import RocksEngine
from raftstorage.node.engine.api import EngineError, EngineWriteError
from raftstorage.node.identity import NodeDirectory
from raftstorage.node.options import NodeOptions, split_address
from raftstorage.node.raft.types import Config, Message, NotLeader, Role, RoleChange
from raftstorage.node.service.admin import AdminService
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.peers import PeerTransport
from raftstorage.node.service.server import GrpcServer, PortInUse
from raftstorage.node.service.sessions import SessionLimits, StorageService
from raftstorage.node.wal import Wal, WalDamaged

log = logging.getLogger(__name__)

#: The process's exit status after damage in the log or the database, and after a write or sync that failed.
EXIT_DAMAGED = 3
EXIT_FATAL = 70
#: How long a leader that stops waits for another one to take over.
HANDOVER_SECONDS = 2.0
#: How long calls may go on once the node stops.
GRACE_SECONDS = 1.0
#: How much of a backlog is applied before the loop has its turn again: some tens of milliseconds' worth.
APPLY_BYTES = 256 << 10

Callback = Callable[[], Awaitable[None] | None]


def end_process(error: BaseException) -> NoReturn:
    """What the disk holds is not known any more: nothing may be said or retried, not even a clean stop.

    Callable from any thread. A log line that cannot be written soon (a full pipe, a lock) is given up.
    """
    writer = threading.Thread(
        target=log.critical, args=("fatal: %s", error), kwargs={"exc_info": error}, daemon=True
    )
    writer.start()
    writer.join(0.5)
    damaged = isinstance(error, WalDamaged | EngineError) and not isinstance(error, EngineWriteError)
    os._exit(EXIT_DAMAGED if damaged else EXIT_FATAL)


class Node:
    """One member of a cluster.

    `on_leader` is called when this node leads and has applied all that was committed before; `on_follower` when it
    has found the leader it follows, and when it stops leading. Functions or coroutine functions, called on the
    node's loop; what they raise is logged. `fatal` ends the process when the log or the database fails.
    """

    def __init__(self, options: NodeOptions, *, fatal: Callable[[BaseException], NoReturn] = end_process) -> None:
        self.options = options
        self.identity = options.identity()
        self.metrics = NodeMetrics()
        self.on_leader: list[Callback] = []
        self.on_follower: list[Callback] = []
        #: Whether another node's disk has room; None: not known.
        self.peer_has_room: Callable[[int], bool | None] = lambda node: None
        self.driver: Driver
        self.disk: DiskWatcher
        #: host:port of the gRPC port and of the metrics page (empty: none), once started.
        self.address = ""
        self.metrics_address = ""
        self._fatal = fatal
        self._told = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._close = AsyncExitStack()

    async def start(self) -> None:
        """Opens the directory, replays, serves. When it fails, everything is closed again.

        DirectoryError, WalError, EngineError: the directory cannot be used. PortInUse: an address cannot. OSError:
        the disk failed.
        """
        try:
            await self._start(self._close)
        except BaseException:
            await self._close.aclose()
            raise

    async def _start(self, close: AsyncExitStack) -> None:
        options = self.options
        directory = NodeDirectory.open(options.directory, self.identity)
        close.callback(directory.close)
        wal = Wal.open(directory.log)
        close.callback(wal.close)
        engine = RocksEngine(directory.db)
        close.callback(engine.close)
        close.callback(engine.flush)
        if engine.applied_index > wal.last_index():
            raise EngineError(
                f"{directory.log} ends at entry {wal.last_index()}, but {directory.db} holds what was applied up "
                f"to entry {engine.applied_index}: the log has lost its tail"
            )
        peers = self._peers = PeerTransport(self.identity, self.metrics, self._receive)
        self.driver = Driver(
            Config(
                options.node_id,
                frozenset(self.identity.members),
                election_ticks=options.election_ticks,
                max_apply_bytes=APPLY_BYTES,
            ),
            wal,
            engine,
            peers,
            tick_seconds=options.tick_ms / 1000,
            fatal=self._fatal,
            observer=self.metrics,
        )
        self.metrics.watch(self.driver, self.identity)
        limits = SessionLimits(
            max_record_bytes=options.max_record_bytes,
            max_transaction_bytes=options.max_transaction_bytes,
            lease_ms=options.lease_ms,
        )
        disk = self.disk = DiskWatcher(
            partial(measure, options.directory),
            options.disk_reserve_bytes,
            self._other_voters,
            self.driver.transfer_leader,
            lambda node: self.peer_has_room(node),
        )
        self.metrics.watch_disk(disk)
        await disk.start()
        close.push_async_callback(disk.stop)
        self._storage = StorageService(self.driver, self.identity, limits, self.metrics, room=lambda: disk.room)
        admin = AdminService(
            self.driver,
            self.identity,
            connected=peers.connected,
            sessions=self.metrics.connected_sessions,
            disk=disk,
        )
        self._server = GrpcServer(self.driver, peers, self._storage, admin)
        close.push_async_callback(self._server.stop, GRACE_SECONDS)
        self.driver.on_role.append(self._role_changed)
        self.driver.on_ready.append(self._ready)
        self._bind()
        close.callback(self.metrics.close)
        await self.driver.start()
        close.push_async_callback(self.driver.stop)
        close.push_async_callback(self._storage.close)
        await self._server.start()

    def _bind(self) -> None:
        host, _port = self.options.listen_address.rsplit(":", 1)
        self.address = f"{host}:{self._server.bind(self.options.listen_address)}"
        if self.options.metrics:
            host, port = split_address(self.options.metrics)
            try:
                port = self.metrics.serve(host, port)
            except OSError as error:
                raise PortInUse(
                    f"cannot serve metrics on {self.options.metrics}: {error.strerror or error}"
                ) from error
            self.metrics_address = f"{self.options.metrics.rsplit(':', 1)[0]}:{port}"

    def _other_voters(self) -> dict[int, int]:
        """Whom this node could hand leadership to, with the last index of each; empty when it does not lead."""
        status = self.driver.status()
        if status.role is not Role.LEADER:
            return {}
        voters = self.driver.config.voters
        reached = [peer for peer in status.peers if peer.node_id in voters and self._peers.connected(peer.node_id)]
        return {peer.node_id: peer.match_index for peer in reached}

    def _receive(self, messages: Sequence[Message]) -> None:
        self.driver.receive(messages)

    async def stop(self) -> None:
        """Hands leadership over if it can, ends the sessions, and leaves everything durable."""
        await self._server.announce_stop()
        if self.driver.role is Role.LEADER and len(self.identity.members) > 1:
            try:
                await self.driver.transfer_leader(0, timeout=HANDOVER_SECONDS)
            except (TimeoutError, NotLeader, LeadershipLost) as error:
                log.warning("stops without handing leadership over: %s", str(error) or "nobody took over in time")
        self._told = "stopped"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close.aclose()

    async def wait_until_leader(self, node_id: int | None = None, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Returns as soon as `node_id` leads; this node when it is None, and then it is ready to take commits.

        TimeoutError after `timeout` seconds; LeadershipLost when this node is stopped meanwhile.
        """
        async with asyncio.timeout(timeout):
            while not self._leads(self.options.node_id if node_id is None else node_id):
                await self.driver.wait_role()

    def _leads(self, node_id: int) -> bool:
        return self.driver.is_ready_leader if node_id == self.options.node_id else self.driver.leader == node_id

    # ---- callbacks -----------------------------------------------------------------------------------

    def _role_changed(self, change: RoleChange) -> None:
        follows = change.role in (Role.FOLLOWER, Role.LEARNER) and change.leader != 0
        if follows or (self._told == "leader" and change.role is not Role.LEADER):
            self._tell("follower", self.on_follower)

    def _ready(self) -> None:
        self._tell("leader", self.on_leader)

    def _tell(self, what: str, callbacks: list[Callback]) -> None:
        if self._told in (what, "stopped"):
            return
        self._told = what
        for callback in callbacks:
            task = asyncio.get_running_loop().create_task(_call(callback), name=f"raftstorage-on-{what}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _call(callback: Callback) -> None:
    try:
        outcome = callback()
        if inspect.isawaitable(outcome):
            await outcome
    except Exception:
        log.exception("the callback %r failed", callback)
