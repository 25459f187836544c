"""One client's stream: the ordered queue of what leaves, its writer, what it has under way, and its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sized

import grpc
from raftstorage.node.admission import Amount, Tally
from raftstorage.node.service.pieces import Pieces, Sending
from raftstorage.node.service.validation import SessionLimits
from raftstorage.proto import storage_pb2 as pb

#: One EventBatch carries at most about this many bytes, and at least one event.
BATCH_BYTES = 4 << 20
#: With more than this waiting to leave, no further request is looked at.
ENOUGH_BYTES = 8 << 20
#: Answers of all sessions together, in bytes: with many sessions, each one's equal part of this is enough.
ALL_BYTES = 512 << 20
#: A session that was refused a restore and says nothing of restoring for so long has given it up, in seconds.
RESTORE_PAUSE = 30.0
#: Bytes of an event beside its payload, so that empty events count too.
_OVERHEAD = 16
#: What a large transaction's invalidations hold while they wait: they are made piece by piece.
_PIECES_BYTES = 64 << 10


class ClientSession:
    """Events leave in the order of `put`. Used from the loop. `crowd`: all sessions, this one among them.

    A request is under way from `begin` to `finish`. With too many of them, or too many answers that the client
    does not take, `room` waits: what the client goes on sending stays where it is, and gRPC tells it to wait.
    """

    def __init__(self, limits: SessionLimits, crowd: Sized = ((),)) -> None:
        self.read_only = False
        self.greeted = False
        self.protocol = 0  # the version that is spoken with this client
        self.takes_pages = False  # of invalidations
        #: Takes live invalidations above `after`; it has caught up with all before.
        self.live = False
        self.after = b""
        self.tasks: set[asyncio.Task[None]] = set()
        #: Why the session must end: status code and message.
        self.ended: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()
        self.closed = False
        #: Requests that are not answered; of them writes, and of those the ones that wait for somebody's objects.
        self.calls, self.writes, self.blocked = Tally(), Tally(), Tally()
        #: Transactions with tids of their own came; the first of them that was refused, and when.
        self.restores = False
        self._refused_restore: tuple[bytes, float] = (b"", 0.0)
        self._limits = limits
        self._crowd = crowd
        self._queue: deque[tuple[pb.Event | Sending, int]] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, event: pb.Event, size: int | None = None) -> None:
        """Queues `event`. A client that does not take what it is sent loses the session."""
        self._put(event, (event.ByteSize() if size is None else size) + _OVERHEAD)

    def put_pieces(self, pieces: Pieces) -> None:
        """As `put`."""
        self._put(Sending(pieces, whole=not self.takes_pages), _PIECES_BYTES)

    def _put(self, what: pb.Event | Sending, size: int) -> None:
        if self.closed or self.ended.done():
            return
        limits = self._limits
        if self._queue and (len(self._queue) >= limits.queue_items or self._bytes + size > limits.queue_bytes):
            self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, "the client does not take what it is sent")
            self._empty()  # it will not take it any more; the memory is for the others
            return
        self._queue.append((what, size))
        self._bytes += size
        self._filled.set()
        self._look()

    def end(self, code: grpc.StatusCode, message: str) -> None:
        if not self.ended.done():
            self.ended.set_result((code, message))

    def expect_greeting(self) -> None:
        """Now, or not at all."""
        if not self.greeted:
            self.end(grpc.StatusCode.DEADLINE_EXCEEDED, "no hello")

    def begin(self, size: int, write: bool) -> None:
        """A request was read."""
        self.calls.add(size)
        if write:
            self.writes.add(size)
        self._look()

    def finish(self, size: int, write: bool, blocked: bool) -> None:
        """It is answered; as `begin`, and `blocked`: it was counted as such."""
        self.calls.remove(size)
        if write:
            self.writes.remove(size)
        if blocked:
            self.blocked.remove(size)
        self._look()

    def refuse_restore(self, tid: bytes, now: float) -> None:
        """A transaction with this tid was not restored."""
        first, since = self._refused_restore
        alive = first and now - since <= RESTORE_PAUSE
        self._refused_restore = (min(first, tid) if alive else tid, now)

    def may_restore(self, tid: bytes, now: float) -> bool:
        """Transactions are restored by rising tids, many at a time: after one that was refused none behind it may
        be accepted, or it never could be. The client begins again with that one, or an earlier one."""
        first, since = self._refused_restore
        if first and tid > first and now - since <= RESTORE_PAUSE:
            return False
        if tid >= first:
            self._refused_restore = (b"", 0.0)  # it is the one, or that one was given up
        return True

    @property
    def queued(self) -> Amount:
        """What waits to leave."""
        return Amount(len(self._queue), self._bytes)

    def _look(self) -> None:
        """Is there room for another request?"""
        enough = min(ENOUGH_BYTES, ALL_BYTES // max(1, len(self._crowd)), self._limits.queue_bytes // 2)
        if self._bytes > enough or self.calls.amount().reaches(self._limits.calls):
            self._room.clear()
        else:
            self._room.set()

    def _empty(self) -> None:
        self._queue.clear()
        self._bytes = 0
        self._filled.clear()

    async def room(self) -> None:
        """Returns when another request may be looked at."""
        await self._room.wait()

    def take(self) -> pb.EventBatch:
        """What waits, up to BATCH_BYTES. Empty when nothing does, or when the first thing is not made yet.

        EngineError: what waits cannot be read.
        """
        events: list[pb.Event] = []
        size = 0
        while self._queue and (not events or size + self._queue[0][1] <= BATCH_BYTES):
            what, own = self._queue[0]
            if isinstance(what, Sending):
                if events:
                    break
                event = what.take()
                events = [event] if event is not None else []
                if what.done:
                    self._bytes -= self._queue.popleft()[1]
                break  # a piece is enough for one turn of the loop
            self._queue.popleft()
            events.append(what)
            size += own
        self._bytes -= size
        self._look()
        if not self._queue:
            self._filled.clear()
        return pb.EventBatch(events=events)

    async def write(self, context: grpc.aio.ServicerContext[pb.RequestBatch, pb.EventBatch]) -> None:
        """Sends what is put, until `close`. Not to be cancelled while it sends: see `streams.let_finish`.

        EngineError as `take`.
        """
        while True:
            await self._filled.wait()
            if self.closed:
                return
            self._idle.clear()
            batch = self.take()
            if batch.events:
                await context.write(batch)
            else:
                await asyncio.sleep(0)
            if not self._queue:
                self._idle.set()

    def close(self) -> None:
        """Takes and sends nothing more. `write` returns when what it is sending is sent."""
        self.closed = True
        self._empty()
        self._filled.set()

    async def written(self) -> None:
        """Returns when all that was put is sent."""
        while self._queue or not self._idle.is_set():
            self._idle.clear()
            await self._idle.wait()
