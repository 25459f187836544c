"""What a client counts, for prometheus. Several storages may share a registry; the label `storage` tells them
apart."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from raftstorage.proto import storage_pb2 as pb

BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class CacheFigures(Protocol):
    """Counts of a cache, as of now."""

    @property
    def entries(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def evictions(self) -> int: ...


class _Families:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"raftstorage_client_{name}", text, ("storage", *labels), registry=registry)

        self.commits = counter("commits", "Transactions committed.")
        self.conflicts = counter("conflicts", "Conflicts: write, read, resolved.", "kind")
        self.retries = counter("retries", "Requests sent again, or to one more replica.", "call")
        self.refusals = counter("refusals", "Answers that put a call off: busy, storage_full.", "reason")
        self.failovers = counter("failovers", "Times that another leader took over.")
        self.disconnects = counter("disconnects", "Streams to replicas that were lost.")
        self.blob_bytes = counter("blob_bytes", "Bytes of blobs: sent, received.", "direction")
        self.leader = Gauge(
            "raftstorage_client_leader", "Node id of the leader; 0: none known.", ("storage",), registry=registry
        )
        self.seconds = Histogram(
            "raftstorage_client_call_seconds",
            "From call to answer, retries included.",
            ("storage", "call"),
            buckets=BUCKETS,
            registry=registry,
        )
        self.cache = _CacheFigures()
        registry.register(self.cache)


class _CacheFigures(Collector):
    """What the caches of storages hold, asked for when somebody looks."""

    def __init__(self) -> None:
        self.figures: dict[str, Callable[[], CacheFigures]] = {}

    def collect(self) -> Iterator[Metric]:
        gauges = {
            name: GaugeMetricFamily(f"raftstorage_client_cache_{name}", text, labels=("storage",))
            for name, text in (
                ("entries", "Revisions in the cache."),
                ("bytes", "Bytes of memory that they take."),
            )
        }
        counters = {
            name: CounterMetricFamily(f"raftstorage_client_cache_{name}", text, labels=("storage",))
            for name, text in (
                ("hits", "Loads that the cache answered."),
                ("misses", "Loads that it did not."),
                ("evictions", "Revisions that others took the place of."),
            )
        }
        for storage, figures in list(self.figures.items()):
            now = figures()
            for name, family in (gauges | counters).items():
                family.add_metric((storage,), getattr(now, name))
        yield from (gauges | counters).values()


_families: weakref.WeakKeyDictionary[CollectorRegistry, _Families] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Metrics:
    """One storage's metrics in a registry (default: the process's)."""

    def __init__(self, storage: str, registry: CollectorRegistry | None = None) -> None:
        registry = REGISTRY if registry is None else registry
        with _lock:
            families = _families.get(registry)
            if families is None:
                families = _families[registry] = _Families(registry)
        self._families = families
        self._storage = storage
        self.commits = families.commits.labels(storage)
        self.failovers = families.failovers.labels(storage)
        self.disconnects = families.disconnects.labels(storage)
        self.leader = families.leader.labels(storage)
        self._seconds: dict[str, Histogram] = {}
        self._retries: dict[str, Counter] = {}
        self._refusals: dict[int, Counter] = {
            pb.BUSY: families.refusals.labels(storage, "busy"),
            pb.STORAGE_FULL: families.refusals.labels(storage, "storage_full"),
        }

    def watch_cache(self, figures: Callable[[], CacheFigures] | None) -> None:
        """What the cache of this storage does from now on; None: it has none any more."""
        if figures is None:
            self._families.cache.figures.pop(self._storage, None)
        else:
            self._families.cache.figures[self._storage] = figures

    def conflict(self, kind: str) -> None:
        """`kind`: write, read or resolved."""
        self._families.conflicts.labels(self._storage, kind).inc()

    def blob_bytes(self, direction: str, count: int) -> None:
        """`direction`: sent or received."""
        self._families.blob_bytes.labels(self._storage, direction).inc(count)

    def observe(self, call: str, seconds: float) -> None:
        child = self._seconds.get(call)
        if child is None:
            child = self._seconds[call] = self._families.seconds.labels(self._storage, call)
        child.observe(seconds)

    def told_off(self, reason: int) -> None:
        """`reason`: pb.BUSY or pb.STORAGE_FULL."""
        self._refusals[reason].inc()

    def retry(self, call: str) -> None:
        child = self._retries.get(call)
        if child is None:
            child = self._retries[call] = self._families.retries.labels(self._storage, call)
        child.inc()
