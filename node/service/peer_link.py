"""A stream to a peer whose hello was accepted, and the messages that wait for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio
from raftstorage.node.admission import Amount
from raftstorage.node.raft.types import Message
from raftstorage.node.service.codec import decode, encode, size_of
from raftstorage.node.service.peer_hello import PeerInfo
from raftstorage.node.service.streams import give_up, let_finish
from raftstorage.proto import raft_pb2 as pb

QUEUE_MESSAGES = 4096
QUEUE_BYTES = 64 << 20
BATCH_MESSAGES = 4096
#: Every byte is copied several times on the loop, here and there.
BATCH_BYTES = 1 << 20
#: At most so often a node tells a peer of itself.
NOTE_SECONDS = 1.0

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # its stubs lack it


@dataclass(frozen=True, slots=True)
class PeerNote:
    """What a node tells its peers of itself now and then. `disk_full`: it has no room for more."""

    disk_full: bool
    applied_index: int


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
        self._bytes = 0
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

    @property
    def amount(self) -> Amount:
        return Amount(len(self._messages), self._bytes)

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


class Stream(Protocol):
    """Either side of a stream of PeerBatch in grpc.aio. `read` answers `EOF` at the end."""

    def read(self) -> Awaitable[Any]: ...
    def write(self, message: pb.PeerBatch, /) -> Awaitable[None]: ...


class LinkOwner(Protocol):
    """What a link tells whoever made it. All on the loop."""

    def receive(self, messages: Sequence[Message]) -> None:
        """What a batch brought, checked."""

    def heard(self, link: Link) -> None:
        """The first batch came: the peer has taken our hello, too."""

    def nonsense(self, link: Link) -> None:
        """Some messages of a batch were left out."""

    def ended(self, link: Link) -> None:
        """Nothing is carried any more. Called again when the last of it is done."""


class Link:
    """The stream to `peer` from node `me`; `dialled`: by this node. `note`: what the peer is told now and then."""

    def __init__(
        self, peer: PeerInfo, me: int, owner: LinkOwner, note: Callable[[], PeerNote] | None, *, dialled: bool
    ) -> None:
        self.peer = peer
        self.dialled = dialled
        #: Dialled by the lower node id of the two.
        self.preferred = dialled == (me < peer.node_id)
        self.outbox = Outbox()
        #: Set when it must end.
        self.over = asyncio.Event()
        #: The peer's newest.
        self.note: PeerNote | None = None
        self._me = me
        self._owner = owner
        self._own_note = note
        self._note_due = 0.0  # in seconds of the loop's clock

    async def carry(self, stream: Stream, *first: pb.PeerBatch) -> None:
        """Sends `first`, then carries messages until the stream ends or `over` is set. Raises what ended it."""
        writer = asyncio.create_task(self._write(stream, first))
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._read(stream)),
            writer,
            asyncio.create_task(self.over.wait()),
        ]
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._owner.ended(self)
            self.outbox.close()
            await let_finish(writer)
        finally:
            self._owner.ended(self)
            await give_up(*tasks)
        for task in done:
            task.result()

    async def _read(self, stream: Stream) -> None:
        heard = False
        while (batch := await stream.read()) is not EOF:
            if not heard:
                heard = True
                self._owner.heard(self)
            if batch.HasField("status"):
                self.note = PeerNote(batch.status.disk_full, batch.status.applied_index)
            messages = []
            for wire in batch.messages:
                message = decode(wire, from_node=self.peer.node_id, to_node=self._me)
                if message is not None:
                    messages.append(message)
            if len(messages) < len(batch.messages):
                self._owner.nonsense(self)
            if messages:
                self._owner.receive(messages)

    async def _write(self, stream: Stream, first: Sequence[pb.PeerBatch]) -> None:
        for batch in first:
            await stream.write(batch)
        if self._own_note is not None:
            await stream.write(self._noted(pb.PeerBatch()))
        while True:
            batch = await self.outbox.take()
            if self.outbox.closed:
                return
            await stream.write(self._noted(batch))

    def _noted(self, batch: pb.PeerBatch) -> pb.PeerBatch:
        """`batch` with a note, if one is due."""
        now = asyncio.get_running_loop().time()
        if self._own_note is not None and now >= self._note_due:
            self._note_due = now + NOTE_SECONDS
            note = self._own_note()
            batch.status.SetInParent()  # there, even if all of it is zero
            batch.status.disk_full = note.disk_full
            batch.status.applied_index = note.applied_index
        return batch
