"""A network that loses, delays, reorders, repeats and cuts: messages between nodes, streams from clients to nodes.

Messages between nodes are datagrams, which is worse than the gRPC streams that carry them in truth. A client's
stream keeps its order, stalls while it is cut, and breaks when either end dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import grpc
from raftstorage.client.cluster.connection import EOF
from raftstorage.node.raft.types import Message, SnapshotBase
from raftstorage.node.service.codec import decode, encode
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.store import Contents
from tests.simulation.world import SimLoop, World

NAMES = {
    1: "PRE_VOTE", 2: "PRE_VOTE_REPLY", 3: "VOTE", 4: "VOTE_REPLY", 5: "APPEND", 6: "APPEND_REPLY",
    7: "HEARTBEAT", 8: "HEARTBEAT_REPLY", 9: "TIMEOUT_NOW", 10: "READ_INDEX", 11: "READ_INDEX_REPLY",
    12: "SNAPSHOT",
}  # fmt: skip


@dataclass
class Weather:
    """Chances and seconds. Delays are drawn between the two, and now and then are ten times as long."""

    loss: float = 0.0
    repeat: float = 0.0
    delay: tuple[float, float] = (0.0002, 0.002)
    straggle: float = 0.0


class Host(Protocol):
    """A node, as the network needs it."""

    name: str
    address: str
    loop: SimLoop | None

    def receive(self, message: Message, has_room: bool) -> None: ...
    def copy_database(self) -> tuple[SnapshotBase, Contents]: ...
    async def serve(self, requests: AsyncIterator[pb.RequestBatch], context: Any) -> None: ...


class Network:
    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.random("network")
        self.hosts: dict[int, Host] = {}
        self.weather = Weather()
        self.cuts: set[tuple[str, str]] = set()  # (from, to): "n1", "c2"
        self.snapshot_seconds: dict[
            str, float
        ] = {}  # to these nodes each piece of a snapshot takes so long, about
        self._pipes: list[_Pipe] = []

    def delay(self) -> float:
        low, high = self.weather.delay
        delay = self._rng.uniform(low, high)
        return delay * 10 if self._rng.random() < self.weather.straggle else delay

    def is_cut(self, a: str, b: str) -> bool:
        return (a, b) in self.cuts

    def heal(self) -> None:
        self.cuts.clear()
        self.wake()

    def wake(self) -> None:
        """After any change of `cuts`: what waits in streams that are not cut goes on."""
        for pipe in list(self._pipes):
            pipe.flow()

    def reset(self, a: str, b: str) -> None:
        """Ends all streams between the two; both hear of it, whatever is cut."""
        for pipe in list(self._pipes):
            if {pipe.source, pipe.target} == {a, b}:
                pipe.reset()

    # ---- messages between nodes -----------------------------------------------------------------------

    def send(self, message: Message, has_room: bool) -> None:
        """`has_room`: what the sender's stream says of its disk."""
        rng, weather = self._rng, self.weather
        copies = 2 if rng.random() < weather.repeat else 1
        wire = encode(message)
        for _ in range(copies):
            if rng.random() >= weather.loss:
                self._world.after(self.delay(), lambda: self._deliver(message, wire, has_room))

    def _deliver(self, message: Message, wire: Any, has_room: bool) -> None:
        a, b = message.from_node, message.to_node
        host = self.hosts.get(b)
        if host is None or host.loop is None or (f"n{a}", f"n{b}") in self.cuts:
            return
        arrived = decode(wire, from_node=a, to_node=b)
        assert arrived == message, f"the codec made {arrived} of {message}"
        if message.type not in (7, 8):
            self._world.say(
                f"{a}->{b} {NAMES[message.type]} t{message.term} {message.log_index}/{message.log_term}"
                f" +{len(message.entries)} c{message.commit}{' refused' if message.reject else ''}"
            )
        host.loop.call_soon(host.receive, arrived, has_room)

    # ---- snapshots ------------------------------------------------------------------------------------

    async def copy(self, source: int, to: str) -> tuple[SnapshotBase, Contents] | None:
        """A copy of the database of node `source`, some time later; None: it broke off."""
        copied: list[tuple[SnapshotBase, Contents]] = []
        life: SimLoop | None = None
        pause = self._rng.choice((0.005, 0.005, 0.05, 0.5))  # at times it is so large that much happens meanwhile
        pause = self.snapshot_seconds.get(to, pause)
        for _ in range(self._rng.randrange(2, 6)):
            await asyncio.sleep(self.delay() + self._rng.uniform(0.2, 1.0) * pause)
            host = self.hosts.get(source)
            if host is None or host.loop is None or life not in (None, host.loop):
                return None
            if self.is_cut(to, f"n{source}") or self.is_cut(f"n{source}", to):
                return None
            if life is None:
                life = host.loop
                life.call_soon(lambda host=host: copied.append(host.copy_database()))
        return copied[0] if copied else None

    # ---- streams --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def dial(self, client: str, loop: SimLoop, address: str) -> AsyncIterator[Any]:
        """A client's stream to the node at `address`. EOFError when there is nobody."""
        await asyncio.sleep(self.delay())
        host = next((each for each in self.hosts.values() if each.address == address), None)
        if host is None or host.loop is None or self.is_cut(client, host.name) or self.is_cut(host.name, client):
            await asyncio.sleep(0.05)
            raise EOFError(f"nobody answers at {address}")
        stream = SimStream(self, client, loop, host.name, host)
        try:
            yield stream
        finally:
            stream.cancel()

    def broke(self, name: str) -> None:
        """The process `name` ended: its streams end, for the others when they can hear of it."""
        for pipe in list(self._pipes):
            if name in (pipe.source, pipe.target):
                pipe.broken()


