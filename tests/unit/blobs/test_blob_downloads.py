"""Downloads as pure things: scripted answers in, requests out, with a clock of our own."""

from __future__ import annotations

import random
from typing import Any

import pytest
from raftstorage.client.cluster.downloads import SILENT_SHARE, WINDOW_PIECES, download
from raftstorage.client.cluster.errors import BlobDamaged, ClientDisconnected, StorageBusy
from raftstorage.client.cluster.policy import Answer, Broken, Send, Signal
from raftstorage.proto import BLOB_CHUNK_BYTES as CHUNK
from raftstorage.proto import storage_pb2 as pb

from tests.unit.client.test_client_policy import World, failure

OID, SERIAL = b"\0" * 7 + b"\1", b"\0" * 7 + b"\5"
PATIENCE = 5.0


class Pieces:
    """A sink."""

    def __init__(self) -> None:
        self.waiting = 0
        self.whole: tuple[int, int] | None = None
        self.got: list[tuple[bytes, str]] = []

    def begin(self, size: int, crc32c: int) -> None:
        assert self.whole is None
        self.whole = (size, crc32c)

    def put(self, data: bytes, address: str) -> None:
        assert self.whole is not None
        self.got.append((data, address))


class Downloading(World):
    def begin(self, chunks: int, **options: Any) -> Pieces:
        self.size = chunks * CHUNK
        self.sink = Pieces()
        self.sent: dict[int, Send] = {}
        flow = download(
            self.book,
            OID,
            SERIAL,
            SERIAL,
            self.sink,
            PATIENCE,
            self.clock,
            random.Random(1),
            retry=self.retried,
            told_off=self.told_off.append,
            **options,
        )
        self.note(self.start(flow))
        self.fill()
        return self.sink

    def note(self, send: Send | None) -> None:
        if send is not None:
            self.sent[send.call.message.offset // CHUNK] = send

    def fill(self) -> None:
        while self.step.wake == 0.0 and self.result is None:
            self.note(self.tell(Signal.WOKE))

    def piece(self, chunk: int, **fields: Any) -> None:
        send = self.sent.pop(chunk)
        data = {"data": bytes([chunk]) * CHUNK, "size": self.size, "crc32c": 7} | fields
        self.note(self.tell(Answer(send.address, pb.Event(blob_data=pb.BlobData(**data)), send.attempt)))
        self.fill()

    def fail(self, chunk: int, event: pb.Event | None) -> None:
        """Answers with a failure, or the stream breaks."""
        send = self.sent.pop(chunk)
        self.sent.clear()
        happened = (
            Broken(send.address, send.attempt) if event is None else Answer(send.address, event, send.attempt)
        )
        self.note(self.tell(happened))
        self.fill()

    def wake(self) -> None:
        if not self.sent:
            self.note(self.wake_until_sent())
            self.fill()

    @property
    def asked(self) -> set[str]:
        return {send.address for send in self.sent.values()}


def test_the_first_piece_says_how_many_there_are() -> None:
    world = Downloading()
    sink = world.begin(3)
    assert list(world.sent) == [0]
    assert world.asked == {"b"}
    world.piece(0)
    assert sorted(world.sent) == [1, 2]
    world.piece(2)  # out of order
    world.piece(1)
    assert sink.whole == (3 * CHUNK, 7)
    assert [data[0] for data, _ in sink.got] == [0, 1, 2]
    assert world.result.blob_data.size == 3 * CHUNK


def test_an_empty_blob_is_one_answer() -> None:
    world = Downloading()
    sink = world.begin(0)
    world.piece(0, data=b"", crc32c=0)
    assert world.result is not None
    assert sink.whole == (0, 0)


def test_no_more_is_asked_for_than_the_sink_can_take() -> None:
    world = Downloading()
    sink = world.begin(100)
    world.piece(0)
    assert len(world.sent) == WINDOW_PIECES
    sink.waiting = WINDOW_PIECES - 2
    for chunk in range(1, WINDOW_PIECES - 1):
        world.piece(chunk)
    assert len(world.sent) == 2
    for _ in range(100):
        if len(world.sent) == 2:
            world.piece(min(world.sent))
            world.piece(min(world.sent))
        assert world.tell(Signal.WOKE) is None  # the disk is slow: it is waited for without end
        sink.waiting = WINDOW_PIECES
    sink.waiting = 0
    world.note(world.tell(Signal.CHANGED))
    world.fill()
    assert len(world.sent) == WINDOW_PIECES


def test_another_replica_goes_on_where_one_was_lost() -> None:
    world = Downloading()
    sink = world.begin(4)
    world.piece(0)
    world.piece(1)
    world.fail(2, None)
    assert world.asked == {"c"}
    assert sorted(world.sent) == [2, 3]
    world.piece(2)
    world.piece(3)
    assert [address for _, address in sink.got] == ["b", "b", "c", "c"]
    assert world.retries == 1


@pytest.mark.parametrize("reason", [pb.LAGGING, pb.BUSY, pb.STOPPING, pb.INTERNAL])
def test_who_cannot_answer_now_is_left(reason: int) -> None:
    world = Downloading()
    world.begin(1)
    world.fail(0, failure(reason))
    assert world.asked == {"c"}
    world.piece(0)
    assert world.result.HasField("blob_data")


@pytest.mark.parametrize("suspect", [True, False])
def test_who_is_silent_is_left(suspect: bool) -> None:
    world = Downloading()
    world.begin(2)
    world.piece(0)
    world.sent.clear()
    world.book.replicas["b"].suspect = suspect
    begun = world.now
    world.wake()
    assert world.asked == {"c"}
    assert world.now - begun <= (1.0 if suspect else PATIENCE * SILENT_SHARE + 1)


def test_there_being_no_such_blob_is_the_answer() -> None:
    world = Downloading()
    world.begin(1)
    world.fail(0, failure(pb.NO_SUCH_OBJECT))
    assert world.result.failure.reason == pb.NO_SUCH_OBJECT


def test_damage_on_all_replicas_is_the_answer() -> None:
    world = Downloading()
    world.begin(1)
    for _ in range(3):
        world.wake()
        world.fail(0, failure(pb.INTERNAL))
    assert world.result.failure.reason == pb.INTERNAL


@pytest.mark.parametrize(
    "wrong", [{"data": b"short"}, {"data": b""}, {"size": 5 * CHUNK}, {"crc32c": 8}, {"data": bytes(CHUNK + 1)}]
)
def test_who_sends_what_cannot_be_right_is_passed_over(wrong: dict[str, Any]) -> None:
    world = Downloading()
    sink = world.begin(3)
    world.piece(0)
    world.sent.pop(2)
    world.piece(1, **wrong)
    assert world.asked == {"c"}
    world.piece(1)
    world.piece(2)
    assert [address for _, address in sink.got] == ["b", "c", "c"]


def test_none_left_that_could_have_it_right() -> None:
    world = Downloading()
    with pytest.raises(BlobDamaged, match=OID.hex()):
        world.begin(3, passed_over={"a", "b", "c"})
    world = Downloading()
    world.begin(3, passed_over={"a"})
    assert world.asked == {"b"}
    world.piece(0, data=b"short")
    with pytest.raises(BlobDamaged):
        world.piece(0, data=b"short")


def test_a_download_without_progress_gives_up() -> None:
    world = Downloading()
    world.begin(2)
    world.piece(0)
    begun = world.now
    with pytest.raises(ClientDisconnected):
        while True:
            world.tell(Signal.WOKE)
    assert PATIENCE <= world.now - begun < PATIENCE + 2


def test_a_download_from_busy_replicas_gives_up_as_busy() -> None:
    world = Downloading()
    world.begin(2)
    busy = pb.Event(failure=pb.Failure(reason=pb.BUSY, retry_after_ms=100_000))
    with pytest.raises(StorageBusy):
        while True:
            if world.sent:
                world.fail(0, busy)
            else:
                world.note(world.tell(Signal.WOKE))
                world.fill()
