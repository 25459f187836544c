"""A blob's bytes on their way to the leader, several chunks at a time. Pure, as policy.py is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol

from raftstorage.proto import storage_pb2 as pb

from .policy import (
    RETRY_LEAD,
    Answer,
    Backoff,
    Book,
    Broken,
    Call,
    Flow,
    Happened,
    Replica,
    Send,
    Signal,
    Step,
    leading,
)
from .refusals import TOO_MUCH, Random, refused, rest_seconds

#: Chunks that are under way at once: 2 MiB, half of what a leader takes of one session.
WINDOW_CHUNKS = 8


class Chunk(NamedTuple):
    data: bytes
    crc32c: int


class Source(Protocol):
    """Where the bytes come from."""

    def chunk(self, offset: int) -> Chunk | None:
        """What is to be sent from `offset` on. None: it is not at hand yet, and the flow is woken when it is."""


def upload(
    book: Book,
    source: Source,
    upload_id: bytes,
    size: int,
    patience: float,
    clock: Callable[[], float],
    random: Random,
    *,
    retry: Callable[[], None] = lambda: None,
    told_off: Callable[[int], None] = lambda reason: None,
) -> Flow:
    """Has all `size` bytes put into the log; returns the answer that says so, or one that refuses them for good.

    After a failover, or when it was put off, it goes on where the leader says that the upload is. When `patience`
    seconds pass without any progress: ClientDisconnected, StorageBusy or StorageFull. `retry`, `told_off`: as for
    `policy.read`.
    """
    return _Upload(book, source, upload_id, size, patience, clock, random, told_off).run(retry)


class _Upload:
    def __init__(
        self,
        book: Book,
        source: Source,
        upload_id: bytes,
        size: int,
        patience: float,
        clock: Callable[[], float],
        random: Random,
        told_off: Callable[[int], None],
    ) -> None:
        self._book = book
        self._source = source
        self._upload_id = upload_id
        self._size = size
        self._patience = patience
        self._clock = clock
        self._random = random
        self._told_off = told_off
        self._backoff = Backoff(random)
        self._stored = 0  # so many bytes are in the log
        self._best = 0
        self._deadline = clock() + patience
        self._attempt = 0

    def run(self, retry: Callable[[], None]) -> Flow:
        book = self._book
        asked: set[str] = set()
        asked_in = book.term
        last = pb.Failure()
        pause = 0.0
        target: Replica | None = None
        while True:
            yield from self._rest(pause, target)
            if self._clock() >= self._deadline:
                raise refused(last, "an upload")
            if asked_in != book.term:
                asked.clear()
                asked_in = book.term
            target = leading(book, asked)
            if target is None:
                asked.clear()
                pause = self._backoff.next()
                continue
            asked.add(target.address)
            self._attempt += 1
            if self._attempt > 1:
                retry()
            answer = yield from self._send_to(target)
            if answer is None:
                pause = self._backoff.next()
                continue
            if not answer.HasField("failure"):
                return answer
            last = answer.failure
            if last.reason not in RETRY_LEAD:
                return answer
            pause = self._backoff.next()
            if last.reason in TOO_MUCH:
                self._told_off(last.reason)
                pause = rest_seconds(last, self._random) or pause
            if last.reason != pb.NOT_LEADER:
                asked.discard(target.address)

    def _rest(self, seconds: float, after: Replica | None) -> Generator[Step, Happened, None]:
        """Ends early when another replica than `after` leads."""
        until = min(self._deadline, self._clock() + seconds)
        while (left := until - self._clock()) > 0:
            leader = self._book.leader()
            if after is not None and leader is not None and leader is not after and leader.connected:
                return
            yield Step(None, left)

    def _send_to(self, target: Replica) -> Generator[Step, Happened, pb.Event | None]:
        """All the rest, to one replica. The last answer, a failure, or None: it must be begun again."""
        attempt = self._attempt
        term = self._book.term
        position = self._stored
        under_way = 0
        asking = attempt > 1  # the replica says first where the upload is
        if asking:
            under_way = 1
            happened = yield Step(self._send(target, position, Chunk(b"", 0)), self._wake())
        else:
            happened = Signal.CHANGED
        while True:
            if isinstance(happened, Answer) and happened.attempt == attempt:
                if happened.event.HasField("failure"):
                    return happened.event
                under_way -= 1
                self._progress(happened.event.blob_stored.size)
                if asking:
                    asking = False
                    position = self._stored = happened.event.blob_stored.size
                if self._stored >= self._size:
                    return happened.event
                if not under_way and position > self._stored:
                    return None  # a chunk was lost on its way, and those behind it were not taken
            elif self._is_over(happened, target, term):
                return None
            chunk = None
            if not asking and position < self._size and under_way < WINDOW_CHUNKS:
                chunk = self._source.chunk(position)
            if chunk is None:
                if not under_way:
                    self._deadline = self._clock() + self._patience  # nobody but the source is waited for
                happened = yield Step(None, self._wake())
                continue
            send = self._send(target, position, chunk)
            position += len(chunk.data)
            under_way += 1
            happened = yield Step(send, 0.0)

    def _deposed(self, target: Replica, term: int) -> bool:
        return self._book.term > term and self._book.leader() not in (None, target)

    def _is_over(self, happened: Happened, target: Replica, term: int) -> bool:
        """Whether nothing more is to be had of `target` for the time being."""
        if isinstance(happened, Broken):
            return happened.attempt == self._attempt
        if self._clock() >= self._deadline:
            return True
        return self._book.term > term and self._book.leader() not in (None, target)

    def _send(self, target: Replica, offset: int, chunk: Chunk) -> Send:
        message = pb.BlobChunk(upload_id=self._upload_id, offset=offset, data=chunk.data, crc32c=chunk.crc32c)
        return Send(target.address, Call("blob_chunk", message), self._attempt)

    def _progress(self, size: int) -> None:
        self._stored = max(self._stored, size)
        if self._stored > self._best:
            self._best = self._stored
            self._deadline = self._clock() + self._patience
            self._backoff.reset()

    def _wake(self) -> float:
        return max(0.0, min(self._deadline - self._clock(), 1.0))
