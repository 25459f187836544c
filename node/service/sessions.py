"""The Storage service: sessions of clients."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from raftstorage.node.driver import Driver, LeadershipLost
from raftstorage.node.engine.api import Applied, EngineError
from raftstorage.node.failures import failed, failure
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import Entry, Role, RoleChange
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.reads import CALLS, Reads
from raftstorage.node.service.replies import Answer
from raftstorage.node.service.session import ClientSession
from raftstorage.node.service.streams import HELLO_SECONDS, let_finish
from raftstorage.node.service.validation import (
    MAX_BATCH,
    SessionLimits,
    check_hello,
    check_request,
    parse_transaction,
)
from raftstorage.node.transactions import Coordinator, CoordinatorLimits
from raftstorage.proto import PROTOCOL_VERSION, storage_pb2_grpc
from raftstorage.proto import storage_pb2 as pb

__all__ = ["SessionLimits", "StorageService"]

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[pb.RequestBatch, pb.EventBatch]"

TICK_SECONDS = 0.05
#: How long a write may wait for a new leader to have applied what came before it, in seconds.
READY_PATIENCE = 1.0
#: Transactions in one event while a client catches up with invalidations.
CATCH_UP_PAGE = 1000
#: After this many requests in a row the loop gets its turn.
FAIR_SHARE = 64
MAX_BARRIERS = 1024


def _now() -> float:
    """Seconds of the loop's clock, which nobody sets."""
    return asyncio.get_running_loop().time()


