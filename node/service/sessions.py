"""The Storage service: sessions of clients."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from raftstorage.node.admission import Amount, Bounds
from raftstorage.node.disk_space import Room
from raftstorage.node.driver import Driver
from raftstorage.node.engine.api import Applied, EngineError
from raftstorage.node.failures import failed
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import Entry, Role, RoleChange
from raftstorage.node.service import queues
from raftstorage.node.service.barriers import Barriers
from raftstorage.node.service.gate import Gate, restored, weight
from raftstorage.node.service.greeting import leader_message, welcome_message
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.packs import Packs
from raftstorage.node.service.reads import CALLS, Reads
from raftstorage.node.service.replies import Answer
from raftstorage.node.service.session import ClientSession
from raftstorage.node.service.streams import HELLO_SECONDS, WRITE_SECONDS, let_finish
from raftstorage.node.service.telling import tell
from raftstorage.node.service.transacting import Transacting, coordinator_limits
from raftstorage.node.service.unready import UNREADY_BYTES, Unready
from raftstorage.node.service.validation import MAX_BATCH, SessionLimits, check_hello, check_request, fits
from raftstorage.node.transactions import Coordinator
from raftstorage.node.versions import VERSIONS, Versions, agreed
from raftstorage.proto import storage_pb2 as pb
from raftstorage.proto import storage_pb2_grpc
from raftstorage.proto.versions import spoken

__all__ = ["SessionLimits", "StorageService"]

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[pb.RequestBatch, pb.EventBatch]"

TICK_SECONDS = 0.05
#: Transactions in one event while a client catches up with invalidations.
CATCH_UP_PAGE = 1000
#: After this many requests in a row the loop gets its turn.
FAIR_SHARE = 64
STATUS = {code.value[0]: code for code in grpc.StatusCode}


def _now() -> float:
    """Seconds of the loop's clock, which nobody sets."""
    return asyncio.get_running_loop().time()


