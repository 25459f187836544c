"""One client's stream to one replica: dialled again whenever it is lost, requests batched, answers by id."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import grpc
import grpc.aio
from raftstorage.proto import storage_pb2 as pb
from raftstorage.proto.storage_pb2_grpc import StorageStub

from .errors import ClusterError, ProtocolMismatch, WrongCluster
from .policy import Backoff, Call, Replica
from .refusals import Random
from .transfer import Callback, Transfer

log = logging.getLogger(__name__)

EOF = grpc.aio.EOF  # type: ignore[attr-defined]

HANDSHAKE_SECONDS = 3.0
PROBE_AFTER_SECONDS = 1.0  # of silence while an answer is awaited
PROBE_IDLE_SECONDS = 10.0  # of silence otherwise
SUSPECT_AFTER_SECONDS = 1.0  # of a probe without an answer: others are preferred
RESET_AFTER_SECONDS = 5.0  # of a probe without an answer: the stream is given up
MAX_BATCH_REQUESTS = 1024
MAX_BATCH_BYTES = 8 << 20  # but for a single larger request

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_send_message_length", 512 << 20),
    ("grpc.max_receive_message_length", 512 << 20),
    ("grpc.enable_http_proxy", 0),
)


class Owner(Protocol):
    """What a connection tells its cluster. All calls come in the loop's thread."""

    def hello(self) -> pb.Hello: ...
    def up(self, connection: Connection, welcome: pb.Welcome) -> None:
        """Raises ClusterError to refuse the replica (another cluster), EOFError to dial again."""

    def down(self, connection: Connection, error: BaseException | None) -> None: ...
    def event(self, connection: Connection, event: pb.Event) -> None:
        """Every event, before its request's callback."""


class Stream(Protocol):
    """The client's side of a Session stream; `grpc.aio`'s call is one. `read` answers EOF at the end."""

    def read(self) -> Awaitable[Any]: ...
    def write(self, request: pb.RequestBatch, /) -> Awaitable[None]: ...
    def cancel(self) -> object: ...
    def details(self) -> Awaitable[Any]: ...


#: Opens a stream to an address, and closes all that belongs to it.
Dial = Callable[[str], AbstractAsyncContextManager[Stream]]