class StorageService(storage_pb2_grpc.StorageServicer):
    """One for each node. Listens to the driver from the start; `close` ends all sessions.

    `clock`: seconds since the epoch; tids are near it.
    """

    def __init__(
        self,
        driver: Driver,
        identity: NodeIdentity,
        limits: SessionLimits,
        metrics: NodeMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._identity = identity
        self._limits = limits
        self._metrics = metrics
        self._sessions: dict[ClientSession, None] = {}  # in the order they came
        self._handlers: set[asyncio.Task[None]] = set()
        self._reads = Reads(driver.engine, driver.fail)
        self._coordinator = Coordinator(
            driver.engine,
            driver.propose,
            lambda: driver.term,
            clock,
            limits.lease_ms / 1000,
            CoordinatorLimits(waiting=limits.waiting_votes),
        )
        self._led_term = 0
        #: Writes for a leader that is not ready yet: deadline, session, request, call.
        self._unready: deque[tuple[float, ClientSession, pb.Request, str]] = deque()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._stopping = False
        driver.on_applied.append(self._applied)
        driver.on_role.append(self._role)
        driver.on_ready.append(self._ready)

    async def close(self) -> None:
        """Ends every session with UNAVAILABLE and returns when they are gone."""
        self._stopping = True
        for session in self._sessions:
            session.end(grpc.StatusCode.UNAVAILABLE, "the node is going down")
        if self._handlers:
            await asyncio.wait(self._handlers)
        if self._tick_handle is not None:
            self._tick_handle.cancel()

    # ---- what the driver tells -----------------------------------------------------------------------

    def _applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        """Queues invalidations on every session before anything that shows what was applied."""
        for _entry, outcome in entries:
            if outcome.tid is None or outcome.repeated:
                continue
            one = pb.Invalidation(tid=outcome.tid, oids=outcome.oids)
            event = pb.Event(invalidations=pb.Invalidations(transactions=[one]))
            size = event.ByteSize()
            for session in self._sessions:
                if session.live and outcome.tid > session.after:
                    session.put(event, size)
        self._reads.applied()
        self._coordinator.applied(entries, _now())

    def _role(self, change: RoleChange) -> None:
        leads = change.role is Role.LEADER
        if not leads or change.term != self._led_term:
            self._coordinator.lost_leadership()
        self._led_term = change.term if leads else 0
        if not leads:
            self._serve_unready()
        self._tell_leader()

    def _ready(self) -> None:
        self._coordinator.became_ready()
        self._serve_unready()
        self._tell_leader()

    def _tell_leader(self) -> None:
        event = pb.Event(leader=self._leader())
        for session in self._sessions:
            if session.live:
                session.put(event)

    def _leader(self) -> pb.Leader:
        node, members = self._driver.leader, self._identity.members
        return pb.Leader(
            term=self._driver.term,
            node_id=node,
            address=members.get(node, ""),
            members=[pb.Member(node_id=member, address=members[member]) for member in sorted(members)],
        )

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
        self._reads.tick(now)
        while self._unready and self._unready[0][0] <= now:
            _deadline, session, request, call = self._unready.popleft()
            self._not_leader(session, request, call)

    # ---- a stream ------------------------------------------------------------------------------------

    async def Session(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterator[pb.RequestBatch], context: Context
    ) -> None:
        """Serves one client until it goes, misbehaves, or the node stops."""
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the node is going down")
        if self._tick_handle is None:
            self._tick()
        session = ClientSession(self._limits)
        handler = asyncio.current_task()
        if handler is not None:
            self._handlers.add(handler)
            handler.add_done_callback(self._handlers.discard)
        self._sessions[session] = None
        self._metrics.sessions.inc()
        reader = asyncio.create_task(self._read(session, request_iterator))
        writer = asyncio.create_task(session.write(context))
        greeting = asyncio.get_running_loop().call_later(HELLO_SECONDS, session.expect_greeting)
        try:
            ends: list[asyncio.Future[Any]] = [reader, writer, session.ended]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            session.close()
            await let_finish(writer)
        finally:
            greeting.cancel()
            self._forget(session)
            reader.cancel()
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
        self._unready = deque(item for item in self._unready if item[1] is not session)
        with self._damage_is_fatal():
            self._coordinator.session_closed(session, _now())

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
                if handled % FAIR_SHARE == 0:
                    await asyncio.sleep(0)
                await session.room()

    async def _greet(self, session: ClientSession, request: pb.Request) -> bool:
        """Answers the Hello and catches up; False: refused."""
        hello = request.hello
        problem = check_hello(request)
        status = grpc.StatusCode.INVALID_ARGUMENT
        if problem is None and hello.protocol_version != PROTOCOL_VERSION:
            status = grpc.StatusCode.UNIMPLEMENTED
            text = f"this node speaks protocol {PROTOCOL_VERSION}, not {hello.protocol_version}"
            problem = failure(pb.PROTOCOL_MISMATCH, text)
        elif problem is None and hello.cluster_id not in ("", self._identity.cluster_id):
            status = grpc.StatusCode.FAILED_PRECONDITION
            text = f"this node belongs to cluster {self._identity.cluster_id}, not to {hello.cluster_id}"
            problem = failure(pb.WRONG_CLUSTER, text)
        if problem is not None:
            session.put(pb.Event(id=request.id, failure=problem))
            await session.written()
            session.end(status, problem.message)
            return False
        session.read_only = hello.read_only
        session.after = hello.after_tid or self._engine.last_tid
        welcome = pb.Welcome(
            protocol_version=PROTOCOL_VERSION,
            cluster_id=self._identity.cluster_id,
            node_id=self._identity.node_id,
            last_tid=self._engine.last_tid,
            leader=self._leader(),
            max_record_bytes=self._limits.max_record_bytes,
            max_transaction_bytes=self._limits.max_transaction_bytes,
            lease_ms=self._limits.lease_ms,
        )
        term, leader = self._driver.term, self._driver.leader
        session.put(pb.Event(id=request.id, welcome=welcome))
        while session.after < self._engine.last_tid:
            page = self._engine.changed_since(session.after, CATCH_UP_PAGE)
            if not page:
                break
            changes = [pb.Invalidation(tid=tid, oids=oids) for tid, oids in page]
            session.put(pb.Event(invalidations=pb.Invalidations(transactions=changes)))
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
        answer = Answer(session, request.id, call, self._metrics, self._leader)
        try:
            problem = check_request(request)
            if problem is not None:
                answer(pb.Event(failure=problem))
            elif call in CALLS:
                return self._reads.read(request, call, _now(), answer)
            elif call == "read_barrier":
                self._barrier(session, answer)
            else:
                self._write(session, request, call, answer)
        except EngineError:
            raise
        except Exception:
            log.exception("a request failed", extra={"call": call})
            answer(failed(pb.INTERNAL, "the node failed at this request; its log says why"))
        return None

    def _barrier(self, session: ClientSession, answer: Answer) -> None:
        if len(session.tasks) >= MAX_BARRIERS:
            answer(failed(pb.BUSY, f"{MAX_BARRIERS} barriers are waiting already"))
            return
        task = asyncio.create_task(self._await_barrier(answer))
        session.tasks.add(task)
        task.add_done_callback(session.tasks.discard)

    async def _await_barrier(self, answer: Answer) -> None:
        try:
            await self._driver.read_barrier()
        except LeadershipLost as error:
            answer(failed(pb.NOT_LEADER, str(error)))
        except TimeoutError:
            answer(failed(pb.BUSY, "no answer from the leader in time; try again"))
        except Exception:
            log.exception("a read barrier failed")
            answer(failed(pb.INTERNAL, "the node failed at this request; its log says why"))
        else:
            answer(pb.Event(read_point=pb.ReadPoint(last_tid=self._engine.last_tid)))

    def _write(self, session: ClientSession, request: pb.Request, call: str, answer: Answer) -> None:
        leads = self._driver.role is Role.LEADER
        if session.read_only and call != "abort":
            answer(failed(pb.READ_ONLY, "the session is read-only"))
        elif self._driver.is_ready_leader:
            self._coordinate(session, request, call, answer)
        elif leads and len(self._unready) < self._limits.waiting_votes:
            deadline = _now() + READY_PATIENCE
            self._unready.append((deadline, session, request, call))
        elif leads:
            answer(failed(pb.BUSY, "too many requests wait for this leader to be ready"))
        else:
            self._not_leader(session, request, call)

    def _coordinate(self, session: ClientSession, request: pb.Request, call: str, answer: Answer) -> None:
        now = _now()
        match call:
            case "vote" | "commit":
                asked = request.vote if call == "vote" else request.commit
                body = asked.transaction
                parsed = parse_transaction(body, self._limits)
                if isinstance(parsed, pb.Failure):
                    answer(pb.Event(failure=parsed))
                elif call == "vote":
                    self._coordinator.vote(session, asked.transaction_id, parsed, body, now, answer)
                else:
                    self._coordinator.commit(session, asked.transaction_id, parsed, body, now, answer)
            case "finish":
                self._coordinator.finish(request.finish.transaction_id, now, answer)
            case "abort":
                self._coordinator.abort(request.abort.transaction_id, now)
                answer(pb.Event(aborted=pb.Aborted()))
            case "allocate_oids":
                self._coordinator.allocate_oids(request.allocate_oids.count, answer)
            case _:
                raise AssertionError(f"no handler for {call}")
        answer.later = True

    def _not_leader(self, session: ClientSession, request: pb.Request, call: str) -> None:
        answer = Answer(session, request.id, call, self._metrics, self._leader)
        if call == "abort":  # who does not lead holds no votes
            answer(pb.Event(aborted=pb.Aborted()))
        else:
            answer(failed(pb.NOT_LEADER, "this node does not lead"))

    def _serve_unready(self) -> None:
        """Leadership is gone, or the leader is ready: handles what waited, in its order."""
        waiting, self._unready = self._unready, deque()
        for _deadline, session, request, _call in waiting:
            self._handle(session, request)
