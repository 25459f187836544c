"""A blob's bytes from any replica, several pieces at a time. Pure, as policy.py is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Set
from typing import Protocol

from raftstorage.proto import BLOB_CHUNK_BYTES
from raftstorage.proto import storage_pb2 as pb

from .errors import BlobDamaged, ClientDisconnected
from .policy import (
    RETRY_READ,
    Answer,
    Backoff,
    Book,
    Broken,
    Call,
    Flow,
    Happened,
    Replica,
    Send,
    Step,
)
from .refusals import Random, refused, rest_seconds

#: Pieces that are under way, or wait to be written, at once: 4 MiB.
WINDOW_PIECES = 16
#: A replica that answers others, but not this for so much of the patience, is left.
SILENT_SHARE = 1 / 3


class Sink(Protocol):
    """Where the bytes go. The flow is woken when `waiting` has become less."""

    @property
    def waiting(self) -> int:
        """Pieces that were put and are not written yet."""

    def begin(self, size: int, crc32c: int) -> None:
        """What all bytes together must be. Called once, before the first `put`."""

    def put(self, data: bytes, address: str) -> None:
        """The next bytes, and which replica they are from."""


def download(
    book: Book,
    oid: bytes,
    serial: bytes,
    at_least: bytes,
    sink: Sink,
    patience: float,
    clock: Callable[[], float],
    random: Random,
    *,
    passed_over: Set[str] = frozenset(),
    retry: Callable[[], None] = lambda: None,
    told_off: Callable[[int], None] = lambda reason: None,
) -> Flow:
    """The whole blob of that revision, in order; returns the last answer, or one that refuses it for good.

    A replica that is lost, busy, silent or behind is left for another one, which goes on where it was. Those at
    the addresses in `passed_over`, and those whose pieces cannot be right, are not asked; when no other one is
    left: BlobDamaged. Whether the bytes are right is for the sink to see. When `patience` seconds pass without any
    progress: ClientDisconnected or StorageBusy. `retry`, `told_off`: as for `policy.read`.
    """
    state = _Download(book, oid, serial, at_least, sink, patience, clock, random, set(passed_over), told_off)
    return state.run(retry)


class _Download:
    def __init__(
        self,
        book: Book,
        oid: bytes,
        serial: bytes,
        at_least: bytes,
        sink: Sink,
        patience: float,
        clock: Callable[[], float],
        random: Random,
        damaged: set[str],
        told_off: Callable[[int], None],
    ) -> None:
        self._book = book
        self._oid = oid
        self._serial = serial
        self._at_least = at_least
        self._sink = sink
        self._patience = patience
        self._clock = clock
        self._random = random
        self._damaged = damaged  # addresses of replicas that do not have it right
        self._told_off = told_off
        self._backoff = Backoff(random)
        self._whole: tuple[int, int] | None = None  # size and crc32c, as the first answer says
        self._received = 0
        self._deadline = clock() + patience
        self._attempt = 0

    def run(self, retry: Callable[[], None]) -> Flow:
        book, clock = self._book, self._clock
        asked: set[str] = set()
        failing: set[str] = set()
        resting: dict[str, float] = {}  # address of a busy replica -> when to ask it again
        last = pb.Failure()
        while True:
            if clock() >= self._deadline:
                if self._damaged:
                    raise BlobDamaged(self._text("no replica in reach has it whole"))
                raise (
                    refused(last, "a download")
                    if resting
                    else ClientDisconnected("no replica answered a download in time")
                )
            target = book.reader(self._at_least, asked | self._damaged)
            if target is None:
                if self._damaged and self._damaged.issuperset(book.replicas):
                    raise BlobDamaged(self._text("no replica has it whole"))
                if failing and all(replica.address in failing for replica in book.connected()):
                    return pb.Event(failure=last)
                yield Step(None, min(self._backoff.next(), max(0.0, self._deadline - clock())))
                asked = {address for address, until in resting.items() if until > clock()}
                continue
            asked.add(target.address)
            self._attempt += 1
            if self._attempt > 1:
                retry()
            answer = yield from self._get_from(target)
            if answer is None:
                continue
            if not answer.HasField("failure"):
                return answer
            last = answer.failure
            if last.reason not in RETRY_READ:
                return answer
            if last.reason == pb.INTERNAL:
                failing.add(target.address)  # damage, perhaps: others may have it whole
            elif last.reason == pb.BUSY:
                self._told_off(last.reason)
                resting[target.address] = clock() + rest_seconds(last, self._random)

    def _get_from(self, target: Replica) -> Generator[Step, Happened, pb.Event | None]:
        """All the rest, from one replica. The last answer, a failure, or None: another one must go on."""
        attempt = self._attempt
        position = self._received
        wanted: set[int] = set()  # offsets under way
        early: dict[int, bytes] = {}  # pieces that came before an earlier one
        heard = self._clock()
        while True:
            send = None
            if self._may_ask(position, len(wanted) + len(early)):
                message = pb.LoadBlob(
                    oid=self._oid,
                    serial=self._serial,
                    offset=position,
                    max_bytes=BLOB_CHUNK_BYTES,
                    at_least=self._at_least,
                )
                # The offset goes along in the attempt's number, so that the answer is known by it.
                send = Send(target.address, Call("load_blob", message), _number(attempt, position))
                wanted.add(position)
                position += BLOB_CHUNK_BYTES
            if not wanted:
                heard = self._clock()
                self._deadline = heard + self._patience  # nobody but the sink is waited for
            happened = yield Step(send, 0.0 if send is not None else self._wake())
            if isinstance(happened, Answer | Broken):
                number, offset = _numbers(happened.attempt)
                if number != attempt or offset not in wanted:
                    continue
                if isinstance(happened, Broken):
                    return None
                if happened.event.HasField("failure"):
                    return happened.event
                wanted.discard(offset)
                heard = self._clock()
                piece = happened.event.blob_data
                if not self._fits(offset, piece):
                    self._damaged.add(target.address)
                    return None
                early[offset] = piece.data
                while (data := early.pop(self._received, None)) is not None:
                    self._take(data, target.address)
                    if self._whole is not None and self._received == self._whole[0]:
                        return happened.event
            elif self._clock() >= self._deadline or (wanted and self._is_silent(target, heard)):
                return None

    def _is_silent(self, target: Replica, heard: float) -> bool:
        return target.suspect or self._clock() - heard > self._patience * SILENT_SHARE

    def _may_ask(self, position: int, asked: int) -> bool:
        if self._whole is None:
            return not asked  # whether there is more is not known yet
        return position < self._whole[0] and asked + self._sink.waiting < WINDOW_PIECES

    def _fits(self, offset: int, piece: pb.BlobData) -> bool:
        """Whether it can be the piece at `offset` of the blob that the first one was of."""
        whole = (piece.size, piece.crc32c)
        if self._whole is None:
            if len(piece.data) != min(BLOB_CHUNK_BYTES, piece.size - offset):
                return False
            self._whole = whole
            self._sink.begin(*whole)
        return whole == self._whole and len(piece.data) == min(BLOB_CHUNK_BYTES, piece.size - offset)

    def _take(self, data: bytes, address: str) -> None:
        self._sink.put(data, address)
        self._received += len(data)
        self._deadline = self._clock() + self._patience
        self._backoff.reset()

    def _wake(self) -> float:
        return max(0.0, min(self._deadline - self._clock(), 1.0))

    def _text(self, what: str) -> str:
        return f"the blob of object {self._oid.hex()} at {self._serial.hex()} cannot be had: {what}"


def _number(attempt: int, offset: int) -> int:
    return attempt << 64 | offset


def _numbers(number: int) -> tuple[int, int]:
    return number >> 64, number & ((1 << 64) - 1)
