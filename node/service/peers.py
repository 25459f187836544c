"""Messages between nodes: one gRPC stream for each pair, dialled by the node with the lower id.

Raft repairs what is lost, so nothing here waits for a peer: a message for one that is not connected is dropped,
and so is one for which its queue has no room.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import Message
from raftstorage.node.service.codec import decode, encode, size_of
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.streams import HELLO_SECONDS, let_finish
from raftstorage.proto import PROTOCOL_VERSION, raft_pb2_grpc
from raftstorage.proto import raft_pb2 as pb

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # its stubs lack it

log = logging.getLogger(__name__)

QUEUE_MESSAGES = 4096
QUEUE_BYTES = 64 << 20
BATCH_MESSAGES = 4096
#: Every byte is copied several times on the loop, here and there.
BATCH_BYTES = 1 << 20
BACKOFF_SECONDS = (0.05, 0.5)
#: One entry can be a whole transaction, which the options bound below this.
MAX_MESSAGE_BYTES = 512 << 20

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
    # A peer whose machine vanished says nothing: two followers have nothing else to find out with.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class HelloRefused(Exception):
    """The other side's hello does not fit; `code` is what its stream is ended with."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class Stream(Protocol):
    """Either side of a stream of PeerBatch in grpc.aio. `read` answers `grpc.aio.EOF` at the end."""

    def read(self) -> Awaitable[Any]: ...
    def write(self, message: pb.PeerBatch, /) -> Awaitable[None]: ...


