"""One client's stream: the ordered queue of what leaves, its writer, and its end."""

from __future__ import annotations

import asyncio
from collections import deque

import grpc
from raftstorage.node.service.validation import SessionLimits
from raftstorage.proto import storage_pb2 as pb

#: One EventBatch carries at most about this many bytes, and at least one event.
BATCH_BYTES = 4 << 20
#: With more than this waiting to leave, no further request is looked at.
ENOUGH_BYTES = 8 << 20
#: Bytes of an event beside its payload, so that empty events count too.
_OVERHEAD = 16


class ClientSession:
    """Events leave in the order of `put`. Used from the loop."""

    def __init__(self, limits: SessionLimits) -> None:
        self.read_only = False
        self.greeted = False
        self.protocol = 0  # the version that is spoken with this client
        #: Takes live invalidations above `after`; it has caught up with all before.
        self.live = False
        self.after = b""
        self.tasks: set[asyncio.Task[None]] = set()
        #: Why the session must end: status code and message.
        self.ended: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()
        self.closed = False
        self._limits = limits
        self._queue: deque[tuple[pb.Event, int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, event: pb.Event, size: int | None = None) -> None:
        """Queues `event`. A client that does not take what it is sent loses the session."""
        if self.closed or self.ended.done():
            return
        size = (event.ByteSize() if size is None else size) + _OVERHEAD
        limits = self._limits
        if self._queue and (len(self._queue) >= limits.queue_items or self._bytes + size > limits.queue_bytes):
            self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "the client does not take what it is sent")
            return
        self._queue.append((event, size))
        self._bytes += size
        self._filled.set()
        if self._bytes > min(ENOUGH_BYTES, limits.queue_bytes // 2):
            self._room.clear()

    def end(self, code: grpc.StatusCode, message: str) -> None:
        if not self.ended.done():
            self.ended.set_result((code, message))

    def expect_greeting(self) -> None:
        """Now, or not at all."""
        if not self.greeted:
            self.end(grpc.StatusCode.DEADLINE_EXCEEDED, "no hello")

    async def room(self) -> None:
        """Returns when more answers may be made."""
        await self._room.wait()

    def take(self) -> pb.EventBatch:
        """What waits, up to BATCH_BYTES; empty when nothing does."""
        events: list[pb.Event] = []
        size = 0
        while self._queue and (not events or size + self._queue[0][1] <= BATCH_BYTES):
            event, own = self._queue.popleft()
            events.append(event)
            size += own
        self._bytes -= size
        if self._bytes <= min(ENOUGH_BYTES, self._limits.queue_bytes // 2):
            self._room.set()
        if not self._queue:
            self._filled.clear()
        return pb.EventBatch(events=events)

    async def write(self, context: grpc.aio.ServicerContext[pb.RequestBatch, pb.EventBatch]) -> None:
        """Sends what is put, until `close`. Not to be cancelled while it sends: see `streams.let_finish`."""
        while True:
            await self._filled.wait()
            if self.closed:
                return
            self._idle.clear()
            await context.write(self.take())
            if not self._queue:
                self._idle.set()

    def close(self) -> None:
        """Takes and sends nothing more. `write` returns when what it is sending is sent."""
        self.closed = True
        self._filled.set()

    async def written(self) -> None:
        """Returns when all that was put is sent."""
        while self._queue or not self._idle.is_set():
            self._idle.clear()
            await self._idle.wait()
