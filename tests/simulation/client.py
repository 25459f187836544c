"""A client: the production replica choice, retry and failover policy, with a small workload on top.

What ZODB's threads do around it (hold back the own invalidation, wait for the changes up to one's own commit)
is done here in the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from prometheus_client import CollectorRegistry
from raftstorage.client.cache.records import OVERHEAD_BYTES, RecordCache
from raftstorage.client.cluster import policy
from raftstorage.client.cluster.bodies import LargeBody
from raftstorage.client.cluster.errors import ClientDisconnected, CommitOutcomeUnknown, StorageFull
from raftstorage.client.cluster.feed import Feed
from raftstorage.client.cluster.metrics import Metrics
from raftstorage.client.cluster.policy import Z64, Call, Flow
from raftstorage.client.cluster.replicas import Replicas, Surroundings
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.choices import Change
from tests.simulation.history import Commit, History, Opened, Read, Told
from tests.simulation.network import Network
from tests.simulation.records import unwrap
from tests.simulation.transaction import Transaction
from tests.simulation.world import SimLoop, Violation, World

READ_SECONDS = 3.0
LEAD_SECONDS = 3.0
VOTE_ROUNDS = 4
#: Reasons that clients which do everything right are never given.
NEVER = frozenset({pb.INVALID, pb.INTERNAL, pb.TOO_LARGE})


@cache
def metrics() -> Metrics:
    return Metrics("simulated", CollectorRegistry())


class SimFeed(Feed):
    """Delivers in the loop what production delivers in a thread."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self._sim_loop = loop
        self.moved = asyncio.Event()

    def accept(self, tid: bytes, oids: Sequence[bytes]) -> None:
        super().accept(tid, oids)
        self._sim_loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        with self.lock:
            self._pump()
        self.moved.set()

    async def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """ClientDisconnected when `condition` does not come about in time."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self.moved.clear()
                    await self.moved.wait()
        except TimeoutError:
            raise ClientDisconnected("the changes did not arrive in time") from None


class Outcome:
    """`loop.Result` over a Future. `look` sees each answer the moment it comes."""

    def __init__(self, loop: SimLoop, look: Callable[[pb.Event], None]) -> None:
        self.future: asyncio.Future[tuple[pb.Event, str]] = loop.create_future()
        self._look = look

    @property
    def done(self) -> bool:
        return self.future.done()

    def set_result(self, result: tuple[pb.Event, str]) -> None:
        self._look(result[0])
        if not self.future.done():
            self.future.set_result(result)

    def set_error(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Refused(Exception):
    """The cluster's definite no."""

    def __init__(self, failure: pb.Failure, address: str = "") -> None:
        super().__init__(f"{pb.Reason.Name(failure.reason)}: {failure.message}")
        self.failure = failure
        self.address = address  # whose no it is


