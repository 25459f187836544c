"""All replicas as one client sees them: streams, who leads, flows under way. For the loop's thread only.

Nothing here knows threads, sockets or the time of day: `Surroundings` hands them in, and a simulator its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence, Set
from dataclasses import dataclass
from typing import Any

from raftstorage.proto import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from raftstorage.proto import storage_pb2 as pb
from raftstorage.proto.versions import Range, agreed, named, spoken

from . import policy
from .addresses import parse_addresses
from .bodies import Body
from .connection import Connection, Dial, dial
from .downloads import Sink, download
from .errors import ClientDisconnected, ClusterError, ProtocolMismatch, WrongCluster
from .feed import Feed
from .loop import Result
from .metrics import Metrics
from .policy import Z64, Call, Flow, Signal, Step
from .runner import Running
from .uploads import Source, upload

log = logging.getLogger(__name__)

#: Parts of a large transaction are given time by this rate, beside the time for the answer.
PATIENT_BYTES_PER_SECOND = 2 << 20
#: (oldest, newest) protocol version that this client speaks.
PROTOCOL: Range = (MIN_PROTOCOL_VERSION, PROTOCOL_VERSION)
CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a client runs on. `clock`: seconds, never set back, also for threads; `loop` goes by the same."""

    loop: asyncio.AbstractEventLoop
    random: random.Random
    dial: Dial = dial
    clock: Callable[[], float] = time.monotonic


