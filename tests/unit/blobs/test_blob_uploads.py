"""Uploads as pure things: scripted answers in, requests out, with a clock of our own."""

from __future__ import annotations

import random
from typing import Any

import pytest
from raftstorage.client.cluster.errors import ClientDisconnected, StorageBusy, StorageFull
from raftstorage.client.cluster.policy import Answer, Broken, Send, Signal
from raftstorage.client.cluster.uploads import WINDOW_CHUNKS, Chunk, upload
from raftstorage.proto import BLOB_CHUNK_BYTES as CHUNK
from raftstorage.proto import storage_pb2 as pb

from tests.unit.client.test_client_policy import World

UPLOAD = b"u" * 16
PATIENCE = 5.0


class Bytes:
    """A source that has everything at hand, or only up to `ready`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ready = size
        self.asked: list[int] = []

    def chunk(self, offset: int) -> Chunk | None:
        self.asked.append(offset)
        if offset >= self.ready:
            return None
        return Chunk(bytes(min(CHUNK, self.size - offset)), 0)


class Uploading(World):
    def begin(self, chunks: int) -> Bytes:
        self.source = Bytes(chunks * CHUNK)
        self.sent: list[Send] = []
        self.note(
            self.start(
                upload(
                    self.book,
                    self.source,
                    UPLOAD,
                    self.source.size,
                    PATIENCE,
                    self.clock,
                    random.Random(1),
                    retry=self.retried,
                    told_off=self.told_off.append,
                )
            )
        )
        return self.source

    def note(self, send: Send | None) -> None:
        if send is not None:
            self.sent.append(send)

    def fill(self) -> list[int]:
        """Lets it send all that it likes; the offsets of what was sent since the last time."""
        while self.step.wake == 0.0 and self.result is None:
            self.note(self.tell(Signal.WOKE))
        offsets = [send.call.message.offset // CHUNK for send in self.sent]
        self.latest, self.sent = self.sent or [self.latest[-1]], []
        return offsets

    def stored(self, chunks: int, send: Send | None = None) -> None:
        send = send or self.latest[-1]
        event = pb.Event(blob_stored=pb.BlobStored(upload_id=UPLOAD, size=chunks * CHUNK))
        self.note(self.tell(Answer(send.address, event, send.attempt)))

    def fail(self, reason: int, **fields: Any) -> None:
        send = self.latest[-1]
        event = pb.Event(failure=pb.Failure(reason=reason, **fields))  # type: ignore[arg-type]
        self.note(self.tell(Answer(send.address, event, send.attempt)))

    def wake(self) -> None:
        """Time goes by until it sends something."""
        if not self.sent:
            self.note(self.wake_until_sent())


def test_a_window_of_chunks_is_under_way() -> None:
    world = Uploading()
    world.begin(WINDOW_CHUNKS + 3)
    assert world.fill() == list(range(WINDOW_CHUNKS))
    world.stored(1)
    world.stored(2)
    assert world.fill() == [WINDOW_CHUNKS, WINDOW_CHUNKS + 1]
    for done in range(3, WINDOW_CHUNKS + 4):
        world.stored(done)
        world.fill()
    assert world.result.blob_stored.size == (WINDOW_CHUNKS + 3) * CHUNK


def test_what_is_not_read_yet_is_waited_for_without_end() -> None:
    world = Uploading()
    source = world.begin(3)
    source.ready = CHUNK
    assert world.fill() == [0]
    world.stored(1)
    for _ in range(100):
        assert world.tell(Signal.WOKE) is None  # the disk is slow, and nobody else is to blame
    source.ready = 3 * CHUNK
    world.note(world.tell(Signal.CHANGED))
    assert world.fill() == [1, 2]


def test_after_a_failover_it_goes_on_where_the_new_leader_says() -> None:
    world = Uploading()
    world.begin(4)
    assert world.fill() == [0, 1, 2, 3]
    world.stored(1)
    world.book.learn_leader(pb.Leader(term=2, node_id=2, address="b"))
    world.note(world.tell(Signal.CHANGED))
    assert world.fill() == [1]
    (question,) = world.latest
    assert (question.address, question.call.message.data) == ("b", b"")
    world.stored(3)  # two more had got through
    assert world.fill() == [3]
    assert world.latest[0].address == "b"
    world.stored(4)
    assert world.result.blob_stored.size == 4 * CHUNK
    assert world.retries == 1


def test_an_upload_that_the_cluster_has_forgotten_begins_anew() -> None:
    world = Uploading()
    world.begin(3)
    world.fill()
    world.stored(2)
    world.note(world.tell(Broken("a", world.latest[-1].attempt)))
    world.wake()
    world.fill()
    world.stored(0)
    assert world.fill() == [0, 1, 2]


def test_chunks_behind_a_lost_one_are_sent_again() -> None:
    world = Uploading()
    world.begin(3)
    world.fill()
    for _ in range(3):
        world.stored(1)  # the second never came, and so the third was not taken
    world.wake()
    assert world.fill() == [1]
    assert world.latest[0].call.message.data == b""
    world.stored(1)
    assert world.fill() == [1, 2]


def test_late_answers_to_an_earlier_attempt_are_not_taken_for_new_ones() -> None:
    world = Uploading()
    world.begin(2)
    world.fill()
    old = world.latest[0]
    world.note(world.tell(Broken("a", old.attempt)))
    world.wake()
    world.fill()
    world.stored(2, old)
    assert world.result is None
    world.stored(0)
    assert world.fill() == [0, 1]


def test_who_is_busy_is_left_alone_for_as_long_as_it_wants() -> None:
    world = Uploading()
    world.begin(2)
    world.fill()
    before = world.now
    world.fail(pb.BUSY, retry_after_ms=1500)
    world.wake()
    assert world.now - before >= 1.5
    assert world.told_off == [pb.BUSY]


@pytest.mark.parametrize(
    ("reason", "error"),
    [(pb.BUSY, StorageBusy), (pb.STORAGE_FULL, StorageFull), (pb.STOPPING, ClientDisconnected)],
)
def test_without_progress_it_gives_up(reason: int, error: type[Exception]) -> None:
    world = Uploading()
    world.begin(2)
    begun = world.now
    with pytest.raises(error):
        for _ in range(1000):
            world.fill()
            world.fail(reason, retry_after_ms=400)
            world.wake()
    assert PATIENCE <= world.now - begun < PATIENCE + 2


def test_time_counts_from_the_last_progress() -> None:
    world = Uploading()
    world.begin(9 + WINDOW_CHUNKS)
    begun = world.now
    for chunk in range(1, 9):
        world.fill()
        world.now += PATIENCE - 1
        world.stored(chunk)
    assert world.now - begun > PATIENCE
    with pytest.raises(ClientDisconnected):
        while True:
            world.fill()
            world.tell(Signal.WOKE)


def test_a_refusal_for_good_is_the_answer() -> None:
    world = Uploading()
    world.begin(2)
    world.fill()
    world.fail(pb.UNSUPPORTED)
    assert world.result.failure.reason == pb.UNSUPPORTED