class SimClient:
    """One client process. `history` is shared by all. `part_bytes`: of a part of a transaction; 0: as usual."""

    def __init__(
        self,
        number: int,
        world: World,
        network: Network,
        addresses: Sequence[str],
        history: History,
        part_bytes: int = 0,
    ) -> None:
        self.number = number
        self.name = f"c{number}"
        self.world = world
        self.history = history
        self.part_bytes = part_bytes
        self.loop = world.new_loop(self.name, lambda status: None)
        self.rng = world.random(f"client {number}")
        self.patience = self.rng.choice((0.5, 2.0, 8.0))  # with a commit, in seconds
        self.feed = SimFeed(self.loop)
        self.feed.sink = self._told
        self.replicas = Replicas(
            addresses,
            Surroundings(
                self.loop,
                world.random(f"policy {number}"),
                partial(network.dial, self.name, self.loop),
                lambda: world.now,
            ),
            self.feed,
            metrics(),
            client_id=self.rng.randbytes(16).hex(),
        )
        # Half of the clients have a cache, of which most is too small for all objects or remembers few changes.
        rng = world.random(f"cache {number}")
        entries, remembered = rng.choice(((0, 2), (0, 2), (10, 1), (100, 4), (100, 50), (1000, 1000)))
        self.cache = RecordCache(entries * (OVERHEAD_BYTES + 50), remembered)
        self.feed.on_change = self.cache.invalidate
        self.feed.on_missed = self.cache.missed
        self._oids: list[bytes] = []
        self._opened = False
        self.in_parts = 0  # transactions that were acknowledged

    def _told(self, tid: bytes, oids: Sequence[bytes]) -> None:
        self.history.events.append(Told(self.number, self.world.now, tid, tuple(oids)))

    async def flow(self, flow: Flow, *, reading: bool = False) -> tuple[pb.Event, str]:
        """An answer, and the address that it came from. Refused."""
        outcome = Outcome(self.loop, self._check_order)
        self.replicas.launch(flow, outcome)
        event, address = await outcome.future
        if event.HasField("failure"):
            if event.failure.reason in NEVER:
                self.world.errors.append(f"{self.name} is refused what is right: {event.failure.message}")
            if event.failure.reason == pb.STORAGE_FULL and reading:
                self.world.errors.append(f"{self.name} is refused a read for a full disk")
            raise Refused(event.failure, address)
        return event, address

    def _check_order(self, event: pb.Event) -> None:
        """No answer shows a transaction whose invalidation comes behind it."""
        shown = max(event.record.serial, event.committed.tid, event.read_point.last_tid)
        if self.feed.last != Z64 and shown > self.feed.accepted:
            self.world.errors.append(f"{self.name} is shown {shown.hex()} before it is told of it")

    # ---- what a storage does ---------------------------------------------------------------------------

    async def open(self) -> None:
        """As Cluster.open: from the newest committed tid on. Again: nothing."""
        if self._opened:
            return
        self._opened = True
        self.replicas.start()
        while True:
            try:
                tid = await self.read_point()
            except (ClientDisconnected, Refused):
                continue
            break
        self.feed.last = self.replicas.begin(tid)
        self.cache.start(self.feed.last)
        self.history.events.append(Opened(self.number, self.world.now, self.feed.last))

    async def read_point(self) -> bytes:
        call = Call("read_barrier", pb.ReadBarrier())
        event, _ = await self.flow(self.replicas.read(call, Z64, READ_SECONDS, leader_first=True), reading=True)
        return event.read_point.last_tid

    async def load(self, oid: bytes, snapshot: bytes) -> tuple[bytes, bytes] | None:
        """(data, serial) at `snapshot`; None: there is no such object there."""
        before = (int.from_bytes(snapshot) + 1).to_bytes(8)
        cached = self.cache.load_before(oid, before)
        if cached is not None:
            return cached.data, cached.serial
        call = Call("load_before", pb.LoadBefore(oid=oid, before=before, at_least=snapshot))
        try:
            event, _ = await self.flow(self.replicas.read(call, snapshot, READ_SECONDS), reading=True)
        except Refused as refused:
            if refused.failure.reason == pb.NO_SUCH_OBJECT:
                return None
            if refused.failure.reason == pb.PACKED:
                self.history.packed.add(refused.failure.serial)
                if refused.failure.serial <= snapshot:
                    raise Violation(f"{self.name} at {snapshot.hex()} hears of a pack that took nothing") from None
            raise
        record = event.record
        if not record.serial:
            return None
        data = unwrap(record.data)
        self.cache.store(oid, data, record.serial, record.next_serial or None, snapshot)
        return data, record.serial

    async def new_oid(self) -> bytes:
        if not self._oids:
            event, _ = await self.flow(
                self.replicas.lead(Call("allocate_oids", pb.AllocateOids(count=8)), LEAD_SECONDS)
            )
            first = int.from_bytes(event.oids.first)
            self._oids = [n.to_bytes(8) for n in range(first, first + event.oids.count)]
        return self._oids.pop(0)

    async def read(self, oids: Sequence[bytes], *, linearizable: bool) -> dict[bytes, tuple[bytes, bytes] | None]:
        """One read-only transaction, in the history when it ends well."""
        begun = self.world.now
        if linearizable:
            tid = await self.read_point()
            await self.feed.until(lambda: self.feed.last_transaction() >= tid, READ_SECONDS)
        snapshot = self.feed.last_transaction()
        values = {oid: await self.load(oid, snapshot) for oid in oids}
        self.history.events.append(Read(self.number, begun, self.world.now, snapshot, linearizable, values))
        return values

    async def commit(
        self,
        change: Change,
        oids: Sequence[bytes],
        checks: Sequence[bytes] = (),
        *,
        one_phase: bool = False,
        blobs: Mapping[bytes, pb.Blob] | None = None,
        began: Callable[[bytes], None] = lambda identity: None,
    ) -> bytes:
        """Reads `oids` and `checks` at a snapshot, commits what `change` makes of them; in the history. The tid.

        `blobs`: of records by oid. `began` hears the commit's identity.

        ClientDisconnected, Refused: nothing was committed, for certain.
        """
        values = dict(await self.read([*oids, *checks], linearizable=False))
        snapshot = self.feed.last
        begun = self.world.now
        work = Transaction(self.rng.randbytes(16), self.name, change, values, checks, self.part_bytes, blobs or {})
        began(work.identity)

        def record(outcome: Any, tid: bytes | None = None) -> None:
            self.history.events.append(
                Commit(
                    self.number, work.identity, begun, self.world.now if outcome != "unknown" else None, snapshot,
                    work.writes, work.bases, work.checked, outcome, tid,
                )
            )  # fmt: skip
            self.world.say(f"{self.name} commit {outcome} {tid.hex() if tid else ''}")

        try:
            voted_at = "" if one_phase else await self._vote(work)
            self.feed.hold(list(work.writes))
            try:
                event, _ = await self.flow(self.replicas.commit(work.identity, work.body, voted_at, self.patience))
            except BaseException:
                self.feed.release()
                raise
        except CommitOutcomeUnknown:
            record("unknown")
            raise
        except (Refused, ClientDisconnected, StorageFull):
            record("refused")
            raise
        tid = event.committed.tid
        record("acknowledged", tid)
        self.in_parts += isinstance(work.body, LargeBody)
        try:
            await self.feed.until(lambda: self.feed.accepted >= tid, READ_SECONDS * 4)
        except ClientDisconnected:  # a transaction that ends so is the application's to look after
            self.feed.release()
            raise
        self.feed.finish(tid, lambda own: self._told(own, list(work.writes)), 0.0)
        for oid, data in work.writes.items():
            if data is not None:
                self.cache.store(oid, data, tid, None, tid)
        return tid

    async def _vote(self, work: Transaction) -> str:
        """The address of the leader that has voted for it. Some conflicts are resolved. Errors as `commit`'s."""
        resolving = VOTE_ROUNDS if self.rng.random() < 0.5 else 1
        for left in reversed(range(resolving)):
            vote = policy.vote(work.identity, work.body)
            event, voted_at = await self.flow(self.replicas.lead(vote, LEAD_SECONDS))
            conflicts = event.vote.conflicts
            if not conflicts:
                break
            if not left or not work.resolve(conflicts):
                raise Refused(conflicts[0])
        if self.rng.random() < 0.05:
            await asyncio.sleep(self.rng.choice((0.1, 3.0)))  # the lease is one second
        return voted_at