@asynccontextmanager
async def dial(address: str) -> AsyncIterator[Stream]:
    """A stream over gRPC."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        yield StorageStub(channel).Session()  # type: ignore[no-untyped-call]


class Connection:
    """All methods are for the loop's thread."""

    def __init__(
        self, replica: Replica, owner: Owner, random: Random, loop: asyncio.AbstractEventLoop, dial: Dial
    ) -> None:
        self.replica = replica
        self.after_tid = b""  # the Hello's
        #: Since the last welcome: the protocol version that is spoken, and the cluster's feature level then.
        self.protocol = 0
        self.level = 0
        #: Oids of a transaction whose invalidations are not all there yet.
        self.begun: list[bytes] = []
        self._owner = owner
        self._random = random
        self._pending: list[tuple[int, Call]] = []
        self._transfers: deque[Transfer] = deque()  # calls with parts, one after the other
        self._calls: dict[int, tuple[Callback, float]] = {}
        self._next_id = 0
        self._writable = asyncio.Event()
        self._session: asyncio.Task[None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._heard = 0.0
        self._sent_part = 0.0  # the node still takes what a probe may be behind
        self._probed: float | None = None
        self._loop = loop
        self._dial = dial

    def start(self) -> None:
        self._runner = self._loop.create_task(self._run())

    async def close(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait({self._runner})

    def send(self, call: Call, callback: Callback | None) -> bool:
        """Queues a request; False when there is no stream. Without a callback the answer is ignored.

        With parts it waits for those that are being sent already; what has none does not wait for it.
        """
        if not self.replica.connected:
            return False
        if call.parts:
            self._transfers.append(Transfer(call, callback, self._expect, self._forget))
        else:
            self._pending.append((self._expect(callback), call))
        self._writable.set()
        return True

    def withdraw(self, call: Call) -> None:
        """What of its parts is not sent yet is not sent. Nothing happens when it is sent as a whole."""
        for transfer in self._transfers:
            if transfer.call is call and not transfer.done:
                transfer.give_up()

    def _expect(self, callback: Callback | None) -> int:
        """A new request's id. The callback gets its answer."""
        self._next_id += 1
        if callback is not None:
            self._calls[self._next_id] = (callback, self._loop.time())
            self.replica.outstanding += 1
        return self._next_id

    def _forget(self, request_id: int) -> None:
        """Its answer is not awaited any more."""
        if self._calls.pop(request_id, None) is not None:
            self.replica.outstanding -= 1

    def check(self, now: float) -> None:
        """Called now and then: probes a silent replica, suspects it, and at last gives the stream up."""
        if not self.replica.connected or self._session is None:
            return
        if self._probed is None:
            limit = PROBE_AFTER_SECONDS if self._calls else PROBE_IDLE_SECONDS
            if now - self._heard > limit:
                self._probed = now
                self.send(Call("load_before", pb.LoadBefore(oid=b"\0" * 8, before=b"\0" * 7 + b"\1")), None)
        elif now - max(self._probed, self._sent_part) > RESET_AFTER_SECONDS:
            log.warning("node at %s does not answer; dialling again", self.replica.address)
            self._session.cancel()
        elif now - self._probed > SUSPECT_AFTER_SECONDS and not self.replica.suspect:
            log.warning("node at %s does not answer", self.replica.address)
            self.replica.suspect = True

    def reset(self) -> None:
        """Ends the stream; it is dialled again at once."""
        if self._session is not None:
            self._session.cancel()

    async def _run(self) -> None:
        backoff = Backoff(self._random)
        while True:
            task = self._session = self._loop.create_task(self._talk())
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait({task})
                self._lost(None)
                raise
            error = None if task.cancelled() else task.exception()
            if self.replica.connected:
                backoff.reset()
            self._lost(error)
            if isinstance(error, ProtocolMismatch | WrongCluster):
                await asyncio.sleep(5.0)  # only a change by an operator helps
            else:
                await asyncio.sleep(backoff.next())

    def _lost(self, error: BaseException | None) -> None:
        was_connected = self.replica.connected
        self._session = None
        self.replica.connected = False
        self.replica.outstanding = 0
        self._pending.clear()
        transfers, self._transfers = self._transfers, deque()
        calls, self._calls = self._calls, {}
        if was_connected:
            log.info("lost the node at %s: %s", self.replica.address, _brief(error))
        elif error is not None and not isinstance(error, grpc.aio.AioRpcError | TimeoutError | EOFError):
            log.warning("the node at %s refused us: %s", self.replica.address, error)
        self._owner.down(self, error)
        for callback, _ in calls.values():
            callback(None)
        for transfer in transfers:
            transfer.lost()

    async def _talk(self) -> None:
        async with self._dial(self.replica.address) as stream:
            writer: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(HANDSHAKE_SECONDS):
                    await self._handshake(stream)
                writer = self._loop.create_task(self._write(stream))
                while True:
                    batch = await stream.read()
                    if batch is EOF:
                        raise EOFError(f"{self.replica.address} ended the stream: {await stream.details()}")
                    self._heard = self._loop.time()
                    self._probed = None
                    self.replica.suspect = False
                    for event in batch.events:
                        self._receive(event)
            finally:
                stream.cancel()
                if writer is not None:
                    writer.cancel()
                    await asyncio.wait({writer})

    async def _handshake(self, stream: Stream) -> None:
        self._next_id += 1
        self.begun = []
        hello = self._owner.hello()
        self.after_tid = hello.after_tid
        await stream.write(pb.RequestBatch(requests=[pb.Request(id=self._next_id, hello=hello)]))
        batch = await stream.read()
        if batch is EOF:
            raise EOFError(f"{self.replica.address} ended the stream: {await stream.details()}")
        events = list(batch.events)
        first = events.pop(0)
        if first.HasField("failure"):
            raise _refusal(self.replica.address, first.failure)
        if not first.HasField("welcome"):
            raise ClusterError(f"{self.replica.address} answered a Hello with {first.WhichOneof('kind')}")
        self._heard = self._loop.time()
        self._probed = None
        self.replica.suspect = False
        self.replica.node_id = first.welcome.node_id
        self.replica.applied = first.welcome.last_tid
        self.replica.connected = True
        try:
            self._owner.up(self, first.welcome)
        except BaseException:
            self.replica.connected = False
            raise
        for event in events:
            self._receive(event)

    def _receive(self, event: pb.Event) -> None:
        self._owner.event(self, event)
        entry = self._calls.pop(event.id, None) if event.id else None
        if entry is not None:
            callback, since = entry
            replica = self.replica
            replica.outstanding -= 1
            if event.HasField("record"):
                replica.latency += (self._heard - since - replica.latency) / 8
            callback(event)

    async def _write(self, stream: Stream) -> None:
        try:
            while True:
                await self._writable.wait()
                self._writable.clear()
                await self._write_pending(stream)
                while self._transfers:
                    transfer = self._transfers[0]
                    if transfer.done:
                        self._transfers.popleft()
                        continue
                    # One piece for each write, so that the requests of all others get in between.
                    await stream.write(transfer.next())
                    self._sent_part = self._loop.time()
                    await self._write_pending(stream)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            log.debug("writing to %s: %s", self.replica.address, _brief(error))
            self.reset()  # the reader knows why, or hears nothing any more

    async def _write_pending(self, stream: Stream) -> None:
        pending, self._pending = self._pending, []
        batch, size = pb.RequestBatch(), 0
        for request_id, call in pending:
            weight = call.message.ByteSize()
            if batch.requests and (size + weight > MAX_BATCH_BYTES or len(batch.requests) == MAX_BATCH_REQUESTS):
                await stream.write(batch)
                batch, size = pb.RequestBatch(), 0
            batch.requests.add(id=request_id, **{call.kind: call.message})
            size += weight
        if batch.requests:
            await stream.write(batch)


def _refusal(address: str, failure: pb.Failure) -> ClusterError:
    text = f"{address}: {failure.message}"
    if failure.reason == pb.PROTOCOL_MISMATCH:
        return ProtocolMismatch(text)
    if failure.reason == pb.WRONG_CLUSTER:
        return WrongCluster(text)
    return ClusterError(text)


def _brief(error: BaseException | None) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details()}"
    return "closed" if error is None else str(error) or type(error).__name__
