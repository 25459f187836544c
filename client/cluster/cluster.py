"""A client's view of one cluster: calls that survive a failover, and one feed of changes, for any thread.

Everything behind them happens in the process's client loop (loop.py, replicas.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Set

from prometheus_client import CollectorRegistry
from raftstorage.proto import PARTS_LEVEL
from raftstorage.proto import storage_pb2 as pb

from .addresses import parse_addresses
from .bodies import Body
from .connection import dial
from .downloads import Sink
from .embedded import Embedded, embedded_directory
from .errors import ClientDisconnected, CommitOutcomeUnknown, EmbeddedError, NotResumed, RequestRefused
from .feed import Feed
from .loop import Arrival, Waiter, in_loop_thread, run_in_loop, shared_loop
from .metrics import Metrics
from .piping import Pipe
from .policy import Z64, Call, Flow, Signal
from .replicas import Replicas, Surroundings
from .runner import Running
from .uploads import Source

log = logging.getLogger(__name__)

QUORUM_SECONDS = 5.0  # how long an opening client waits for a leader before it makes do with what it reached
CATCH_UP_SECONDS = 5.0  # how long a replica may take to apply what it has before we do without it
LEVEL_SECONDS = 5.0  # how long members may take to tell each other what they know
DELIVERY_SECONDS = 60.0  # how long changes that were accepted may take to be delivered


class Cluster:
    """`addresses`: of some nodes, host:port; the others are learnt. Or `embedded:DIR`. Times are in seconds.

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
        directory = embedded_directory(addresses)
        self._embedded = None if directory is None else Embedded(directory, self._node_ended)
        self.addresses = parse_addresses(addresses) if self._embedded is None else (self._embedded.address,)
        self.metrics = Metrics(name, registry)
        self.feed = Feed()
        self.wait_timeout = wait_timeout
        self.commit_timeout = commit_timeout
        self._name = name
        self._read_only = read_only
        self._loop = shared_loop()
        self._news = threading.Event()  # a replica was reached, or refused us: for open()
        self._replicas = Replicas(
            self.addresses,
            Surroundings(self._loop, random.Random(), dial if self._embedded is None else self._embedded.dial),
            self.feed,
            self.metrics,
            client_id=uuid.uuid4().hex,
            read_only=read_only,
            changed=self._news.set,
        )

    @property
    def cluster_id(self) -> str:
        """Empty until a node was reached."""
        return self._replicas.cluster_id

    @property
    def limits(self) -> pb.Welcome:
        """The newest Welcome, with the cluster's limits."""
        return self._replicas.limits

    @property
    def takes_parts(self) -> bool:
        """Whether large transactions may be sent in parts."""
        return self.limits.level >= PARTS_LEVEL

    def reaches(self, level: int) -> bool:
        """Whether all members know that feature level. That of a new cluster is waited for."""
        return self.limits.level >= level or (
            self._run("level", self._replicas.level(level, LEVEL_SECONDS))[0].leader.level >= level
        )

    # ---- life ------------------------------------------------------------------------------------------

    def open(self, *, patience: float, since: bytes | None = None) -> None:
        """Connects; returns when the snapshot to start from is known.

        `since`: the feed delivers all that was changed after this tid first (else: what is changed from now on);
        NotResumed when nobody in reach has come so far.

        That is what a quorum has committed (ReadIndex), so that commits acknowledged to anyone before are seen.
        Without a quorum, after a short wait: what the most advanced replica in reach has. ClientDisconnected when
        no replica was reached in `patience` seconds; WrongCluster and ProtocolMismatch at once. EmbeddedError: the
        directory cannot be used; opening it takes as long as it takes.
        """
        try:
            if self._embedded is not None:
                self._embedded.open(create=not self._read_only)
            deadline = time.monotonic() + patience
            if since is not None:
                run_in_loop(lambda: self._replicas.resume(since))
                self.feed.start(since, self._name)
            run_in_loop(self._replicas.start)
            while True:
                self._news.clear()
                if run_in_loop(self._replicas.book.connected):
                    break
                refused = self._replicas.refused
                if len(refused) == len(self._replicas.connections):
                    raise next(iter(refused.values()))
                if not self._news.wait(max(0.0, deadline - time.monotonic())):
                    raise ClientDisconnected(f"no node could be reached: {', '.join(self.addresses)}")
            wait = max(0.2, min(QUORUM_SECONDS, deadline - time.monotonic()))
            try:
                tid = self.read_point(wait)
            except ClientDisconnected:
                log.warning("no leader answered: starting from what the replicas in reach have applied")
                tid = Z64
            if since is None:
                self.feed.start(run_in_loop(lambda: self._replicas.begin(tid)), self._name)
            else:
                newest = max(tid, run_in_loop(self._replicas.applied))
                if newest < since:
                    raise NotResumed(f"no replica in reach has come to {since.hex()}")
                self.feed.wait_for(newest, DELIVERY_SECONDS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends all streams; calls that wait get ClientDisconnected. Again: does nothing."""
        self.feed.close()
        for task in run_in_loop(self._replicas.stop):
            asyncio.run_coroutine_threadsafe(task, self._loop).result(10.0)
        if self._embedded is not None:
            self._embedded.close()

    def _node_ended(self, error: EmbeddedError) -> None:
        """Called in the loop: there is no other node to turn to."""
        self._replicas.fail(error)

    # ---- calls (any thread but the loop's) --------------------------------------------------------------

    def _run(self, name: str, flow: Flow) -> tuple[pb.Event, str]:
        """Drives a flow to its end: its answer, and the address it came from. Failures raise RequestRefused."""
        if in_loop_thread():
            raise RuntimeError("a storage must not be used in the client's loop thread")
        begun = time.perf_counter()
        event, address = self.start(flow).wait(None)  # every flow has a deadline
        self.metrics.observe(name, time.perf_counter() - begun)
        if event.HasField("failure"):
            raise RequestRefused(event.failure)
        return event, address

    def start(self, flow: Flow) -> Waiter[tuple[pb.Event, str]]:
        """Begins to drive a flow. Its answer may be a failure."""
        waiter: Waiter[tuple[pb.Event, str]] = Waiter()
        self._loop.call_soon_threadsafe(self._replicas.launch, flow, waiter)
        return waiter

    def run_piped(self, name: str, flow: Flow, pipe: Pipe) -> pb.Event:
        """As `_run`, for a flow with a file at its end: this thread reads or writes it. OSError ends the flow."""
        if in_loop_thread():
            raise RuntimeError("a storage must not be used in the client's loop thread")
        ending = _Ending(pipe)
        running: list[Running | None] = []
        begun = time.perf_counter()
        self._loop.call_soon_threadsafe(lambda: running.append(self._replicas.launch(flow, ending)))

        def tell() -> None:
            (flowing,) = running
            if flowing is not None:
                flowing.tell(Signal.CHANGED)

        def give_up(error: BaseException) -> None:
            (flowing,) = running
            if flowing is not None:
                flowing.fail(error)

        try:
            pipe.work(lambda: self._loop.call_soon_threadsafe(tell))
        except BaseException as error:
            self._loop.call_soon_threadsafe(give_up, error)
            raise
        event, _ = ending.wait(None)
        self.metrics.observe(name, time.perf_counter() - begun)
        if event.HasField("failure"):
            raise RequestRefused(event.failure)
        return event

    def upload_flow(self, source: Source, upload_id: bytes, size: int) -> Flow:
        return self._replicas.upload(source, upload_id, size, self.wait_timeout)

    def download_flow(self, oid: bytes, serial: bytes, at_least: bytes, sink: Sink, passed_over: Set[str]) -> Flow:
        return self._replicas.download(oid, serial, at_least, sink, passed_over, self.wait_timeout)

    def read(
        self, call: Call, at_least: bytes = Z64, timeout: float | None = None, *, leader_first: bool = False
    ) -> pb.Event:
        """A call that any replica answers which has applied `at_least`. `leader_first`: for what replicas may
        answer differently, like their sizes."""
        seconds = self.wait_timeout if timeout is None else timeout
        return self._run(call.kind, self._replicas.read(call, at_least, seconds, leader_first=leader_first))[0]

    def read_soon(self, call: Call, at_least: bytes, arrived: Callable[[pb.Event], object]) -> None:
        """As `read`, without waiting: `arrived` gets the answer in the loop's thread, if one comes in time."""
        flow = self._replicas.read(call, at_least, self.wait_timeout)
        self._loop.call_soon_threadsafe(lambda: self._replicas.launch(flow, Arrival(arrived)))

    def read_point(self, timeout: float | None = None) -> bytes:
        """The newest tid that was committed before this call (ReadIndex). Changes up to it are accepted."""
        call = Call("read_barrier", pb.ReadBarrier())
        seconds = self.wait_timeout if timeout is None else timeout
        flow = self._replicas.read(call, Z64, seconds, leader_first=True)
        return self._run(call.kind, flow)[0].read_point.last_tid

    def catch_up(self, timeout: float = CATCH_UP_SECONDS) -> None:
        """Waits until all replicas in reach have applied what is committed now, at most `timeout` seconds: for
        changes that have no tid to wait for."""
        deadline = time.monotonic() + timeout
        addresses = run_in_loop(lambda: [replica.address for replica in self._replicas.book.connected()])
        call = Call("read_barrier", pb.ReadBarrier())
        for answer in [self.post(address, call) for address in addresses]:
            try:
                answer.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                log.warning("%s: a replica is behind; it may show what is gone for a while", self._name)

    def lead(self, call: Call, timeout: float | None = None) -> tuple[pb.Event, str]:
        """A call for the leader that changes nothing lasting (Vote, AllocateOids): answer, and who answered."""
        flow = self._replicas.lead(call, self.wait_timeout if timeout is None else timeout)
        return self._run(call.kind, flow)

    def commit(self, transaction_id: bytes, body: Body, *, voted_at: str = "") -> bytes:
        """The tid of the transaction, committed exactly once. `voted_at`: the address of the leader that holds its
        vote, which is asked to finish it first.

        RequestRefused for a definite refusal; ClientDisconnected when it was never sent; CommitOutcomeUnknown.
        """
        flow = self._replicas.commit(transaction_id, body, voted_at, self.commit_timeout)
        try:
            event, _ = self._run("finish" if voted_at else "commit", flow)
        except CommitOutcomeUnknown as unknown:
            unknown.transaction_id, unknown.body = transaction_id, body
            raise
        self.metrics.commits.inc()
        return event.committed.tid

    def tell(self, address: str, call: Call) -> None:
        """Sends to `address`, or to the leader if it is empty, and waits for nothing; needs an open stream."""

        def send() -> None:
            leader = self._replicas.book.leader()
            connection = self._replicas.connections.get(address or (leader.address if leader is not None else ""))
            if connection is not None:
                connection.send(call, None)

        self._loop.call_soon_threadsafe(send)

    def post(self, address: str, call: Call) -> Waiter[pb.Event | None]:
        """Sends to that replica only; the answer, or None when the stream was lost. For calls sent in order."""
        waiter: Waiter[pb.Event | None] = Waiter()

        def send() -> None:
            connection = self._replicas.connections.get(address)
            if connection is None or not connection.send(call, waiter.set_result):
                waiter.set_result(None)

        self._loop.call_soon_threadsafe(send)
        return waiter

    def is_connected(self) -> bool:
        """Whether there is a stream to any replica."""
        return bool(run_in_loop(self._replicas.book.connected))

    def leader_address(self) -> str | None:
        """The address of the leader if there is a stream to it."""

        def find() -> str | None:
            leader = self._replicas.book.leader()
            return leader.address if leader is not None and leader.connected else None

        return run_in_loop(find)


class _Ending(Waiter[tuple[pb.Event, str]]):
    """Closes the pipe with the flow's result."""

    __slots__ = ("_pipe",)

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def set_result(self, result: tuple[pb.Event, str]) -> None:
        super().set_result(result)
        self._pipe.close()

    def set_error(self, error: BaseException) -> None:
        super().set_error(error)
        self._pipe.close()
