"""Uploads and downloads against a cluster of few lines that does whatever a cluster may do, from a seed."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import google_crc32c
import pytest
from raftstorage.client.cluster import downloads, uploads
from raftstorage.client.cluster.errors import BlobDamaged, ClientDisconnected
from raftstorage.client.cluster.policy import Answer, Book, Broken, Happened, Send, Signal, Step
from raftstorage.client.cluster.uploads import Chunk
from raftstorage.proto import storage_pb2 as pb

CHUNK = 10
NAMES = ("a", "b", "c")


class Cluster:
    """Answers late, out of order between replicas, or never; leaders change; what was answered is never lost, but
    for an upload that expires as a whole."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng = rng
        self.blob = rng.randbytes(size)
        self.now = 0.0
        self.log = bytearray()
        self.book = Book()
        for number, name in enumerate(NAMES, 1):
            replica = self.book.add(name)
            replica.node_id, replica.connected = number, True
        self.leader = "a"
        self.book.learn_leader(pb.Leader(term=1, node_id=1, address="a"))
        self.under_way: dict[str, deque[Send]] = {name: deque() for name in NAMES}
        self.damaged: set[str] = set()
        self.calm = False
        self.expired = 0

    def clock(self) -> float:
        return self.now

    def drive(self, flow: Any, steps: int = 20_000) -> pb.Event:
        step: Step = next(flow)
        for number in range(steps):
            self.calm = number > steps // 4
            if step.send is not None:
                self.under_way[step.send.address].append(step.send)
            try:
                step = flow.send(self.next(step))
            except StopIteration as stop:
                event: pb.Event = stop.value
                return event
        raise AssertionError("it came to no end")

    def next(self, step: Step) -> Happened:
        chance = self.rng.random()
        busy = [name for name in NAMES if self.under_way[name]]
        if not self.calm and chance < 0.02:
            return self.fail_over()
        if not self.calm and chance < 0.04 and busy:
            return self.lose(self.rng.choice(busy))
        if busy and (chance < 0.7 or step.wake > 0.5):
            name = self.rng.choice(busy)
            return self.answer(name, self.under_way[name].popleft())
        self.now += step.wake
        return Signal.WOKE

    def fail_over(self) -> Happened:
        self.leader = self.rng.choice(NAMES)
        self.book.learn_leader(
            pb.Leader(term=self.book.term + 1, node_id=NAMES.index(self.leader) + 1, address=self.leader)
        )
        return Signal.CHANGED

    def lose(self, name: str) -> Happened:
        """The stream breaks; some of what was under way is done all the same."""
        lost = self.under_way[name]
        attempt = lost[-1].attempt
        for _ in range(self.rng.randrange(len(lost) + 1)):
            self.answer(name, lost.popleft())
        lost.clear()
        return Broken(name, attempt)

    def answer(self, name: str, send: Send) -> Happened:
        kinds = {"blob_chunk": self.chunk, "load_blob": self.piece}
        return Answer(name, kinds[send.call.kind](name, send.call.message), send.attempt)

    def failure(self, reason: int) -> pb.Event:
        return pb.Event(failure=pb.Failure(reason=reason, retry_after_ms=30))  # type: ignore[arg-type]

    def chunk(self, name: str, call: pb.BlobChunk) -> pb.Event:
        if name != self.leader:
            return self.failure(pb.NOT_LEADER)
        if not self.calm and self.rng.random() < 0.05:
            return self.failure(self.rng.choice([pb.BUSY, pb.STORAGE_FULL, pb.STOPPING, pb.LEADERSHIP_LOST]))
        if not self.calm and self.rng.random() < 0.005:
            self.log.clear()
            self.expired += 1
        if call.data and call.offset <= len(self.log) < call.offset + len(call.data):
            self.log += call.data[len(self.log) - call.offset :]
        return pb.Event(blob_stored=pb.BlobStored(size=len(self.log)))

    def piece(self, name: str, call: pb.LoadBlob) -> pb.Event:
        if not self.calm and self.rng.random() < 0.05:
            return self.failure(self.rng.choice([pb.BUSY, pb.LAGGING, pb.STOPPING]))
        data = self.blob[call.offset : call.offset + call.max_bytes]
        if name in self.damaged and data:
            how = self.rng.randrange(3)
            data = (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:])[how]
        crc = int(google_crc32c.value(self.blob))
        return pb.Event(blob_data=pb.BlobData(data=data, size=len(self.blob), crc32c=crc))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "BLOB_CHUNK_BYTES", CHUNK)


class Source:
    """Has a chunk at hand or not, as it likes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def chunk(self, offset: int) -> Chunk | None:
        if self._cluster.rng.random() < 0.2:
            return None
        data = self._cluster.blob[offset : offset + CHUNK]
        return Chunk(data, int(google_crc32c.value(data)))


class Sink:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.data = b""
        self.sources: list[str] = []

    @property
    def waiting(self) -> int:
        return self._cluster.rng.randrange(downloads.WINDOW_PIECES)

    def begin(self, size: int, crc32c: int) -> None:
        self.size, self.crc32c = size, crc32c

    def put(self, data: bytes, address: str) -> None:
        self.data += data
        self.sources.append(address)


def test_whatever_happens_an_upload_ends_with_all_bytes_in_their_places(rng: random.Random) -> None:
    expired = 0
    for _ in range(150):
        cluster = Cluster(random.Random(rng.randrange(1 << 32)), rng.randrange(1, 60 * CHUNK))
        flow = uploads.upload(
            cluster.book, Source(cluster), b"u" * 16, len(cluster.blob), 1e9, cluster.clock, cluster.rng
        )
        event = cluster.drive(flow)
        assert event.blob_stored.size == len(cluster.blob)
        if event.blob_stored.size == len(cluster.log):  # it did not expire just then
            assert bytes(cluster.log) == cluster.blob
        expired += cluster.expired
    assert expired > 5


def test_whatever_happens_a_download_ends_with_all_bytes_in_their_places(rng: random.Random) -> None:
    mixed = 0
    for _ in range(150):
        cluster = Cluster(random.Random(rng.randrange(1 << 32)), rng.randrange(0, 60 * CHUNK))
        sink = Sink(cluster)
        event = cluster.drive(
            downloads.download(cluster.book, b"o" * 8, b"s" * 8, b"", sink, 1e9, cluster.clock, cluster.rng)
        )
        assert event.blob_data.size == len(cluster.blob)
        assert sink.data == cluster.blob
        mixed += len(set(sink.sources)) > 1
    assert mixed > 20


def test_damage_never_passes_as_the_whole(rng: random.Random) -> None:
    """Either the bytes are right, or their checksum says that they are not, or nobody has it."""
    outcomes = {"right": 0, "seen": 0, "nobody": 0}
    for _ in range(150):
        cluster = Cluster(random.Random(rng.randrange(1 << 32)), rng.randrange(1, 30 * CHUNK))
        cluster.damaged = set(rng.sample(NAMES, rng.randrange(1, 4)))
        sink = Sink(cluster)
        flow = downloads.download(cluster.book, b"o" * 8, b"s" * 8, b"", sink, 50.0, cluster.clock, cluster.rng)
        try:
            cluster.drive(flow)
        except (BlobDamaged, ClientDisconnected):
            outcomes["nobody"] += 1
            continue
        assert len(sink.data) == sink.size == len(cluster.blob)
        if sink.data == cluster.blob:
            outcomes["right"] += 1
        else:
            assert int(google_crc32c.value(sink.data)) != sink.crc32c
            outcomes["seen"] += 1
    assert min(outcomes.values()) > 5, outcomes
