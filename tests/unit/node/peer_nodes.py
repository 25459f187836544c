"""Transports of nodes in one loop, each with a server of its own on a real socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import grpc.aio
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import Entry, EntryKind, Message, MessageType
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.peer_hello import REFUSAL_KEY, PeerInfo
from raftstorage.node.service.peer_problems import PeerProblem
from raftstorage.node.service.peers import PeerTransport
from raftstorage.node.service.server import SERVER_OPTIONS
from raftstorage.proto import PROTOCOL_VERSION, raft_pb2_grpc
from raftstorage.proto import raft_pb2 as pb

CLUSTER = "0123456789abcdef" * 2


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


def message(from_node: int, to_node: int, context: int, data: bytes = b"") -> Message:
    if data:
        return Message(
            MessageType.APPEND,
            from_node,
            to_node,
            1,
            entries=(Entry(1, 1, EntryKind.COMMAND, data),),
            context=context,
        )
    return Message(MessageType.HEARTBEAT, from_node, to_node, 1, context=context)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


class PeerNode:
    """One node. `got`: messages it received; `accepted`, `refused`: what its callbacks were told."""

    def __init__(self, node: int, cluster_id: str = CLUSTER, **options: Any) -> None:
        self.id = node
        self.cluster_id = cluster_id
        self.got: list[Message] = []
        self.accepted: list[PeerInfo] = []
        self.refused: list[PeerProblem] = []
        #: By the membership: node id -> instance.
        self.known: dict[int, str] = {}
        self.metrics = NodeMetrics()
        self.options = options
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.transport: PeerTransport

    async def start(self, members: Mapping[int, str]) -> None:
        own: dict[str, Any] = {
            "address": self.address,
            "known_instance": lambda node: self.known.get(node, ""),
            "accepted": self.accepted.append,
            "refused": self.refused.append,
        }
        self.transport = PeerTransport(
            NodeIdentity(self.cluster_id, self.id, members),
            self.metrics,
            self.got.extend,
            **own | self.options,
        )
        raft_pb2_grpc.add_PeersServicer_to_server(self.transport, self.server)  # type: ignore[no-untyped-call]
        await self.server.start()
        await self.transport.start()

    async def stop(self) -> None:
        await self.transport.stop()
        await self.server.stop(0)

    def send(self, to: int, context: int) -> None:
        self.transport.send(message(self.id, to, context))

    async def reaches(self, other: PeerNode, context: int) -> None:
        """Sends again and again, as Raft does, until the other has it."""

        def said() -> bool:
            self.send(other.id, context)
            return any(each.context == context and each.from_node == self.id for each in other.got)

        await until(said)

    def connected_labels(self) -> set[str]:
        """The peers that the metrics speak of."""
        return {
            sample.labels["peer"]
            for metric in self.metrics.registry.collect()
            if metric.name == "raftstorage_node_peer_connected"
            for sample in metric.samples
        }


class Faults(logging.Handler):
    """Collects what must never be in a log: errors and tracebacks, gRPC's own among them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "ExecuteBatchError" in record.getMessage():
            return  # gRPC's own, of a stream whose other side has gone before it could be ended
        if record.levelno >= logging.ERROR or record.exc_info:
            self.found.append(logging.Formatter().format(record))


class Nodes:
    """Nodes 1 to `count`, which are members, started; `options`: by node, for its transport.

    None of them may log an error, but for `errors` of them.
    """

    def __init__(
        self, count: int, options: Mapping[int, Mapping[str, Any]] | None = None, *, errors: int = 0
    ) -> None:
        self._options = options or {}
        self._errors = errors
        self._faults = Faults()
        self.count = count
        self.nodes: dict[int, PeerNode] = {}
        self.stack = AsyncExitStack()

    @property
    def members(self) -> dict[int, str]:
        return {number: node.address for number, node in self.nodes.items()}

    @property
    def transports(self) -> dict[int, PeerTransport]:
        return {number: node.transport for number, node in self.nodes.items()}

    @property
    def got(self) -> dict[int, list[Message]]:
        return {number: node.got for number, node in self.nodes.items()}

    async def __aenter__(self) -> Nodes:
        logging.getLogger().addHandler(self._faults)
        self.stack.callback(logging.getLogger().removeHandler, self._faults)
        for number in range(1, self.count + 1):
            self.nodes[number] = PeerNode(number, **self._options.get(number, {}))
        for node in self.nodes.values():
            await self.start(node, self.members)
        return self

    async def start(self, node: PeerNode, members: Mapping[int, str]) -> PeerNode:
        await node.start(members)
        self.stack.push_async_callback(node.stop)
        return node

    async def __aexit__(self, kind: object, *error: object) -> None:
        await self.stack.aclose()
        if kind is None:
            assert len(self._faults.found) == self._errors, self._faults.found

    async def connected(self, *nodes: int) -> None:
        for node in nodes:
            for peer in nodes:
                if node != peer:
                    await until(lambda node=node, peer=peer: self.transports[node].connected(peer))


async def exchange(
    address: str, first: pb.PeerBatch, *batches: pb.PeerBatch
) -> tuple[list[pb.PeerBatch], grpc.StatusCode, str]:
    """Speaks as a peer that dialled in: what came back, and how it ended.

    With `first` alone it waits for the other side to end: a write into a stream that is being refused hides the
    status (the library makes INTERNAL of it).
    """
    async with grpc.aio.insecure_channel(address) as channel:
        call = raft_pb2_grpc.PeersStub(channel).Exchange()  # type: ignore[no-untyped-call]
        answers = []
        try:
            for batch in (first, *batches):
                await call.write(batch)
            if batches:
                await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                answers.append(answer)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return answers, await call.code(), await call.details()


async def end_of(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """How a stream ends on which nothing more comes: code, details, kind of refusal."""
    with suppress(grpc.aio.AioRpcError):
        assert await call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    return await call.code(), await call.details(), dict(await call.trailing_metadata()).get(REFUSAL_KEY, "")


def hello(node: int, to: int, **changes: Any) -> pb.PeerBatch:
    fields = {"protocol_version": PROTOCOL_VERSION, "cluster_id": CLUSTER, "node_id": node, "to_node_id": to}
    return pb.PeerBatch(hello=pb.PeerHello(**fields | changes))