class _Pipe:
    """One direction of a stream."""

    def __init__(self, network: Network, source: str, target: str, loop: SimLoop) -> None:
        self.source, self.target = source, target
        self.end: tuple[str, str] | None = None  # status name and details, once it has arrived
        self.network = network
        self._loop = loop
        self._sent: list[Any] = []
        self._flying = False
        self._arrived: list[Any] = []
        self._news = asyncio.Event()
        network._pipes.append(self)

    def put(self, item: Any) -> None:
        self._sent.append(item)
        self.flow()

    def flow(self) -> None:
        if self._sent and not self._flying and not self.network.is_cut(self.source, self.target):
            self._flying = True
            self.network._world.after(self.network.delay(), self._land)

    def _land(self) -> None:
        self._flying = False
        if self.network.is_cut(self.source, self.target):
            return
        items, self._sent = self._sent, []
        self._loop.call_soon(self._take, items)

    def _take(self, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, tuple):
                self.end = self.end or item
            elif self.end is None:
                self._arrived.append(item)
        self._news.set()

    async def get(self) -> Any:
        """The next item, or EOF."""
        while not self._arrived:
            if self.end is not None:
                return EOF
            self._news.clear()
            await self._news.wait()
        return self._arrived.pop(0)

    def broken(self) -> None:
        """The source is gone: what it had sent still arrives. Nobody listens to a target that is gone."""
        self._sent.append(("UNAVAILABLE", "the other end is gone"))
        self.flow()

    def reset(self) -> None:
        """What was under way is lost."""
        self._sent.clear()
        self._loop.call_soon(self._take, [("UNAVAILABLE", "the connection was reset")])

    def forget(self) -> None:
        if self in self.network._pipes:
            self.network._pipes.remove(self)


class SimStream:
    """The client's side of a Session; the node's handler runs in the node's loop."""

    def __init__(self, network: Network, client: str, loop: SimLoop, node: str, host: Host) -> None:
        self._there = host.loop
        assert self._there is not None
        self._requests = _Pipe(network, client, node, self._there)
        self._events = _Pipe(network, node, client, loop)
        self._over = False
        self._task: asyncio.Task[None] | None = None
        self._there.call_soon(self._serve, host)

    def _serve(self, host: Host) -> None:
        assert self._there is not None
        self._task = self._there.create_task(self._handle(host))

    async def _handle(self, host: Host) -> None:
        status = ("OK", "")
        try:
            await host.serve(self._incoming(), _Context(self._events))
        except _Aborted as aborted:
            status = (aborted.code, aborted.details)
        finally:
            self._events.put(status)

    async def _incoming(self) -> AsyncIterator[pb.RequestBatch]:
        while (batch := await self._requests.get()) is not EOF:
            yield batch

    async def write(self, batch: pb.RequestBatch) -> None:
        if self._over or self._events.end is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        self._requests.put(pb.RequestBatch.FromString(batch.SerializeToString()))
        if any(request.HasField("part") for request in batch.requests):  # the stream takes so much at once
            await asyncio.sleep(self._requests.network.delay())

    async def read(self) -> Any:
        return await self._events.get()

    async def details(self) -> str:
        return self._events.end[1] if self._events.end is not None else ""

    def cancel(self) -> None:
        if self._over:
            return
        self._over = True
        self._events.forget()
        there, task = self._there, self._task
        self._requests.put(("CANCELLED", ""))
        self._requests.forget()
        if there is not None and task is not None:
            network = self._requests.network

            def arrive() -> None:
                there.call_soon(task.cancel)

            network._world.after(network.delay(), arrive)


class _Aborted(Exception):
    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class _Context:
    """What a servicer needs of `grpc.aio.ServicerContext`."""

    def __init__(self, events: _Pipe) -> None:
        self._events = events

    async def write(self, batch: pb.EventBatch) -> None:
        self._events.put(pb.EventBatch.FromString(batch.SerializeToString()))

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        raise _Aborted(code.name, details)
