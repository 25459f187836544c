"""A storage node as an asyncio object: what `python -m raftstorage.node` runs, and what one embeds."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from raftstorage.node.compaction import Compactor
from raftstorage.node.disk_space import DiskWatcher, Room, measure
from raftstorage.node.driver import Driver, LeadershipLost
from raftstorage.node.durable import opened
from raftstorage.node.ending import end_process
from raftstorage.node.engine.api import Checkpointed, EngineError
from raftstorage.node.founding import settle
from raftstorage.node.healing import Healer, placer
from raftstorage.node.identity import DirectoryError, NodeDirectory
from raftstorage.node.leadership import Leadership
from raftstorage.node.members import Members
from raftstorage.node.options import NodeOptions, split_address
from raftstorage.node.raft.membership import Member, Membership
from raftstorage.node.raft.types import Config, Message, NotLeader, Role, RoleChange
from raftstorage.node.service.admin import AdminService, Insights
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.peer_hello import PeerInfo
from raftstorage.node.service.peer_link import PeerNote
from raftstorage.node.service.peer_problems import PeerProblem
from raftstorage.node.service.peers import PeerTransport
from raftstorage.node.service.server import GrpcServer, PortInUse
from raftstorage.node.service.sessions import SessionLimits, StorageService
from raftstorage.node.service.snapshots import GrpcSource, SnapshotService
from raftstorage.node.snapshots import ServeOptions, SnapshotFetcher, SnapshotStore
from raftstorage.node.versions import VERSIONS, Versions
from raftstorage.node.wishes import Wishes

log = logging.getLogger(__name__)

#: How long a leader that stops waits for another one to take over.
HANDOVER_SECONDS = 2.0
#: How long calls may go on once the node stops.
GRACE_SECONDS = 1.0
#: How much of a backlog is applied before the loop has its turn again: some tens of milliseconds' worth.
APPLY_BYTES = 256 << 10

Callback = Callable[[], Awaitable[None] | None]


class Node:
    """One member of a cluster.

    `on_leader` is called when this node leads and has applied all that was committed before; `on_follower` when it
    has found the leader it follows, and when it stops leading. Functions or coroutine functions, called on the
    node's loop; what they raise is logged. `fatal` ends the process when the log or the database fails.
    `versions`: what this node says that it speaks and knows; tests pretend. `identity` is settled once it is
    started.
    """

    def __init__(
        self,
        options: NodeOptions,
        *,
        fatal: Callable[[BaseException], NoReturn] = end_process,
        versions: Versions = VERSIONS,
    ) -> None:
        self.options = options
        self.versions = versions
        self.identity = options.identity()
        self.metrics = NodeMetrics()
        self.on_leader: list[Callback] = []
        self.on_follower: list[Callback] = []
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

        DirectoryError, InstallError, WalError, EngineError: the directory cannot be used. PortInUse: an address
        cannot. JoinError: no cluster lets this node in. OSError: the disk failed.
        """
        try:
            await self._start(self._close)
        except BaseException:
            await self._close.aclose()
            raise

    async def _start(self, close: AsyncExitStack) -> None:
        options = self.options
        directory = NodeDirectory.open(options.directory)
        close.callback(directory.close)
        self.identity = identity = await settle(directory, options, self.versions)
        durable = close.enter_context(opened(directory, identity, cache_bytes=options.cache_bytes))
        self._founded = durable.membership
        self._peers = peers = PeerTransport(
            identity,
            self.metrics,
            self._receive,
            versions=self.versions,
            instance=identity.instance,
            address=options.advertised if not options.advertised.endswith(":0") else "",
            known_instance=self._known_instance,
            note=self._note,
            accepted=self._accepted,
            refused=self._refused,
        )
        self.driver = driver = Driver(
            Config(
                identity.node_id,
                frozenset(),
                election_ticks=options.election_ticks,
                max_apply_bytes=APPLY_BYTES,
            ),
            durable.wal,
            durable.engine,
            peers,
            membership=durable.membership,
            place=placer(directory.path, durable.wal),
            tick_seconds=options.tick_ms / 1000,
            fatal=self._fatal,
            observer=self.metrics,
        )
        self._check_level(driver.membership.level)
        driver.on_membership.append(self._level_changed)
        self.metrics.watch(driver, identity)
        peers.update(driver.membership.addresses)
        driver.on_membership.append(lambda membership: peers.update(membership.addresses))
        self._members = Members(driver)
        self._leadership = Leadership(driver, self._members, self.metrics)
        self._serve_snapshots(directory, close)
        self._fetcher = SnapshotFetcher(directory.path, observer=self.metrics)
        healer = Healer(
            driver, directory.path, durable.wal, self._fetcher, self._source, self.metrics, options.cache_bytes
        )
        compactor = Compactor(
            driver,
            durable.wal,
            keep_bytes=options.log_keep_bytes,
            keep_seconds=options.log_keep_seconds,
            needed=lambda: self._snapshots.needed_index,
        )
        limits = SessionLimits(
            max_record_bytes=options.max_record_bytes,
            max_transaction_bytes=options.max_transaction_bytes,
            max_blob_bytes=options.max_blob_bytes,
            lease_ms=options.lease_ms,
        )
        disk = self.disk = DiskWatcher(
            partial(measure, options.directory),
            options.disk_reserve_bytes,
            lambda: driver.other_voters(peers.connected),
            driver.transfer_leader,
            self._peer_has_room,
        )
        self.metrics.watch_disk(disk)
        await disk.start()
        close.push_async_callback(disk.stop)
        self._storage = StorageService(
            driver,
            identity,
            limits,
            self.metrics,
            room=lambda: disk.room,
            versions=self.versions,
            level=lambda: driver.membership.level,
        )
        admin = AdminService(driver, identity, self._members, self.versions, self._insights())
        self._server = GrpcServer(driver, peers, self._storage, admin)
        close.push_async_callback(self._server.stop, GRACE_SECONDS)
        driver.on_role.append(self._role_changed)
        driver.on_ready.append(self._ready)
        self._bind()
        close.callback(self.metrics.close)
        await driver.start()
        close.push_async_callback(driver.stop)
        close.push_async_callback(self._fetcher.close)
        close.push_async_callback(healer.stop)
        close.push_async_callback(self._storage.close)
        await self._snapshots.start()
        await self._server.start()
        self._introduce_self()
        wishes = Wishes(driver, directory)
        for work in (compactor.run(), self._leadership.run(), wishes.run()):
            self._keep(work, close)

    def _check_level(self, level: int) -> None:
        """DirectoryError: the log and the database may hold what this software does not know."""
        if not self.versions.oldest_level <= level <= self.versions.level:
            age = "old" if level > self.versions.level else "new"
            raise DirectoryError(
                f"{self.options.directory} is of a cluster of feature level {level}, and this software "
                f"({self.versions.software}) is too {age} for it: it knows levels {self.versions.oldest_level} to "
                f"{self.versions.level}"
            )

    def _level_changed(self, membership: Membership) -> None:
        try:
            self._check_level(membership.level)
        except DirectoryError as error:
            self._fatal(error)

    def _keep(self, work: Coroutine[Any, Any, None], close: AsyncExitStack) -> None:
        """Runs until this node stops. Its failure is this node's."""
        task = asyncio.get_running_loop().create_task(work)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fatal(error)

        task.add_done_callback(ended)

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        close.push_async_callback(stop)

    def _serve_snapshots(self, directory: NodeDirectory, close: AsyncExitStack) -> None:
        driver, peers = self.driver, self._peers
        self._snapshots = SnapshotStore(
            directory.snapshots,
            self._checkpoint,
            floor=lambda: driver.first_index - 1,
            applied=lambda: driver.applied_index,
            options=ServeOptions(bytes_per_second=self.options.snapshot_bytes_per_second),
            observer=self.metrics,
        )
        close.push_async_callback(self._snapshots.stop)
        peers.serve_snapshot = SnapshotService(self._snapshots, self._snapshot_damaged).serve

    async def _checkpoint(self, path: Path) -> Checkpointed:
        """All that is to be written is, in a thread: the links are left, and take the loop little time."""
        await self.driver.flush()
        with self.driver.applying_nothing():
            await self.driver.flush()  # what came during the first one
            made = self.driver.engine.checkpoint(path)
        return replace(made, membership=made.membership or self._founded.encode())

    def _source(self, node_id: int, address: str) -> GrpcSource:
        if not address and (peer := self._peers.peer_info(node_id)) is not None:
            address = peer.address  # a node that has just joined knows no member's
        return GrpcSource(address, lambda: self._peers.greeter.hello(node_id))

    def _snapshot_damaged(self, folder: Path) -> None:
        """The folder's files are the database's."""
        self.driver.fail(EngineError(f"a file of {folder}, and so of the database, is not what was written"))

    # ---- what peers say --------------------------------------------------------------------------------

    def _known_instance(self, node_id: int) -> str:
        if node_id == self.identity.node_id:
            return self.identity.instance
        member = self.driver.membership.member(node_id)
        return member.instance if member is not None else ""

    def _accepted(self, peer: PeerInfo) -> None:
        told = Member(peer.node_id, address=peer.address, instance=peer.instance, version=peer.version)
        self._members.introduced(told)

    def _peer_has_room(self, node_id: int) -> bool | None:
        note = self._peers.peer_note(node_id)
        return None if note is None else not note.disk_full

    def _note(self) -> PeerNote:
        return PeerNote(self.disk.room is not Room.AMPLE, self.driver.applied_index)

    def _introduce_self(self) -> None:
        own = Member(
            self.identity.node_id,
            address=self.options.advertised if not self.options.advertised.endswith(":0") else self.address,
            instance=self.identity.instance,
            version=self.versions.level,
        )
        self._members.introduced(own)

    def _refused(self, problem: PeerProblem) -> None:
        """Who is refused as another directory by as many as make a majority is not that member any more."""
        if problem.kind != "instance" or not problem.refused_us:
            return
        refusals = {each.node_id for each in self._peers.problems() if each.kind == "instance" and each.refused_us}
        voters = self.driver.membership.voters
        if 2 * len((refusals | {problem.node_id}) & voters) > len(voters):
            self._fatal(DirectoryError(problem.text))

    def _insights(self) -> Insights:
        def transfer() -> tuple[int, int]:
            progress = self._fetcher.progress
            return (progress.done, progress.total) if progress is not None else (0, 0)

        return Insights(
            connected=self._peers.connected,
            sessions=self.metrics.connected_sessions,
            lag=self._leadership.lag,
            problems=self._problems,
            transfer=transfer,
            disk=lambda: (self.disk.gauge.space.free, self.disk.gauge.reserve),
            packing=lambda: self._storage.pack_state(),
        )

    def _problems(self) -> list[str]:
        """What is wrong here and what to do, one line each."""
        found = [f"{problem.text}" for problem in self._peers.problems()]
        if problem := self.disk.problem():
            found.append(problem)
        if problem := self._storage.pack_state().problem:
            found.append(problem)
        driver = self.driver
        if driver.membership.members and driver.membership.member(self.identity.node_id) is None:
            found.append("it was removed from the cluster: stop its process")
        if driver.disk_hangs:
            found.append("its disk does not finish writes: look at the disk")
        return found

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

    def _receive(self, messages: Sequence[Message]) -> None:
        self.driver.receive(messages)

    async def stop(self) -> None:
        """Hands leadership over if it can, ends the sessions, and leaves everything durable."""
        await self._server.announce_stop()
        if self.driver.role is Role.LEADER and self.driver.membership.voters - {self.identity.node_id}:
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
            while not self._leads(self.identity.node_id if node_id is None else node_id):
                await self.driver.wait_role()

    def _leads(self, node_id: int) -> bool:
        return self.driver.is_ready_leader if node_id == self.identity.node_id else self.driver.leader == node_id

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
