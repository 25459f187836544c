"""The leader's side of uploads: chunks of blobs on their way into the log, and the end of idle ones.

Pure: times are handed in, proposals go out through a function, answers through the `reply` given with each chunk.
Only a few chunks are in the log at once that are not applied yet: whoever commits meanwhile waits behind those,
not behind a whole blob. The others wait here, and owners (sessions) take turns.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raftstorage.node.admission import Amount, Tally
from raftstorage.node.engine.api import Applied, Engine
from raftstorage.node.failures import failed, lost, not_leader
from raftstorage.node.oids import Reply
from raftstorage.node.raft.types import Entry, NotLeader
from raftstorage.proto import storage_pb2 as pb

#: Bytes of chunks that may be in the log and not applied: while the log has one, the next is written.
WINDOW_BYTES = 512 << 10
#: Chunks of one session that may wait or be in the log.
OWN = Amount(1024, 4 << 20)
#: An upload that no chunk came for in so long is removed, in milliseconds.
IDLE_MS = 3_600_000
#: How often it is looked for such, in seconds.
EXPIRE_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class _Chunk:
    """One that waits, or, with its `term`, one in the log; `others`: those who sent the same bytes again."""

    owner: object
    upload_id: bytes
    offset: int
    data: bytes
    reply: Reply
    size: int
    term: int = 0
    others: list[Reply] = field(default_factory=list)


@dataclass(slots=True)
class _Tail:
    """What of an upload is in the log and not applied: so many chunks, the last of which ends at `end`."""

    count: int
    end: int
    last: _Chunk


class Uploads:
    """See the module. `wall_clock`: seconds since 1970; it may jump. `expire_seconds`: from one look for idle
    uploads to the next."""

    def __init__(
        self,
        engine: Engine,
        propose: Callable[[bytes], int],
        term: Callable[[], int],
        wall_clock: Callable[[], float],
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.expire_seconds = EXPIRE_SECONDS
        self._engine = engine
        self._propose = propose
        self._term = term
        self._wall_clock = wall_clock
        self._window = window_bytes
        self._waiting: OrderedDict[object, deque[_Chunk]] = OrderedDict()
        self._waits = Tally()
        self._owned: dict[object, Tally] = {}
        self._flights: dict[int, _Chunk] = {}  # by log index
        self._flying = 0
        self._tails: dict[bytes, _Tail] = {}
        self._expiring = 0  # index of an ExpireUploadsCommand in the log
        self._next_look = 0.0

    @property
    def waiting(self) -> Amount:
        """Chunks that are not in the log yet."""
        return self._waits.amount()

    def owned(self, owner: object) -> Amount:
        """Chunks of this owner that are not answered."""
        tally = self._owned.get(owner)
        return Amount(0, 0) if tally is None else tally.amount()

    def chunk(self, owner: object, asked: pb.BlobChunk, reply: Reply) -> None:
        """`asked` is checked. Without data it only asks how far the upload is."""
        if not asked.data:
            reply(self._stored(asked.upload_id))
            return
        data = asked.data
        chunk = _Chunk(owner, asked.upload_id, asked.offset, data, reply, len(data))
        self._waiting.setdefault(owner, deque()).append(chunk)
        self._waits.add(chunk.size)
        self._owned.setdefault(owner, Tally()).add(chunk.size)
        self._go_on()

    def applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        """What was applied, on any node in any role; before `lost_leadership` of the same turn."""
        for entry, outcome in entries:
            if entry.index == self._expiring:
                self._expiring = 0
            chunk = self._flights.pop(entry.index, None)
            if chunk is None:
                continue
            self._landed(chunk)
            for reply in (chunk.reply, *chunk.others):
                if entry.term != chunk.term:
                    reply(lost())
                elif outcome.uploaded is None:
                    reply(failed(pb.INVALID, outcome.refused or "refused"))
                else:
                    reply(_blob_stored(chunk.upload_id, outcome.uploaded))
        self._go_on()

    def lost_leadership(self) -> None:
        """Answers everything. What is in the log may get through or not: the next leader can be asked."""
        flights, waiting = self._flights, self._waiting
        self._flights, self._waiting = {}, OrderedDict()
        self._waits = Tally()
        self._flying = self._expiring = 0
        self._owned.clear()
        self._tails.clear()
        for chunk in flights.values():
            for reply in (chunk.reply, *chunk.others):
                reply(lost())
        for chunks in waiting.values():
            for chunk in chunks:
                chunk.reply(not_leader())

    def session_closed(self, owner: object) -> None:
        """Nobody waits for its answers any more."""
        for chunk in self._waiting.pop(owner, ()):
            self._waits.remove(chunk.size)
            self._disown(chunk)

    def tick(self, now: float) -> None:
        """To be called on a leader that is ready; `now`: seconds of a clock that is never set."""
        if now < self._next_look or self._expiring:
            return
        stamp = self._now_ms() - IDLE_MS
        if stamp <= 0 or not self._engine.stale_uploads(stamp):
            self._next_look = now + self.expire_seconds
            return
        command = pb.Command(expire_uploads=pb.ExpireUploadsCommand(stamp=stamp))
        try:
            self._expiring = self._propose(command.SerializeToString())
        except NotLeader:
            self._next_look = now + self.expire_seconds

    # ---- a chunk's way -------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Takes chunks into the log, one of each owner in turn, until the window is full."""
        while self._waiting and self._flying < self._window:
            owner, chunks = self._waiting.popitem(last=False)
            chunk = chunks.popleft()
            if chunks:
                self._waiting[owner] = chunks
            self._waits.remove(chunk.size)
            if not self._send(chunk):
                self._disown(chunk)

    def _send(self, chunk: _Chunk) -> bool:
        """False: it is answered, or will be with another one."""
        tail = self._tails.get(chunk.upload_id)
        there = self._engine.upload_size(chunk.upload_id) or 0
        stop = chunk.offset + chunk.size
        if stop <= there or chunk.offset > (there if tail is None else max(there, tail.end)):
            chunk.reply(_blob_stored(chunk.upload_id, there))
            return False
        if tail is not None and stop <= tail.end:
            tail.last.others.append(chunk.reply)
            return False
        command = pb.BlobCommand(
            upload_id=chunk.upload_id, offset=chunk.offset, data=chunk.data, stamp=max(0, self._now_ms())
        )
        chunk.term = self._term()
        try:
            index = self._propose(pb.Command(blob=command).SerializeToString())
        except NotLeader:
            chunk.reply(not_leader())
            return False
        chunk.data = b""  # the log has it
        self._flights[index] = chunk
        self._flying += chunk.size
        self._tails[chunk.upload_id] = _Tail(1 if tail is None else tail.count + 1, stop, chunk)
        return True

    def _landed(self, chunk: _Chunk) -> None:
        self._flying -= chunk.size
        self._disown(chunk)
        tail = self._tails[chunk.upload_id]
        tail.count -= 1
        if not tail.count:
            del self._tails[chunk.upload_id]

    def _disown(self, chunk: _Chunk) -> None:
        tally = self._owned.get(chunk.owner)
        if tally is not None:
            tally.remove(chunk.size)
            if not tally.items:
                del self._owned[chunk.owner]

    def _stored(self, upload_id: bytes) -> pb.Event:
        return _blob_stored(upload_id, self._engine.upload_size(upload_id) or 0)

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1000)


def _blob_stored(upload_id: bytes, size: int) -> pb.Event:
    return pb.Event(blob_stored=pb.BlobStored(upload_id=upload_id, size=size))
