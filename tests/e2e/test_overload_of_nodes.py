"""Ten times what a cluster can do, at real nodes: they keep to their memory, say when to come back, and go on.

`--overload-seconds` makes it longer than a test's few seconds.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry
from raftstorage.client import ClientStorage
from raftstorage.client.cluster import Call
from raftstorage.client.cluster.errors import ClientDisconnected, CommitOutcomeUnknown, StorageBusy
from raftstorage.client.cluster.loop import Waiter
from raftstorage.ops.local import LocalCluster
from raftstorage.proto import storage_pb2 as pb
from ZODB.utils import z64

STORAGES = 8
RECORD_BYTES = 64 << 10
#: Of a commit: so long it is tried.
PATIENCE = 6.0
#: What a node may take more than before, whatever is asked of it: what its queues may hold (docs/architecture.md),
#: the database's memory tables and block cache, and what an allocator keeps of all that.
MOST_GROWTH = 1 << 30
#: In the second half it may not go on growing, but for that.
MOST_SLOPE = 64 << 20
#: A client that obeys asks again once in a hint's time; one that does not, as fast as it is answered.
MOST_REFUSALS = 10.0

Answer = Waiter[tuple[pb.Event, str]]


@dataclass
class Pump:
    """Begins commits of new objects over several storages without waiting for them; each is waited for once."""

    addresses: str
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    storages: list[ClientStorage] = field(default_factory=list)
    started: collections.deque[tuple[bytes, Answer]] = field(default_factory=collections.deque)

    def __enter__(self) -> Pump:
        self._data = secrets.token_bytes(RECORD_BYTES)
        for number in range(STORAGES):
            storage = ClientStorage(
                self.addresses, wait_timeout=60.0, name=f"pump {number}", registry=self.registry
            )
            self.storages.append(storage)
        self._oids: collections.deque[bytes] = collections.deque()
        self._turns = itertools.cycle(self.storages)
        return self

    def __exit__(self, *_: object) -> None:
        for storage in self.storages:
            storage.close()

    def _need(self, oids: int) -> None:
        """Before an open loop, which cannot wait for them."""
        while len(self._oids) < oids:
            event, _ = self.storages[0].cluster.lead(Call("allocate_oids", pb.AllocateOids(count=10_000)))
            first = int.from_bytes(event.oids.first, "big")
            self._oids.extend((first + number).to_bytes(8, "big") for number in range(event.oids.count))

    def begin(self) -> Answer:
        """One more commit."""
        cluster = next(self._turns).cluster
        self._need(1)
        oid = self._oids.popleft()
        record = pb.NewRecord(oid=oid, base_serial=z64, data=self._data)
        body = pb.Transaction(records=[record]).SerializeToString()
        flow = cluster._replicas.commit(secrets.token_bytes(16), body, "", PATIENCE)
        answer = cluster.start(flow)
        self.started.append((oid, answer))
        return answer

    def sustained(self, seconds: float, under_way: int = 16) -> float:
        """Commits a second with so many of them under way at a time."""
        begin, count = time.monotonic(), 0
        while time.monotonic() - begin < seconds or self.started:
            if time.monotonic() - begin < seconds:
                self.begin()
            if len(self.started) == under_way or time.monotonic() - begin >= seconds:
                _oid, answer = self.started.popleft()
                answer.wait(60.0)
                count += 1
        return count / (time.monotonic() - begin)

    def open_loop(self, rate: float, seconds: float) -> float:
        """Begins `rate` commits a second, whatever comes of them; how many a second it really began."""
        self._need(int(rate * seconds))
        begin, count = time.monotonic(), 0
        while (now := time.monotonic() - begin) < seconds:
            for _ in range(int(rate * now) - count):
                self.begin()
                count += 1
            time.sleep(0.005)  # an open loop goes by the clock, not by answers
        return count / (time.monotonic() - begin)

    def refusals(self) -> float:
        """That all clients together were told."""
        return sum(
            self.registry.get_sample_value(
                "raftstorage_client_refusals_total", {"storage": f"pump {number}", "reason": "busy"}
            )
            or 0.0
            for number in range(STORAGES)
        )

    def outcomes(self) -> tuple[dict[str, int], set[bytes], set[bytes]]:
        """How many of each; the oids of what was committed, and of what was refused for good."""
        counts: collections.Counter[str] = collections.Counter()
        committed, refused = set(), set()
        for oid, answer in self.started:
            try:
                event, _ = answer.wait(PATIENCE + 60.0)
            except CommitOutcomeUnknown:
                counts["unknown"] += 1
            except (StorageBusy, ClientDisconnected) as error:
                counts[type(error).__name__] += 1
                refused.add(oid)
            else:
                assert event.HasField("committed"), event
                counts["committed"] += 1
                committed.add(oid)
        return dict(counts), committed, refused


class Memory:
    """Samples how much memory each node's process has, in bytes."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._processes = [psutil.Process(cluster.pid(i)) for i in cluster.members]
        self.samples: list[list[int]] = [[] for _ in self._processes]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for process, samples in zip(self._processes, self.samples, strict=True):
                samples.append(process.memory_info().rss)

    def now(self) -> list[int]:
        return [process.memory_info().rss for process in self._processes]

    @contextlib.contextmanager
    def sampled(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


def mib(sizes: list[int]) -> list[int]:
    return [size >> 20 for size in sizes]


@pytest.mark.timeout(0)
def test_ten_times_the_sustainable_load(
    start_cluster: Callable[..., LocalCluster], pytestconfig: pytest.Config, commit_new: Callable[..., Any]
) -> None:
    seconds = pytestconfig.option.overload_seconds
    cluster = start_cluster()
    with Pump(cluster.addresses) as pump:
        rate = pump.sustained(min(3.0, seconds))
        memory = Memory(cluster)
        before = memory.now()
        with memory.sampled():
            began = pump.open_loop(10 * rate, seconds)
            deadline = time.monotonic() + 10 * seconds
            while not pump.refusals() and time.monotonic() < deadline:  # a slow machine begins fewer
                pump.open_loop(10 * rate, seconds)
        outcomes, committed, refused = pump.outcomes()
        peaks = [max(samples) for samples in memory.samples]
        print(
            f"{rate:.0f} commits a second can be sustained, {began:.0f} were begun; {outcomes}; "
            f"{pump.refusals():.0f} refusals; MiB before {mib(before)}, at most {mib(peaks)}"
        )
        assert outcomes["committed"] > 0
        assert pump.refusals() > 0, "that was not too much"
        assert pump.refusals() < MOST_REFUSALS * len(pump.started), "clients do not wait as they are told"
        for first, peak, samples in zip(before, peaks, memory.samples, strict=True):
            assert peak - first < MOST_GROWTH
            middle = len(samples) // 2
            if seconds >= 30:
                assert max(samples[middle:]) - max(samples[: middle + 1]) < MOST_SLOPE
        oid, _ = commit_new(pump.storages[0], b"as ever")
        present = {record.oid for one in pump.storages[0].iterator() for record in one}
        assert committed <= present and oid in present
        assert not refused & present, "what was refused is there"
