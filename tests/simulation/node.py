"""One node: the production driver, core, log, engine and storage service on simulated disk, network and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from typing import Any, NoReturn, TypeVar

from raftstorage.node.admission import Bounds
from raftstorage.node.compaction import Compactor
from raftstorage.node.disk_space import DiskWatcher, Room, Space
from raftstorage.node.driver import Driver
from raftstorage.node.durable import agree, membership_of
from raftstorage.node.engine.api import Applied, EngineError
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.members import Members
from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import (
    Config,
    Entry,
    FetchSnapshot,
    Message,
    Persist,
    Role,
    RoleChange,
    SnapshotBase,
)
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.sessions import StorageService
from raftstorage.node.service.validation import SessionLimits
from raftstorage.node.snapshots.install import Installed, folder_name
from raftstorage.node.wal import Wal, WalError
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.around import Crash, Peer, Timeouts, Uneven, Wire
from tests.simulation.disk import LOG, PLENTY, SEGMENT_BYTES, SimFiles
from tests.simulation.network import Network
from tests.simulation.store import Contents, SimEngine, SimStore, copied
from tests.simulation.watcher import Watcher
from tests.simulation.world import Exit, SimLoop, Violation, World
from tests.simulation.writer import SimWriter

Done = TypeVar("Done")

DISK_SECONDS = (0.0002, 0.002)  # of a write with its sync
EPOCH = 1_700_000_000.0  # what the clocks show when a run begins
KILLED = 137
#: A log of these many bytes is kept; each node draws one. The smallest leaves hardly anything to catch up from.
KEEP_BYTES = (256, 256, 1 << 10, 8 << 10)
CUT_SECONDS = 0.5
RESERVE = PLENTY // 10
SILENT_SECONDS = 1.0
#: How an entry with a fragment begins.
FRAGMENT = pb.Command(fragment=pb.FragmentCommand()).SerializeToString()[:1]
#: In one message at most, and in one turn of applying, of all nodes of a run. Few cut transactions to pieces.
MESSAGE_ENTRIES = (1, 3, 16, 16)
EXPIRE_SECONDS = 0.3  # from one look for idle uploads to the next
CONGESTED_CHANCE = 0.02  # whenever the driver asks


@cache
def metrics() -> NodeMetrics:
    """Nobody reads them here."""
    return NodeMetrics()


class SimNode:
    """`start` begins a life of the process; `kill` ends it. `watcher` hears what the node does.

    `members`: those that the cluster was founded with; none for a node that joins. `address`: where clients and
    peers find it.
    """

    def __init__(
        self, node_id: int, address: str, world: World, network: Network, members: dict[int, str], watcher: Watcher
    ) -> None:
        self.id = node_id
        self.address = address
        self.name = f"n{node_id}"
        self.world = world
        self.loop: SimLoop | None = None
        self.driver: Driver
        self.service: StorageService
        self.lives = 0
        self.lost = ""  # why it can never start again
        self.damaged = False  # its disk changed what it held
        self.clock_offset = 0.0
        self.disk_seconds = DISK_SECONDS
        self.bounds = Bounds()
        self.crash: Crash | None = None  # that is yet to strike in this life
        self.keep_all_until = 0.0  # its log is not cut
        self.cut_until = 0.0  # it is, as far as it can be
        self.crowded_until = 0.0  # until then its election timeouts are the shortest, as everybody's
        #: Called with the seconds to be down, None: as soon as somebody starts it again.
        self.ended_itself: Callable[[SimNode, float | None], None] = lambda node, seconds: None
        self._struck: Crash | None = None
        self._peers: dict[int, Peer] = {}  # heard in this life
        self._network = network
        self._watcher = watcher
        self._rng = world.random(f"node {node_id}")
        self._fault_rng = world.random(f"disk {node_id}")
        self._pace_rng = world.random(f"pace {node_id}")
        self.files = SimFiles(self._fault_rng, self.point)
        self.installed = Installed()  # what the file `database` says
        self.databases = {self.installed.name: self._new_store()}
        keep = world.random(f"keep {node_id}")
        self._keep_bytes = keep.choice(KEEP_BYTES)
        self.segment_bytes = keep.choice(SEGMENT_BYTES)
        self._message_entries = world.random("messages").choice(MESSAGE_ENTRIES)
        self.heartbeat_ticks = 1
        self._fetching: asyncio.Task[None] | None = None
        self._identity = NodeIdentity("ab" * 16, node_id, members)
        network.hosts[node_id] = self

    def _new_store(self) -> SimStore:
        return SimStore(
            lambda: self._rng.random() < 0.1, self.point, lambda: self._pace_rng.random() < CONGESTED_CHANCE
        )

    # ---- life ------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        return self.loop is not None

    def start(self) -> None:
        """Begins a life, unless the directory is damaged: then `lost` says how."""
        if self.loop is not None or self.lost:
            return
        self.lives += 1
        loop = self.loop = self.world.new_loop(self.name, self._ended)
        self.world.say(f"{self.name} starts, life {self.lives}")
        try:
            loop.run(self._open)
        except Exit as end:
            self._ended(int(end.code or 0))
        except (WalError, EngineError) as error:
            self.lost = str(error)
            self.kill(why=f"refuses its directory: {error}")
            self._watcher.refused(self)
        except OSError as error:
            self.kill(why=f"cannot start: {error}")
            self.ended_itself(self, None)
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{self.name} cannot start: {error!r}") from error

    def _open(self) -> None:
        assert self.loop is not None
        wal = Wal.open(LOG, segment_bytes=self.segment_bytes, cache_bytes=4 << 10, files=self.files)
        self.databases = {self.installed.name: self.databases[self.installed.name]}
        engine = SimEngine(self.databases[self.installed.name], self.point, lambda: self._watcher.state(self))
        agree(wal, engine, self.installed)
        wal.clean()
        self.driver = Driver(
            Config(
                self.id,
                frozenset(),
                heartbeat_ticks=self.heartbeat_ticks,
                max_message_entries=self._message_entries,
                max_message_bytes=2048,
                max_inflight_messages=8,
                max_apply_bytes=4096,
            ),
            wal,
            engine,
            Wire(self),
            membership=membership_of(engine, self._identity),
            place=self._place,
            fatal=self._fatal,
            rng=Timeouts(self),
            writer=lambda log, loop, done, fatal, install, synced: SimWriter(
                self, log, loop, done, fatal, install
            ),
            in_thread=self._in_thread,
            clock=Uneven(self),
        )
        self.wal = wal
        self.engine = engine
        self.members = Members(self.driver)
        self._peers = {}
        self.disk = disk = DiskWatcher(
            lambda: Space(self.files.free, PLENTY),
            RESERVE,
            lambda: self.driver.other_voters(self._hears),
            self.driver.transfer_leader,
            lambda node: self._peers[node].has_room if node in self._peers else None,
            self._in_thread,
        )
        self.service = StorageService(
            self.driver,
            self._identity,
            SessionLimits(lease_ms=1000, slice_objects=1),
            metrics(),
            clock=self._wall_clock,
            bounds=self.bounds,
            room=lambda: disk.room,
            level=lambda: HISTORY_LEVEL,
            work_clock=Uneven(self),
        )
        self.service._transacting.uploads.expire_seconds = EXPIRE_SECONDS
        self.driver.on_applied.append(self._applied)
        self.driver.on_role.append(self._role)
        self.driver.on_fetch.append(self._wanted)
        self.driver.on_installed.append(lambda: self._watcher.installed(self))
        self._fetching = None
        compactor = Compactor(
            self.driver,
            wal,
            keep_bytes=min(KEEP_BYTES),
            keep_seconds=1e9,
            needed=self._needed_index,
            every=CUT_SECONDS,
        )
        self._watcher.began(self)
        self._tasks = [self.loop.create_task(self._run(compactor))]

    async def _run(self, compactor: Compactor) -> None:
        await self.driver.start()
        await self.disk.start()
        await compactor.run()

    def _needed_index(self) -> int | None:
        """For `Compactor`, which cuts as much as it can: here is said how much this node keeps."""
        if self.world.now < self.cut_until:
            return None
        if self.world.now < self.keep_all_until:
            return 0
        return self.wal.cut_point(max_bytes=self._keep_bytes)

    async def _in_thread(self, function: Callable[[], Done]) -> Done:
        """What takes long: done at some moment, of which the caller hears later."""
        await asyncio.sleep(self.disk_delay())
        result = function()
        await asyncio.sleep(self.disk_delay())
        return result

    def _wall_clock(self) -> float:
        return EPOCH + self.world.now + self.clock_offset

    def kill(self, *, power: bool = False, why: str = "is killed") -> None:
        """SIGKILL; with `power` the machine under it goes too."""
        if self.loop is None:
            return
        loop, self.loop = self.loop, None
        self.world.drop(loop)
        self.world.say(f"{self.name} {'loses power' if power else why}")
        self.crash = None
        if power:
            self.files.lose_power()
        else:
            self.files.kill()
        for store in self.databases.values():
            store.crash()
        self._network.broke(self.name)
        self._watcher.died(self)

    def _ended(self, status: int) -> None:
        struck, self._struck = self._struck, None
        self.kill(power=struck is not None and struck.power, why=f"exits with status {status}")
        self.ended_itself(self, struck.seconds if struck is not None else None)

    def _fatal(self, error: BaseException) -> NoReturn:
        if not isinstance(error, OSError):
            self._watcher.failed(self, error)
        self.world.say(f"{self.name} fails: {error!r}")
        raise Exit(70)

    def point(self, name: str) -> None:
        """A place where a crash may strike."""
        crash = self.crash
        if crash is not None and crash.point == name:
            crash.passes -= 1
            if crash.passes < 0:
                self.crash, self._struck = None, crash
                self._watcher.struck[name] += 1
                raise Exit(KILLED)

    def log_has(self, entry: Entry) -> bool:
        """Whether the log, of this life or as the last one left it, holds `entry`, or a state covers it."""
        log = getattr(self, "wal", None)
        if log is None or log.last_index() < entry.index:
            return False
        return bool(log.base[0] >= entry.index or log.term(entry.index) == entry.term)

    def disk_delay(self) -> float:
        return self._fault_rng.uniform(*self.disk_seconds)

    def send(self, message: Message) -> None:
        self.point("before send")
        if message.entries and message.entries[-1].data.startswith(FRAGMENT):
            self.point("within a run of fragments")
        self._watcher.sent(message)
        self._network.send(message, self.disk.room is Room.AMPLE)
        self.point("after send")

    def recover_disk(self) -> None:
        """Room again, and the usual speed."""
        self.files.full = False
        self.files.fail_writes = self.files.fail_syncs = 0
        self.disk_seconds = DISK_SECONDS

    # ---- snapshots -------------------------------------------------------------------------------------

    def _wanted(self, fetch: FetchSnapshot) -> None:
        assert self.loop is not None
        if self._fetching is None or self._fetching.done():
            self._fetching = self.loop.create_task(self._fetch(fetch.from_node))

    async def _fetch(self, source: int) -> None:
        """What `node.snapshots` does over gRPC: the transfer may break off, what arrives is whole."""
        self.point("before fetch")
        copied = await self._network.copy(source, self.name)
        if copied is None:
            self.world.say(f"{self.name} gets no snapshot of n{source}")
            return
        self.point("after fetch")
        base, contents = copied
        store = self._new_store()
        store.take(contents)
        self.databases[folder_name(base.index, base.term)] = store
        self.world.say(f"{self.name} has a snapshot of n{source} at {base.index}")
        if await self.driver.install(store, base) is not None:
            self.wal.forget(base.index)
            await self.driver.in_writer(self.wal.clean)

    def copy_database(self) -> tuple[SnapshotBase, Contents]:
        """A checkpoint: the state as it is now."""
        self.point("before checkpoint")
        store = self.databases[self.installed.name]
        store.flush()
        self._watcher.copied(self)
        membership = self.engine.membership
        base = SnapshotBase(
            self.engine.applied_index,
            self.engine.applied_term,
            Membership.decode(membership) if membership else Membership.initial(self._identity.members),
        )
        self.point("after checkpoint")
        return base, copied(store.durable)

    def _place(self, base: SnapshotBase) -> None:
        """`healing.placer`: the rename of the file `database` is atomic and durable."""
        self._watcher.check_state(self)
        self.point("before database switch")
        self.installed = Installed(folder_name(base.index, base.term), base.index, base.term)
        self.point("after database switch")
        self.wal.reset(base.index, base.term)
        self.point("after log reset")

    # ---- Host ------------------------------------------------------------------------------------------

    def receive(self, message: Message, has_room: bool) -> None:
        if self.loop is not None:
            self._peers[message.from_node] = Peer(self.world.now, has_room)
            self.driver.receive([message])

    def _hears(self, node: int) -> bool:
        """Is there a stream, as far as this node can know?"""
        return node in self._peers and self.world.now - self._peers[node].heard < SILENT_SECONDS

    async def serve(self, requests: AsyncIterator[Any], context: Any) -> None:
        await self.service.Session(self._incoming(requests), context)

    async def _incoming(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for batch in requests:
            parts = any(request.HasField("part") for request in batch.requests)
            if parts:
                self.point("before part")
            yield batch
            if parts:
                self.point("after part")

    # ---- what the watcher hears ------------------------------------------------------------------------

    def wrote(self, batch: Sequence[Persist]) -> None:
        self._watcher.wrote(self, batch)

    def _applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        self._watcher.applied(self, entries)

    def _role(self, change: RoleChange) -> None:
        self.world.say(f"{self.name} {change.role.value} t{change.term} leader {change.leader}")
        if change.role is Role.LEADER:
            self._watcher.leads(self, change)