class Outbox:
    """Messages that wait for one stream, bounded in number and bytes."""

    def __init__(self) -> None:
        self._messages: deque[tuple[Message, int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self.closed = False

    def close(self) -> None:
        """Nothing leaves any more; `take` returns an empty batch."""
        self.closed = True
        self._messages.clear()
        self._filled.set()

    def put(self, message: Message) -> bool:
        """False when there is no room. A single message has room in an empty box, however large it is."""
        size = size_of(message)
        if self._messages and (len(self._messages) >= QUEUE_MESSAGES or self._bytes + size > QUEUE_BYTES):
            return False
        self._messages.append((message, size))
        self._bytes += size
        self._filled.set()
        return True

    async def take(self) -> pb.PeerBatch:
        """All that waits, up to a batch's bounds; waits for the first."""
        await self._filled.wait()
        batch = pb.PeerBatch()
        size = 0
        while self._messages and len(batch.messages) < BATCH_MESSAGES:
            message, message_size = self._messages[0]
            if size and size + message_size > BATCH_BYTES:
                break
            self._messages.popleft()
            self._bytes -= message_size
            size += message_size
            batch.messages.append(encode(message))
        if not self._messages:
            self._filled.clear()
        return batch


class _Link:
    """A stream whose hello was accepted. `replaced` is set when a newer one took its place."""

    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.outbox = Outbox()
        self.replaced = asyncio.Event()


class PeerTransport(raft_pb2_grpc.PeersServicer):
    """This node's side of all streams: `driver.Transport`, and the servicer for those that dial in.

    `receive` gets what each batch brought, checked.
    """

    def __init__(
        self, identity: NodeIdentity, metrics: NodeMetrics, receive: Callable[[Sequence[Message]], None]
    ) -> None:
        self._receive = receive
        self._identity = identity
        self._metrics = metrics
        self._peers = frozenset(identity.members) - {identity.node_id}
        self._links: dict[int, _Link] = {}
        self._dialers: list[asyncio.Task[None]] = []
        self._complaints: dict[int, str] = {}
        for peer in self._peers:
            metrics.peer_connected.labels(str(peer)).set(0)
            metrics.peer_dropped.labels(str(peer))

    # ---- Transport -----------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        link = self._links.get(message.to_node)
        if link is not None and not link.outbox.put(message):
            self._metrics.peer_dropped.labels(str(message.to_node)).inc()

    async def start(self) -> None:
        for peer in sorted(self._peers):
            if self._identity.node_id < peer:
                task = asyncio.create_task(self._dial(peer), name=f"raftstorage-dial-{peer}")
                task.add_done_callback(_report)
                self._dialers.append(task)

    async def stop(self) -> None:
        """Ends all streams. Messages still in a queue are lost."""
        for task in self._dialers:
            task.cancel()
        await asyncio.gather(*self._dialers, return_exceptions=True)
        for link in list(self._links.values()):
            link.replaced.set()

    def connected(self, peer: int) -> bool:
        return peer in self._links

    # ---- the side that dials -------------------------------------------------------------------------

    async def _dial(self, peer: int) -> None:
        address = self._identity.members[peer]
        attempt = 0
        loop = asyncio.get_running_loop()
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = raft_pb2_grpc.PeersStub(channel)  # type: ignore[no-untyped-call]
            while True:
                call = stub.Exchange()
                begin = loop.time()
                try:
                    await self._run(call, peer)
                    self._complain(peer, f"{address} ended the stream")
                except grpc.aio.AioRpcError as error:
                    self._complain(peer, f"{address}: {error.code().name}: {error.details()}")
                except HelloRefused as refused:
                    self._complain(peer, f"{address}: {refused}")
                except TimeoutError:
                    self._complain(peer, f"{address} did not say hello")
                except asyncio.InvalidStateError:
                    # grpc.aio says so to who writes before the reader has heard of the end.
                    self._complain(peer, f"{address} ended the stream")
                except Exception:  # a dialer that ended would cut two nodes off from each other for good
                    log.exception("the stream to peer %d ended by an error; dialling again", peer)
                finally:
                    call.cancel()
                if loop.time() - begin > HELLO_SECONDS:
                    attempt = 0
                low, high = BACKOFF_SECONDS
                await asyncio.sleep(random.uniform(low, min(high, 2 * low * 2**attempt)))
                attempt = min(attempt + 1, 8)

    # ---- the side that is dialled --------------------------------------------------------------------

    async def Exchange(self, request_iterator: Any, context: Any) -> None:  # noqa: N802 - generated name
        """gRPC handler of a stream that a peer dialled."""
        try:
            await self._run(context, None)
        except HelloRefused as refused:
            self._complain(0, f"a peer was refused: {refused}")
            await context.abort(refused.code, str(refused))
        except DecodeError:
            self._complain(0, "a peer sent something that is not a PeerBatch")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this is not a PeerBatch")
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no hello")

    # ---- both ----------------------------------------------------------------------------------------

    async def _run(self, stream: Stream, dialled: int | None) -> None:
        """Shakes hands, then carries messages until the stream ends or a newer one replaces it.

        `dialled`: the peer that must answer; None: whoever dialled in introduces itself first.
        """
        async with asyncio.timeout(HELLO_SECONDS):
            if dialled is not None:
                await stream.write(self._hello(dialled))
            batch = await stream.read()
        if batch is _EOF:
            if dialled is not None:
                await _raise_status(stream)
            return
        peer = self._check_hello(batch, dialled)
        if dialled is None:
            async with asyncio.timeout(HELLO_SECONDS):
                await stream.write(self._hello(peer))
        await self._carry(stream, _Link(peer))

    async def _carry(self, stream: Stream, link: _Link) -> None:
        peer = link.peer
        older = self._links.get(peer)
        if older is not None:
            older.replaced.set()
        self._links[peer] = link
        self._metrics.peer_connected.labels(str(peer)).set(1)
        self._complaints.pop(peer, None)
        log.info("peer %d is connected", peer)
        writer = asyncio.create_task(self._write(stream, link))
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._read(stream, peer)),
            writer,
            asyncio.create_task(link.replaced.wait()),
        ]
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._unlink(link)
            link.outbox.close()
            await let_finish(writer)
        finally:
            self._unlink(link)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    def _unlink(self, link: _Link) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._metrics.peer_connected.labels(str(link.peer)).set(0)
            log.info("peer %d is disconnected", link.peer)

    async def _read(self, stream: Stream, peer: int) -> None:
        node = self._identity.node_id
        while (batch := await stream.read()) is not _EOF:
            messages = []
            for wire in batch.messages:
                message = decode(wire, from_node=peer, to_node=node)
                if message is not None:
                    messages.append(message)
            if len(messages) < len(batch.messages):
                self._complain(peer, "sends messages that are not understood or not for this stream")
            if messages:
                self._receive(messages)

    async def _write(self, stream: Stream, link: _Link) -> None:
        while True:
            batch = await link.outbox.take()
            if link.outbox.closed:
                return
            await stream.write(batch)

    def _hello(self, peer: int) -> pb.PeerBatch:
        mine = self._identity
        return pb.PeerBatch(
            hello=pb.PeerHello(
                protocol_version=PROTOCOL_VERSION,
                cluster_id=mine.cluster_id,
                node_id=mine.node_id,
                to_node_id=peer,
            )
        )

    def _check_hello(self, batch: pb.PeerBatch, dialled: int | None) -> int:
        """The peer's node id. HelloRefused."""
        mine, hello = self._identity, batch.hello
        refused = grpc.StatusCode.FAILED_PRECONDITION
        if not batch.HasField("hello") or batch.messages:
            raise HelloRefused(refused, "the first batch is not a hello alone")
        if hello.protocol_version != PROTOCOL_VERSION:
            raise HelloRefused(
                grpc.StatusCode.UNIMPLEMENTED,
                f"node {hello.node_id} speaks protocol {hello.protocol_version}, "
                f"node {mine.node_id} speaks {PROTOCOL_VERSION}",
            )
        if hello.cluster_id != mine.cluster_id:
            raise HelloRefused(
                refused,
                f"node {hello.node_id} is of cluster {hello.cluster_id[:64]!r}, "
                f"node {mine.node_id} of {mine.cluster_id!r}",
            )
        if hello.to_node_id != mine.node_id:
            raise HelloRefused(refused, f"node {hello.to_node_id} was called for, this is node {mine.node_id}")
        if hello.node_id not in self._peers:
            raise HelloRefused(refused, f"node {hello.node_id} is no other member of this cluster")
        if dialled is not None and hello.node_id != dialled:
            raise HelloRefused(refused, f"node {hello.node_id} answered in place of node {dialled}")
        if dialled is None and hello.node_id > mine.node_id:
            raise HelloRefused(refused, f"node {hello.node_id} dialled; it is for node {mine.node_id} to dial")
        return int(hello.node_id)

    def _complain(self, peer: int, problem: str) -> None:
        """Logs a problem with a peer once, until it is another one or was solved."""
        if self._complaints.get(peer) != problem:
            self._complaints[peer] = problem
            log.warning("peer %s: %s", peer or "unknown", problem)


async def _raise_status(call: Any) -> None:
    """Raises what the dialled side ended a stream with; returns when that was OK."""
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            await call.details(),
            call.debug_error_string(),
        )


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a dialer ended: this is a bug", exc_info=error)
