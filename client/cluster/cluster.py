"""A client's view of one cluster: streams to all replicas, calls that survive a failover, one feed of changes.

Threads call the methods of `Cluster`; everything behind them happens in the process's client loop (loop.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from raftstorage.proto import storage_pb2 as pb

from . import policy
from .addresses import parse_addresses
from .connection import Connection
from .errors import (
    ClientDisconnected,
    ClusterError,
    CommitOutcomeUnknown,
    ProtocolMismatch,
    RequestRefused,
    WrongCluster,
)
from .feed import Z64, Feed
from .loop import Waiter, in_loop_thread, run_in_loop, shared_loop
from .metrics import Metrics
from .policy import Call, Flow, Signal
from .runner import Running

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
CHECK_SECONDS = 0.5
QUORUM_SECONDS = 5.0  # how long an opening client waits for a leader before it makes do with what it reached
DELIVERY_SECONDS = 60.0  # how long changes that were accepted may take to be delivered


class Cluster:
    """`addresses`: of some nodes, host:port; the others are learnt. Times are in seconds.

    `wait_timeout`: how long a call waits for a replica or a leader before ClientDisconnected. `commit_timeout`:
    how long the outcome of a commit that was sent is asked for before CommitOutcomeUnknown.
    """

    def __init__(
        self,
        addresses: str | Iterable[str],
        *,
        name: str,
        read_only: bool = False,
        wait_timeout: float = 30.0,
        commit_timeout: float = 60.0,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.addresses = parse_addresses(addresses)
        self.metrics = Metrics(name, registry)
        self.feed = Feed()
        self.wait_timeout = wait_timeout
        self.commit_timeout = commit_timeout
        self.cluster_id = ""
        self.limits = pb.Welcome()
        self._name = name
        self._read_only = read_only
        self._client_id = uuid.uuid4().hex
        self._loop = shared_loop()
        self._random = random.Random()
        self._book = policy.Book()
        self._connections: dict[str, Connection] = {}
        self._running: set[Running] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._checker: asyncio.TimerHandle | None = None
        self._started = False  # the feed has its first tid
        self._refused: dict[str, ClusterError] = {}  # by address: will not talk to us until an operator acts
        self._closed = False
        self._news = threading.Event()  # a replica was reached, or refused us: for open()

    # ---- life ------------------------------------------------------------------------------------------

    def open(self, *, patience: float) -> None:
        """Connects; returns when the snapshot to start from is known.

        That is what a quorum has committed (ReadIndex), so that commits acknowledged to anyone before are seen.
        Without a quorum, after a short wait: what the most advanced replica in reach has. ClientDisconnected when
        no replica was reached in `patience` seconds; WrongCluster and ProtocolMismatch at once.
        """
        deadline = time.monotonic() + patience
        run_in_loop(self._start)
        try:
            while True:
                self._news.clear()
                if run_in_loop(self._book.connected):
                    break
                if len(self._refused) == len(self._connections):
                    raise next(iter(self._refused.values()))
                if not self._news.wait(max(0.0, deadline - time.monotonic())):
                    raise ClientDisconnected(f"no node could be reached: {', '.join(self.addresses)}")
            wait = max(0.2, min(QUORUM_SECONDS, deadline - time.monotonic()))
            try:
                tid = self.read_point(wait)
            except ClientDisconnected:
                log.warning("no leader answered: starting from what the replicas in reach have applied")
                tid = Z64
            self.feed.start(run_in_loop(lambda: self._begin(tid)), self._name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends all streams; calls that wait get ClientDisconnected. Again: does nothing."""
        self.feed.close()
        for task in run_in_loop(self._stop):
            asyncio.run_coroutine_threadsafe(task, self._loop).result(10.0)

    def _start(self) -> None:
        for address in self.addresses:
            self._connect(address)
        self._check()

    def _begin(self, tid: bytes) -> bytes:
        """The first tid: at least what was read, and what any stream that is open starts behind."""
        connected = self._book.connected()
        if not connected and tid == Z64:
            raise ClientDisconnected("the last replica in reach was lost")
        self.feed.accepted = max([tid, *(replica.applied for replica in connected)])
        self._started = True
        return self.feed.accepted

    def _stop(self) -> list[Coroutine[Any, Any, None]]:
        if self._closed:
            return []
        self._closed = True
        if self._checker is not None:
            self._checker.cancel()
        for running in list(self._running):
            running.fail(ClientDisconnected("the storage is closed"))
        connections = list(self._connections.values())
        self._connections.clear()
        return [connection.close() for connection in connections]

    def _connect(self, address: str) -> None:
        connection = Connection(self._book.add(address), self, self._random)
        self._connections[address] = connection
        connection.start()

    def _check(self) -> None:
        now = self._loop.time()
        for connection in self._connections.values():
            connection.check(now)
        self._checker = self._loop.call_later(CHECK_SECONDS, self._check)

    # ---- what connections tell (loop's thread) --------------------------------------------------------------

    def hello(self) -> pb.Hello:
        return pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            client_id=self._client_id,
            cluster_id=self.cluster_id,
            after_tid=self.feed.accepted if self._started else b"",
            read_only=self._read_only,
        )

    def up(self, connection: Connection, welcome: pb.Welcome) -> None:
        address = connection.replica.address
        if welcome.protocol_version != PROTOCOL_VERSION:
            raise ProtocolMismatch(
                f"{address} speaks version {welcome.protocol_version}, this is {PROTOCOL_VERSION}"
            )
        if self.cluster_id and welcome.cluster_id != self.cluster_id:
            raise WrongCluster(f"{address} belongs to cluster {welcome.cluster_id}, not to {self.cluster_id}")
        if self._started and not connection.after_tid and welcome.last_tid > self.feed.accepted:
            raise EOFError(
                f"the stream to {address} begins behind a gap"
            )  # dialled again with the tid that it needs
        self._refused.pop(address, None)
        self.cluster_id = welcome.cluster_id
        self.limits = welcome
        self._drop_twin(connection.replica)
        self._learn(welcome.leader)
        self._tell_all()

    def down(self, connection: Connection, error: BaseException | None) -> None:
        if isinstance(error, ProtocolMismatch | WrongCluster):
            self._refused[connection.replica.address] = error
        if not self._closed:
            self.metrics.disconnects.inc()
        self._tell_all()

    def event(self, connection: Connection, event: pb.Event) -> None:
        kind = event.WhichOneof("kind")
        if kind == "invalidations":
            self._invalidated(connection, event.invalidations)
        elif kind == "leader":
            if self._learn(event.leader):
                self._tell_all()
        elif kind == "failure" and event.failure.reason == pb.NOT_LEADER and self._learn(event.failure.leader):
            self._tell_all()

    def _invalidated(self, connection: Connection, news: pb.Invalidations) -> None:
        replica = connection.replica
        for one in news.transactions:
            replica.applied = max(replica.applied, one.tid)
            if self._started:
                self.feed.accept(one.tid, one.oids)

    def _learn(self, leader: pb.Leader) -> bool:
        known = {replica.node_id for replica in self._book.replicas.values()}
        for member in leader.members:
            if member.node_id not in known and member.address and member.address not in self._connections:
                try:
                    (address,) = parse_addresses(member.address)
                except ValueError:
                    log.warning("node %d has an address that cannot be used: %r", member.node_id, member.address)
                    continue
                if address not in self._connections and not self._closed:
                    self._connect(address)
        before = self._book.leader_id
        changed = self._book.learn_leader(leader)
        if changed:
            self.metrics.leader.set(self._book.leader_id)
            if self._book.leader_id and before != self._book.leader_id and self._started:
                self.metrics.failovers.inc()
        return changed

    def _drop_twin(self, replica: policy.Replica) -> None:
        """One node may have been named (localhost) and learnt (127.0.0.1): the named address is kept."""
        for other in list(self._book.connected()):
            if other is not replica and other.node_id == replica.node_id:
                twin = other if replica.address in self.addresses else replica
                if twin.address not in self.addresses:
                    del self._book.replicas[twin.address]
                    task = self._loop.create_task(self._connections.pop(twin.address).close())
                    self._closing.add(task)
                    task.add_done_callback(self._closing.discard)

    def _tell_all(self) -> None:
        self._news.set()
        for running in list(self._running):
            running.tell(Signal.CHANGED)

    # ---- calls (any thread but the loop's) --------------------------------------------------------------

    def _run(self, name: str, flow: Flow) -> tuple[pb.Event, str]:
        """Drives a flow to its end: its answer, and the address it came from. Failures raise RequestRefused."""
        if in_loop_thread():
            raise RuntimeError("a storage must not be used in the client's loop thread")
        waiter: Waiter[tuple[pb.Event, str]] = Waiter()
        begun = time.perf_counter()
        self._loop.call_soon_threadsafe(self._launch, flow, waiter)
        event, address = waiter.wait(None)  # every flow has a deadline
        self.metrics.observe(name, time.perf_counter() - begun)
        if event.HasField("failure"):
            raise RequestRefused(event.failure)
        return event, address

    def _launch(self, flow: Flow, waiter: Waiter[tuple[pb.Event, str]]) -> None:
        if self._closed:
            flow.close()
            waiter.set_error(ClientDisconnected("the storage is closed"))
            return
        running = Running(self._loop, self._connections, flow, waiter, self._running.discard)
        self._running.add(running)
        running.start()

    def _retrying(self, name: str) -> Callable[[], None]:
        return lambda: self.metrics.retry(name)

    def read(self, call: Call, at_least: bytes = Z64, timeout: float | None = None) -> pb.Event:
        """A call that any replica answers which has applied `at_least`."""
        deadline = time.monotonic() + (self.wait_timeout if timeout is None else timeout)
        flow = policy.read(
            self._book, call, at_least, deadline, time.monotonic, self._random, retry=self._retrying(call.kind)
        )
        return self._run(call.kind, flow)[0]

    def read_point(self, timeout: float | None = None) -> bytes:
        """The newest tid that was committed before this call (ReadIndex). Changes up to it are accepted."""
        deadline = time.monotonic() + (self.wait_timeout if timeout is None else timeout)
        call = Call("read_barrier", pb.ReadBarrier())
        flow = policy.read(
            self._book,
            call,
            Z64,
            deadline,
            time.monotonic,
            self._random,
            leader_first=True,
            retry=self._retrying(call.kind),
        )
        return self._run(call.kind, flow)[0].read_point.last_tid

    def lead(self, call: Call, timeout: float | None = None) -> tuple[pb.Event, str]:
        """A call for the leader that changes nothing lasting (Vote, AllocateOids): answer, and who answered."""
        deadline = time.monotonic() + (self.wait_timeout if timeout is None else timeout)
        flow = policy.lead(
            self._book, call, deadline, time.monotonic, self._random, retry=self._retrying(call.kind)
        )
        return self._run(call.kind, flow)

    def commit(self, transaction_id: bytes, body: bytes, *, voted_at: str = "") -> bytes:
        """The tid of the transaction, committed exactly once. `voted_at`: the address of the leader that holds its
        vote, which is asked to finish it first.

        RequestRefused for a definite refusal; ClientDisconnected when it was never sent; CommitOutcomeUnknown.
        """
        commit = Call("commit", pb.Commit(transaction_id=transaction_id, transaction=body))
        call = Call("finish", pb.Finish(transaction_id=transaction_id)) if voted_at else commit
        flow = policy.lead(
            self._book,
            call,
            time.monotonic() + self.commit_timeout,
            time.monotonic,
            self._random,
            again=commit,
            start_at=voted_at,
            committing=True,
            retry=self._retrying(call.kind),
        )
        try:
            event, _ = self._run(call.kind, flow)
        except CommitOutcomeUnknown as unknown:
            unknown.transaction_id, unknown.body = transaction_id, body
            raise
        self.metrics.commits.inc()
        return event.committed.tid

    def tell(self, address: str, call: Call) -> None:
        """Sends to `address`, or to the leader if it is empty, and waits for nothing; needs an open stream."""

        def send() -> None:
            leader = self._book.leader()
            connection = self._connections.get(address or (leader.address if leader is not None else ""))
            if connection is not None:
                connection.send(call, None)

        self._loop.call_soon_threadsafe(send)

    def post(self, address: str, call: Call) -> Waiter[pb.Event | None]:
        """Sends to that replica only; the answer, or None when the stream was lost. For calls sent in order."""
        waiter: Waiter[pb.Event | None] = Waiter()

        def send() -> None:
            connection = self._connections.get(address)
            if connection is None or not connection.send(call, waiter.set_result):
                waiter.set_result(None)

        self._loop.call_soon_threadsafe(send)
        return waiter

    def leader_address(self) -> str | None:
        """The address of the leader if there is a stream to it."""

        def find() -> str | None:
            leader = self._book.leader()
            return leader.address if leader is not None and leader.connected else None

        return run_in_loop(find)
