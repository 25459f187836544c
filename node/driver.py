"""The loop that drives a node: messages in, core step, log write, send, apply.

Everything but the log's writes and syncs happens on one asyncio loop. Any failure of a write or a sync,
of the engine, or of a listener that keeps state derived from the log ends the process: none of them can be
retried without risking what was acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from raftstorage.node.applying import Applying
from raftstorage.node.backlog import Backlog
from raftstorage.node.engine.api import Engine
from raftstorage.node.engine.kv import KeyValueStore
from raftstorage.node.log_writer import DurableLog, Fatal, LogWriter, WriterFactory, cannot_place
from raftstorage.node.ports import Observer, Transport
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.membership import Change, Membership
from raftstorage.node.raft.types import (
    Config,
    Entry,
    EntryKind,
    Message,
    NotLeader,
    Output,
    Persist,
    Role,
    RoleChange,
    SnapshotBase,
)
from raftstorage.node.standing import Standing
from raftstorage.node.waiting import LeadershipLost, ReadWaiters, RoleWaiters, in_time

__all__ = ["Driver", "LeadershipLost"]

log = logging.getLogger(__name__)


class Driver(Standing):
    """Owns one core, one log and one engine. Used from the loop that `start` was awaited on.

    `membership`: as of what `engine` has applied; None: the voters and learners of `config`. `tick_seconds`: of a
    tick. `fatal`: ends the process; it may be called in the writer thread. `place(base)`: makes the database of a
    snapshot that `install` was given this node's own, durably, and begins the log behind it; called where the log
    is written. `rng`: for election timeouts and the numbers of reads. `writer`: makes what writes to the log,
    `in_thread`: runs what takes long beside the loop, `clock`: in seconds, says how long applying has taken; a
    simulator has its own.
    """

    def __init__(
        self,
        config: Config,
        wal: DurableLog,
        engine: Engine,
        transport: Transport,
        *,
        membership: Membership | None = None,
        place: Callable[[SnapshotBase], None] | None = None,
        tick_seconds: float = 0.05,
        fatal: Fatal,
        rng: random.Random | None = None,
        observer: Observer | None = None,
        writer: WriterFactory = LogWriter,
        in_thread: Callable[[Callable[[], object]], Awaitable[object]] = asyncio.to_thread,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.engine = engine
        super().__init__()
        self._wal = wal
        self._transport = transport
        self._tick_seconds = tick_seconds
        self._fatal = fatal
        self._observer = observer
        self._make_writer = writer
        self._in_thread = in_thread
        self._clock = clock
        self._applying = Applying(engine, clock)
        rng = rng or random.Random()
        self._core = RaftCore(config, wal, wal.hard_state, engine.applied_index, rng, membership)
        self._place = place or cannot_place
        self._flushing = asyncio.Lock()
        self._installing: tuple[KeyValueStore, asyncio.Future[KeyValueStore]] | None = None
        self._ready_term = 0
        self.work = Backlog()
        self._pump_scheduled = False
        self._pumping = False
        self._running = False
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        # Requests of an earlier life of this node must not be taken for ours.
        self._reads = ReadWaiters(config.election_ticks, first_request=(rng.getrandbits(30) << 32) + 1)
        self._role_waiters = RoleWaiters()

    # ---- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the writer thread, the transport and the ticks."""
        self._loop = asyncio.get_running_loop()
        synced = self._observer.synced if self._observer is not None else None
        self._writer = self._make_writer(self._wal, self._loop, self._durable, self._fatal, self._place, synced)
        self._writer.start()
        #: Calls a job where the log is written, behind all that is queued; what it raises ends the process.
        self.in_writer = self._writer.run
        await self._transport.start()
        self._running = True
        self._core.begin()
        self._schedule_tick()
        self._schedule()

    async def stop(self) -> None:
        """Stops ticks and transport; returns when all that was queued is durable.

        Who waits gets LeadershipLost.
        """
        if not self._running:
            return
        self._running = False
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        await self._transport.stop()
        await self._writer.stop()
        error = LeadershipLost("the node is stopping")
        self._reads.fail(error)
        self._role_waiters.fail(error)

    # ---- input ---------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> NoReturn:
        """Ends the process: what this node holds cannot be relied on any more."""
        self._fatal(error)

    def propose(self, data: bytes) -> int:
        """Appends a command on the leader and returns its log index. NotLeader.

        The entry leaves with all others of this turn of the loop. What becomes of it shows in `on_applied`: the
        entry at this index with the term at the time of the call is this command, any other is not.
        """
        return self.propose_many([data])

    def propose_many(self, data: Sequence[bytes]) -> int:
        """As `propose`, for several commands with nothing between them; returns the first one's index."""
        if not self._running:
            raise NotLeader("the node is stopping")
        index = self._core.propose(data)
        self.work.proposed(index, data)
        for listener in self.on_proposed:
            listener(index, data)
        if self._observer is not None:
            self._observer.proposed(len(data))
        self._schedule()
        return index

    def propose_membership(self, change: Change) -> int:
        """Appends a change of the membership on the leader; its log index. NotLeader; MembershipError: refused.

        It takes effect at once; it holds for good when that entry is committed and, if it was a change of voters,
        when `membership` is not joint any more.
        """
        if not self._running:
            raise NotLeader("the node is stopping")
        index = self._core.propose_membership(change)
        self._schedule()
        return index

    async def install(self, store: KeyValueStore, base: SnapshotBase) -> KeyValueStore | None:
        """Takes the state of a snapshot, which `store` holds; returns the old one, which the caller closes.

        None, and nothing is changed: it is not newer than what is committed here, or the node is stopping.
        """
        if not self._running or self._installing is not None:
            return None
        if not self._core.install_snapshot(base.index, base.term, base.membership):
            return None
        done: asyncio.Future[KeyValueStore] = self._loop.create_future()
        self._installing = store, done
        self._pump()
        return await done

    @contextmanager
    def applying_nothing(self) -> Iterator[None]:
        """In the block the engine's state stays as it is, but for the installation of a snapshot."""
        with self._applying.stopped():
            yield
        self._schedule()

    async def flush(self) -> None:
        """Returns when what was applied before the call is on disk. A failure ends the process."""
        async with self._flushing:
            try:
                await self._in_thread(self.engine.flush)
            except Exception as error:
                self._fatal(error)

    def receive(self, messages: Sequence[Message]) -> None:
        """Takes messages from the transport."""
        if not self._running:
            return
        try:
            for message in () if self.work.deaf else messages:
                self._core.step(message)
        except Exception as error:
            self._fatal(error)
        self._pump()

    async def read_barrier(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Returns once this node has applied everything that was committed before the call (ReadIndex).

        TimeoutError: a leader is known, but it did not answer or this node did not catch up within `timeout`
        seconds. LeadershipLost: no leader was known at the end, or this node is stopping.
        """
        if not self._running:
            raise LeadershipLost("the node is stopping")
        future: asyncio.Future[None] = self._loop.create_future()
        self._reads.add(future)
        self._schedule()
        await in_time(future, timeout, lambda: self.leader)

    async def wait_applied(self, index: int, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        """Returns once log index `index` is applied here. TimeoutError or LeadershipLost as `read_barrier`."""
        if self.applied_index >= index:
            return
        if not self._running:
            raise LeadershipLost("the node is stopping")
        future: asyncio.Future[None] = self._loop.create_future()
        self._reads.until(index, future, self.applied_index)
        await in_time(future, timeout, lambda: self.leader)

    async def wait_role(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Returns at the next change of role, term, leader or readiness. TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            await self._role_waiters.wait()

    async def transfer_leader(self, to_node: int = 0, timeout: float | None = None) -> int:  # noqa: ASYNC109
        """Hands leadership to `to_node` (0: the voter that is furthest); returns the new leader's id.

        0: somebody else was called on to lead, and this node is no voter any more, so that it may never hear who.
        NotLeader; LookupError: no such voter; TimeoutError: nobody took over within `timeout` seconds (default:
        two election timeouts).
        """
        if self.role is not Role.LEADER:
            raise NotLeader(f"node {self.node_id} does not lead")
        if to_node == self.node_id:
            return to_node
        voters = self.membership.voters
        if to_node and to_node not in voters:
            raise LookupError(f"node {to_node} is no voter of this cluster")
        if not voters - {self.node_id}:
            raise LookupError("there is no other voter")
        if timeout is None:
            timeout = 2 * self.config.election_ticks * self._tick_seconds
        self._core.transfer_leader(to_node)
        self._schedule()
        async with asyncio.timeout(timeout):
            while self.leader in (0, self.node_id):
                if self.role is not Role.LEADER and not self.membership.has_vote(self.node_id):
                    return 0
                await self.wait_role()
        return self.leader

    # ---- the loop ------------------------------------------------------------------------------------

    def _schedule_tick(self) -> None:
        self._tick_due = self._loop.time() + self._tick_seconds
        self._tick_handle = self._loop.call_at(self._tick_due, self._tick)

    def _tick(self) -> None:
        if self._observer is not None:
            self._observer.lagged(max(0.0, self._loop.time() - self._tick_due))
        self._reads.tick()
        try:
            self._core.tick()
        except Exception as error:
            self._fatal(error)
        self._pump()
        # From now, not from when this one was due: a loop that was held up must not make up for it with a burst
        # of ticks, which would look like silence of a leader whose messages wait behind them.
        if self._running:
            self._schedule_tick()

    def _schedule(self) -> None:
        """Pumps once more in this turn of the loop, after all that is already queued in it."""
        if not self._pump_scheduled and self._running:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump_later)

    def _pump_later(self) -> None:
        self._pump_scheduled = False
        if self._running:
            self._pump()

    def _pump(self) -> None:
        if self._pumping:  # called from a listener: after the one that runs
            self._schedule()
            return
        self._pumping = True
        try:
            request = self._reads.next_request()
            if request:
                self._core.read_index(request)
            self._carry_out(self._core.take_output(apply=self._applying.ready))
        except Exception as error:
            self._fatal(error)
        finally:
            self._pumping = False

    def _carry_out(self, output: Output) -> None:
        for message in output.send:
            self._transport.send(message)
        for persist in output.persist:
            self.work.queued(persist)
            self._writer.put(persist)
        # Applied before the role's listeners hear that leadership is gone: what was committed is answered so.
        applied = self._apply(output.apply)
        if output.role is not None:
            self._role(output.role)
        if output.membership is not None:
            for listener in self.on_membership:
                listener(output.membership)
        if output.fetch is not None:
            for wanted in self.on_fetch:
                wanted(output.fetch)
        self._reads.confirmed(output.reads, self.applied_index)
        self._reads.lost(output.reads_lost)
        if applied:
            self._schedule()  # the loop gets its turn in between

    def _durable(self, batch: list[Persist]) -> None:
        self.work.durable(batch)
        try:
            if any(persist.snapshot is not None for persist in batch):
                self._installed()
            self._core.persisted(batch[-1].ticket)
        except Exception as error:
            self._fatal(error)
        for persist in batch:
            for message in persist.then_send:
                self._transport.send(message)
        if self._running:
            self._pump()

    def _installed(self) -> None:
        """The log begins behind the snapshot: what is read and applied from here on is its state."""
        if self._installing is None:
            raise RuntimeError("a snapshot is in the log that nobody has handed in")
        (store, done), self._installing = self._installing, None
        self._applying.forget()
        old = self.engine.adopt(store)
        log.info("installed a snapshot", extra={"applied_index": self.applied_index})
        for listener in self.on_installed:
            listener()
        self._reads.applied(self.applied_index)
        if not done.done():
            done.set_result(old)

    def _apply(self, entries: Sequence[Entry]) -> bool:
        """A turn of applying; True: there may be another one at once."""
        begin = self._clock()
        applied = self._applying.turn(entries)
        if not applied:
            return False
        for listener in self.on_applied:
            listener(applied)
        if self._observer is not None:
            self._observer.applied_batch(
                self._clock() - begin,
                sum(1 for _, outcome in applied if outcome.tid and not outcome.repeated),
            )
        done = self.engine.applied_index
        self.work.applied(done)
        self._reads.applied(done)
        if self._core.role is Role.LEADER and self._ready_term != self._core.term:
            term = self._core.term
            if any(entry.kind is EntryKind.NOOP and entry.term == term for entry, _ in applied):
                self._ready_term = term
                log.info("leads", extra={"applied_index": done})
                for ready in self.on_ready:
                    ready()
                self._role_waiters.wake()
        return True

    def _role(self, change: RoleChange) -> None:
        log.info("now %s", change.role.value, extra={"leader": change.leader})
        self.work.lost_leadership()
        if self._observer is not None:
            self._observer.role_changed()
        for listener in self.on_role:
            listener(change)
        self._role_waiters.wake()