class StorageService(storage_pb2_grpc.StorageServicer):
    """One for each node. Listens to the driver from the start; `close` ends all sessions.

    `clock`: seconds since the epoch; tids are near it. `bounds`: how much a leader takes on. `room`: of the disk.
    `level()`: the feature level that the log may use now. `work_clock`: seconds, for slices of work at packs.
    """

    def __init__(
        self,
        driver: Driver,
        identity: NodeIdentity,
        limits: SessionLimits,
        metrics: NodeMetrics,
        clock: Callable[[], float] = time.time,
        bounds: Bounds | None = None,
        room: Callable[[], Room] = lambda: Room.AMPLE,
        versions: Versions = VERSIONS,
        level: Callable[[], int] = lambda: 0,
        work_clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._identity = identity
        self._limits = limits
        self._metrics = metrics
        self._versions = versions
        self._level = level
        self._sessions: dict[ClientSession, None] = {}  # in the order they came
        self._handlers: set[asyncio.Task[None]] = set()
        self._reads = Reads(driver.engine, driver.fail)
        self._coordinator = Coordinator(
            driver.engine,
            driver.propose,
            lambda: driver.term,
            clock,
            limits.lease_ms / 1000,
            coordinator_limits(limits),
            propose_many=driver.propose_many,
        )
        self._transacting = Transacting(self._coordinator, limits, self._damage_is_fatal, driver, clock, level)
        uploads = self._transacting.uploads
        self._led_term = 0
        bounds = bounds or Bounds()
        self._gate = Gate(driver, self._coordinator, limits, bounds, room, uploads)
        self._barriers = Barriers(driver)
        self._unready = Unready(Amount(limits.waiting_votes, UNREADY_BYTES))
        watched = (self._sessions, self._reads, self._barriers, self._unready, uploads)
        queues.watch(metrics, driver, self._coordinator, *watched, limits, bounds)
        self._tick_handle: asyncio.TimerHandle | None = None
        self._stopping = False
        driver.on_applied.append(self._applied)
        driver.on_role.append(self._role)
        driver.on_ready.append(self._ready)
        driver.on_membership.append(lambda membership: self._tell_leader())
        driver.on_installed.append(self._installed)
        self._packs = Packs(driver, level, clock, self._damage_is_fatal, work_clock)
        metrics.watch_packing(self.pack_state)

    async def close(self) -> None:
        """Ends every session with UNAVAILABLE and returns when they are gone.

        A client that takes nothing does not hear of it: the server's own end is for that one.
        """
        self._stopping = True
        self._packs.close()
        for session in self._sessions:
            session.end(grpc.StatusCode.UNAVAILABLE, "the node is going down")
        if self._handlers:
            await asyncio.wait(self._handlers, timeout=2 * WRITE_SECONDS)
        if self._tick_handle is not None:
            self._tick_handle.cancel()

    def pack_state(self) -> pb.PackState:
        """How far this node's newest pack is."""
        return self._packs.packer.state()

    # ---- what the driver tells -----------------------------------------------------------------------

    def _applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        """Queues invalidations on every session before anything that shows what was applied."""
        for _entry, outcome in entries:
            if outcome.tid is None or outcome.repeated:
                continue
            change = outcome.tid, outcome.oids
            tell([change], [each for each in self._sessions if each.live and outcome.tid > each.after])
        self._gate.applied(entries)
        self._reads.applied()
        self._coordinator.applied(entries, _now())
        self._transacting.applied(entries)

    def _role(self, change: RoleChange) -> None:
        leads = change.role is Role.LEADER
        if not leads or change.term != self._led_term:
            self._coordinator.lost_leadership()
            self._transacting.lost_leadership()
        self._led_term = change.term if leads else 0
        if not leads:
            self._serve_unready()
        self._tell_leader()

    def _ready(self) -> None:
        self._coordinator.became_ready()
        self._serve_unready()
        self._tell_leader()

    def _installed(self) -> None:
        """What a snapshot brought was never told entry by entry: clients come back and ask what they missed."""
        for session in self._sessions:
            session.end(grpc.StatusCode.UNAVAILABLE, "the node was brought up to date by a snapshot")

    def _tell_leader(self) -> None:
        event = pb.Event(leader=self._leader())
        for session in self._sessions:
            if session.live:
                session.put(event)

    def _leader(self) -> pb.Leader:
        return leader_message(self._driver, self._level())

    @contextmanager
    def _damage_is_fatal(self) -> Iterator[None]:
        """Around all that reaches the engine, but for the driver's listeners: the driver sees to those."""
        try:
            yield
        except EngineError as error:
            self._driver.fail(error)

    def _tick(self) -> None:
        self._tick_handle = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)
        now = _now()
        with self._damage_is_fatal():
            self._coordinator.tick(now)
        self._transacting.tick(now)
        self._reads.tick(now)
        self._gate.tick(now)
        for late in self._unready.late(now):
            self._not_leader(late.call, late.answer)

    # ---- a stream ------------------------------------------------------------------------------------

    async def Session(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterator[pb.RequestBatch], context: Context
    ) -> None:
        """Serves one client until it goes, misbehaves, or the node stops."""
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the node is going down")
        if self._tick_handle is None:
            self._tick()
        if len(self._handlers) >= self._limits.sessions:  # those that are ending take memory, too
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {len(self._sessions)} clients already"
            )
        session = ClientSession(self._limits, self._sessions)
        handler = asyncio.current_task()
        if handler is not None:
            self._handlers.add(handler)
            handler.add_done_callback(self._handlers.discard)
        self._sessions[session] = None
        self._metrics.sessions.inc()
        reader = asyncio.create_task(self._read(session, request_iterator))
        writer = asyncio.create_task(self._send(session, context))
        greeting = asyncio.get_running_loop().call_later(HELLO_SECONDS, session.expect_greeting)
        try:
            try:
                ends: list[asyncio.Future[Any]] = [reader, writer, session.ended]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:  # what it held is free before its client hears of it
                greeting.cancel()
                reader.cancel()
                self._forget(session)
            await let_finish(writer)
        finally:
            writer.cancel()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
        for error in results:
            # A stream that broke is the client's affair (cancelled, or a write that could not be done).
            if isinstance(error, DecodeError):
                session.end(grpc.StatusCode.INVALID_ARGUMENT, "what the client sent is not a RequestBatch")
            elif isinstance(error, Exception) and not isinstance(error, grpc.RpcError | grpc.aio.UsageError):
                log.warning("a session ended by an error", exc_info=error)
                session.end(grpc.StatusCode.INTERNAL, "the node failed at this session; its log says why")
        if session.ended.done():
            code, message = session.ended.result()
            await context.abort(code, message)

    def _forget(self, session: ClientSession) -> None:
        session.close()
        self._sessions.pop(session, None)
        self._metrics.sessions.dec()
        for task in session.tasks:
            task.cancel()
        self._unready.forget(session)
        self._gate.forget(session)
        self._transacting.closed(session)
        with self._damage_is_fatal():
            self._coordinator.session_closed(session, _now())

    async def _send(self, session: ClientSession, context: Context) -> None:
        with self._damage_is_fatal():  # large changes are read when they are sent
            await session.write(context)

    async def _read(self, session: ClientSession, batches: AsyncIterator[pb.RequestBatch]) -> None:
        with self._damage_is_fatal():
            await self._serve(session, batches)

    async def _serve(self, session: ClientSession, batches: AsyncIterator[pb.RequestBatch]) -> None:
        handled = 0
        async for batch in batches:
            if len(batch.requests) > MAX_BATCH:
                session.end(grpc.StatusCode.INVALID_ARGUMENT, f"more than {MAX_BATCH} requests in a batch")
                return
            for request in batch.requests:
                if session.greeted:
                    long_read = self._handle(session, request)
                    if long_read is not None:
                        await long_read
                elif not await self._greet(session, request):
                    return
                session.greeted = True
                handled += 1
                if handled % FAIR_SHARE == 0 or request.HasField("part"):
                    await asyncio.sleep(0)
                await session.room()

    async def _greet(self, session: ClientSession, request: pb.Request) -> bool:
        """Answers the Hello and catches up; False: refused."""
        hello = request.hello
        speaks = self._versions.protocol
        session.protocol = agreed(speaks, spoken(hello.protocol_version, hello.min_protocol_version)) or 0
        problem = check_hello(request) or fits(hello, self._identity.cluster_id, speaks)
        if problem is not None:
            session.put(pb.Event(id=request.id, failure=problem))
            await session.written()
            session.end(STATUS[problem.code], problem.message)
            return False
        session.read_only, session.takes_pages = hello.read_only, hello.takes_pages
        session.after = hello.after_tid or self._engine.last_tid
        welcome = welcome_message(self._driver, self._identity.cluster_id, self._limits, speaks, self._level())
        term, leader = self._driver.term, self._driver.leader
        session.put(pb.Event(id=request.id, welcome=welcome))
        while session.after < self._engine.last_tid:
            page = self._engine.changed_since(session.after, CATCH_UP_PAGE)
            if not page:
                break
            tell(page, [session])
            session.after = page[-1][0]
            await asyncio.sleep(0)
            await session.room()
        session.live = True  # nothing was applied since the last page: no await in between
        if (term, leader) != (self._driver.term, self._driver.leader):
            session.put(pb.Event(leader=self._leader()))
        return True

    # ---- requests ------------------------------------------------------------------------------------

    def _handle(self, session: ClientSession, request: pb.Request) -> asyncio.Future[None] | None:
        """What it returns is to be waited for before the session's next request: one long read at a time."""
        call = request.WhichOneof("call") or ""
        size = weight(request, call)
        answer = Answer(session, request.id, call, self._metrics, self._leader, self._gate, size)
        if session.restores:
            answer.restores = restored(request, call)
        self._gate.begin(session, size, call)
        return self._dispatch(session, request, call, answer)

    def _dispatch(
        self, session: ClientSession, request: pb.Request, call: str, answer: Answer
    ) -> asyncio.Future[None] | None:
        try:
            problem = check_request(request)
            if problem is not None:
                answer(pb.Event(failure=problem))
            elif call in CALLS:
                return self._reads.read(request, call, _now(), answer)
            elif call == "pack_progress":
                answer(pb.Event(pack=self.pack_state()))
            elif call == "read_barrier":
                self._barriers.ask(session, answer)
            else:
                self._write(session, request, call, answer)
        except EngineError:
            raise
        except Exception:
            log.exception("a request failed", extra={"call": call})
            answer(failed(pb.INTERNAL, "the node failed at this request; its log says why"))
        return None

    def _write(self, session: ClientSession, request: pb.Request, call: str, answer: Answer) -> None:
        leads = self._driver.role is Role.LEADER
        if session.read_only and call != "abort":
            answer(failed(pb.READ_ONLY, "the session is read-only"))
        elif call == "part":
            problem = self._transacting.part(session, request.part, leads, _now())
            if problem is not None:
                answer(pb.Event(failure=problem))
        elif self._driver.is_ready_leader:
            self._coordinate(session, request, call, answer)
        elif not leads:
            self._not_leader(call, answer)
        elif not self._unready.add(session, request, call, answer, _now()):
            answer(failed(pb.BUSY, "too many requests wait for this leader to be ready"))

    def _coordinate(self, session: ClientSession, request: pb.Request, call: str, answer: Answer) -> None:
        now = _now()
        refused = self._gate.refusal(session, request, call, answer, now)
        if refused is not None:
            answer(pb.Event(failure=refused))
            return
        match call:
            case "vote" | "commit":
                asked = request.vote if call == "vote" else request.commit
                begin = self._coordinator.vote if call == "vote" else self._coordinator.commit
                if self._transacting.begin(begin, session, asked, now, answer):
                    session.restores = True
                self._gate.began(session, asked.transaction_id, answer)
            case "finish":
                self._coordinator.finish(request.finish.transaction_id, now, answer)
            case "abort":
                self._transacting.aborted(session, request.abort.transaction_id)
                self._coordinator.abort(request.abort.transaction_id, now)
                answer(pb.Event(aborted=pb.Aborted()))
            case "allocate_oids":
                self._coordinator.allocate_oids(request.allocate_oids.count, answer)
            case "pack":
                self._packs.ask(request.pack, answer)
            case "blob_chunk":
                self._transacting.chunk(session, request.blob_chunk, answer)
            case _:
                raise AssertionError(f"no handler for {call}")
        answer.later = True

    def _not_leader(self, call: str, answer: Answer) -> None:
        if call == "abort":  # who does not lead holds no votes
            answer(pb.Event(aborted=pb.Aborted()))
        else:
            answer(failed(pb.NOT_LEADER, "this node does not lead"))

    def _serve_unready(self) -> None:
        """Leadership is gone, or the leader is ready: handles what waited, in its order."""
        for waiting in self._unready.take():
            self._dispatch(waiting.session, waiting.request, waiting.call, waiting.answer)