class Replicas:
    """`changed` is called when a replica came, went or refused us. Other parameters as `Cluster`'s."""

    def __init__(
        self,
        addresses: Sequence[str],
        surroundings: Surroundings,
        feed: Feed,
        metrics: Metrics,
        *,
        client_id: str,
        read_only: bool = False,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.addresses = addresses
        self.cluster_id = ""
        self.limits = pb.Welcome()
        self.book = policy.Book()
        self.connections: dict[str, Connection] = {}
        self.refused: dict[str, ClusterError] = {}  # by address: will not talk to us until an operator acts
        self._surroundings = surroundings
        self._loop = surroundings.loop
        self._feed = feed
        self._metrics = metrics
        self._client_id = client_id
        self._read_only = read_only
        self._changed = changed
        self._running: dict[Running, None] = {}  # in the order they began
        self._closing: set[asyncio.Task[None]] = set()
        self._checker: asyncio.TimerHandle | None = None
        self._started = False  # the feed has its first tid
        self._closed = False
        self._over: type[ClusterError] | None = None  # what every call gets from now on, and why
        self._why = ""

    # ---- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Dials all addresses."""
        for address in self.addresses:
            self._connect(address)
        self._check()

    def begin(self, tid: bytes) -> bytes:
        """The feed's first tid: at least what was read, and what any stream that is open starts behind.

        ClientDisconnected: nothing was read, and no replica is in reach.
        """
        connected = self.book.connected()
        if not connected and tid == Z64:
            raise ClientDisconnected("the last replica in reach was lost")
        self._feed.accepted = max([tid, *(replica.applied for replica in connected)])
        self._started = True
        return self._feed.accepted

    def resume(self, tid: bytes) -> None:
        """Instead of `begin`, and before `start`: the feed goes on behind `tid`, where another process left it."""
        self._feed.accepted = tid
        self._started = True

    def applied(self) -> bytes:
        """The newest tid that a replica in reach has applied, as far as is known."""
        return max((replica.applied for replica in self.book.connected()), default=Z64)

    def stop(self) -> list[Coroutine[Any, Any, None]]:
        """Fails what waits; what is returned must be awaited, and ends the streams. Again: nothing."""
        if self._closed:
            return []
        self._closed = True
        if self._checker is not None:
            self._checker.cancel()
        self.fail(ClientDisconnected("the storage is closed"))
        connections = list(self.connections.values())
        self.connections.clear()
        return [connection.close() for connection in connections]

    def fail(self, error: ClusterError) -> None:
        """No replica will ever answer again: all that waits, and every later call, gets `error`."""
        if self._over is None:
            self._over, self._why = type(error), str(error)
        for running in list(self._running):
            running.fail(self._over(self._why))

    def _connect(self, address: str) -> None:
        connection = Connection(
            self.book.add(address), self, self._surroundings.random, self._loop, self._surroundings.dial
        )
        self.connections[address] = connection
        connection.start()

    def _check(self) -> None:
        now = self._loop.time()
        for connection in self.connections.values():
            connection.check(now)
        self._checker = self._loop.call_later(CHECK_SECONDS, self._check)

    # ---- what connections tell ------------------------------------------------------------------------

    def hello(self) -> pb.Hello:
        return pb.Hello(
            protocol_version=PROTOCOL[1],
            min_protocol_version=PROTOCOL[0],
            client_id=self._client_id,
            cluster_id=self.cluster_id,
            after_tid=self._feed.accepted if self._started else b"",
            read_only=self._read_only,
            takes_pages=True,
        )

    def up(self, connection: Connection, welcome: pb.Welcome) -> None:
        address = connection.replica.address
        theirs = spoken(welcome.protocol_version, welcome.min_protocol_version)
        protocol = agreed(PROTOCOL, theirs)
        if protocol is None:
            raise ProtocolMismatch(f"{address} speaks protocol {named(theirs)}, this client {named(PROTOCOL)}")
        connection.protocol, connection.level = protocol, welcome.level
        if self.cluster_id and welcome.cluster_id != self.cluster_id:
            raise WrongCluster(f"{address} belongs to cluster {welcome.cluster_id}, not to {self.cluster_id}")
        if self._started and not connection.after_tid and welcome.last_tid > self._feed.accepted:
            raise EOFError(
                f"the stream to {address} begins behind a gap"
            )  # dialled again with the tid that it needs
        if connection.after_tid and welcome.packed > self._feed.accepted:
            self._feed.miss()  # what was deleted up to the pack is told to nobody who was away
        self.refused.pop(address, None)
        self.cluster_id = welcome.cluster_id
        self.limits = welcome
        self._drop_twin(connection.replica)
        self._learn(welcome.leader, welcome.node_id)
        self._tell_all()

    def down(self, connection: Connection, error: BaseException | None) -> None:
        if isinstance(error, ProtocolMismatch | WrongCluster):
            self.refused[connection.replica.address] = error
        if not self._closed:
            self._metrics.disconnects.inc()
        self._tell_all()

    def event(self, connection: Connection, event: pb.Event) -> None:
        kind = event.WhichOneof("kind")
        if kind == "invalidations":
            self._invalidated(connection, event.invalidations)
        elif kind == "leader":
            if self._learn(event.leader, connection.replica.node_id):
                self._tell_all()
        elif (
            kind == "failure"
            and event.failure.reason == pb.NOT_LEADER
            and self._learn(event.failure.leader, connection.replica.node_id)
        ):
            self._tell_all()

    def _invalidated(self, connection: Connection, news: pb.Invalidations) -> None:
        replica = connection.replica
        for one in news.transactions:
            oids: Sequence[bytes] = one.oids
            if one.more or connection.begun:
                connection.begun += oids
                if one.more:
                    continue
                oids, connection.begun = connection.begun, []
            replica.applied = max(replica.applied, one.tid)
            if self._started:
                self._feed.accept(one.tid, oids)

    def _learn(self, leader: pb.Leader, told_by: int) -> bool:
        """`told_by`: the node id of whoever says so. Only the leader itself is believed that a member is gone."""
        rose = leader.level > self.limits.level
        self.limits.level = max(self.limits.level, leader.level)
        if told_by == leader.node_id and leader.members:
            self._drop_strangers({member.address for member in leader.members})
        # One that is not connected may have another address by now.
        known = {replica.node_id for replica in self.book.connected()}
        for member in leader.members:
            if member.node_id not in known and member.address and member.address not in self.connections:
                try:
                    (address,) = parse_addresses(member.address)
                except ValueError:
                    log.warning("node %d has an address that cannot be used: %r", member.node_id, member.address)
                    continue
                if address not in self.connections and not self._closed:
                    self._connect(address)
        before = self.book.leader_id
        changed = self.book.learn_leader(leader)
        if changed:
            self._metrics.leader.set(self.book.leader_id)
            if self.book.leader_id and before != self.book.leader_id and self._started:
                self._metrics.failovers.inc()
        return changed or rose

    def _drop_strangers(self, members: set[str]) -> None:
        """Closes the streams to learnt addresses that are no member's any more; named ones are kept."""
        for address in sorted(self.connections.keys() - members - set(self.addresses)):
            self._drop(address)

    def _drop(self, address: str) -> None:
        del self.book.replicas[address]
        task = self._loop.create_task(self.connections.pop(address).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _drop_twin(self, replica: policy.Replica) -> None:
        """One node may have been named (localhost) and learnt (127.0.0.1): the named address is kept."""
        for other in list(self.book.connected()):
            if other is not replica and other.node_id == replica.node_id:
                twin = other if replica.address in self.addresses else replica
                if twin.address not in self.addresses:
                    self._drop(twin.address)

    def _tell_all(self) -> None:
        self._changed()
        for running in list(self._running):
            running.tell(Signal.CHANGED)

    # ---- flows -----------------------------------------------------------------------------------------

    def launch(self, flow: Flow, result: Result[tuple[pb.Event, str]]) -> Running | None:
        """Drives `flow` to its end: `result` gets its answer and the address that it came from, or its error.

        None: it had its error at once.
        """
        if self._over is not None:
            flow.close()
            result.set_error(self._over(self._why))
            return None
        running = Running(self._loop, self.connections, flow, result, self._done)
        self._running[running] = None
        running.start()
        return running

    def _done(self, running: Running) -> None:
        self._running.pop(running, None)

    def _retrying(self, call: Call) -> Callable[[], None]:
        return lambda: self._metrics.retry(call.kind)

    def read(self, call: Call, at_least: bytes, timeout: float, *, leader_first: bool = False) -> Flow:
        """A call that any replica answers which has applied `at_least`."""
        clock = self._surroundings.clock
        return policy.read(
            self.book,
            call,
            at_least,
            clock() + timeout,
            clock,
            self._surroundings.random,
            leader_first=leader_first,
            retry=self._retrying(call),
            told_off=self._metrics.told_off,
        )

    def lead(self, call: Call, timeout: float) -> Flow:
        """A call for the leader that changes nothing lasting."""
        clock = self._surroundings.clock
        return policy.lead(
            self.book,
            call,
            clock() + timeout + _seconds_to_send(call),
            clock,
            self._surroundings.random,
            retry=self._retrying(call),
            told_off=self._metrics.told_off,
        )

    def commit(self, transaction_id: bytes, body: Body, voted_at: str, timeout: float) -> Flow:
        """Commits exactly once. `voted_at`: address of the leader that holds the vote; empty: there was none."""
        clock = self._surroundings.clock
        commit = policy.commit(transaction_id, body)
        call = Call("finish", pb.Finish(transaction_id=transaction_id)) if voted_at else commit
        return policy.lead(
            self.book,
            call,
            clock() + timeout + _seconds_to_send(commit),
            clock,
            self._surroundings.random,
            again=commit,
            start_at=voted_at,
            committing=True,
            retry=self._retrying(call),
            told_off=self._metrics.told_off,
        )

    def level(self, level: int, timeout: float) -> Flow:
        """Waits until all members know `level`; what they know then, in a Leader."""
        clock = self._surroundings.clock
        deadline = clock() + timeout
        while self.limits.level < level and (left := deadline - clock()) > 0:
            yield Step(None, left)
        return pb.Event(leader=pb.Leader(level=self.limits.level))

    def upload(self, source: Source, upload_id: bytes, size: int, patience: float) -> Flow:
        """Puts a blob's bytes into the log."""
        surroundings = self._surroundings
        return upload(
            self.book,
            source,
            upload_id,
            size,
            patience,
            surroundings.clock,
            surroundings.random,
            retry=lambda: self._metrics.retry("upload"),
            told_off=self._metrics.told_off,
        )

    def download(
        self, oid: bytes, serial: bytes, at_least: bytes, sink: Sink, passed_over: Set[str], patience: float
    ) -> Flow:
        """Reads a revision's blob."""
        surroundings = self._surroundings
        return download(
            self.book,
            oid,
            serial,
            at_least,
            sink,
            patience,
            surroundings.clock,
            surroundings.random,
            passed_over=passed_over,
            retry=lambda: self._metrics.retry("download"),
            told_off=self._metrics.told_off,
        )


def _seconds_to_send(call: Call) -> float:
    return sum(call.parts.sizes) / PATIENT_BYTES_PER_SECOND
