"""A node's Prometheus metrics, named `raftstorage_node_*` and `raftstorage_pack_*`, in a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server
from raftstorage.node.admission import Amount
from raftstorage.node.disk_space import DiskWatcher, Room
from raftstorage.node.lag import Lag
from raftstorage.node.raft.types import Role
from raftstorage.node.service.stalls import Stalls
from raftstorage.proto.storage_pb2 import PackState

if TYPE_CHECKING:
    from raftstorage.node.driver import Driver
    from raftstorage.node.identity import NodeIdentity

_FAST = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SLOW = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class NodeMetrics:
    """One node's metrics. Counters are exported with `_total`.

    For storage sessions:
      `sessions`   gauge: connected clients
      `loads`      counter by `result`: "ok", "missing" (no such object or revision), "lagging", "error"
      `votes`      counter by `result`: "reserved", "conflict", "refused"
      `conflicts`  counter by `kind`: "write", "read"
      `blob_bytes` counter by `direction`: "received" (chunks of uploads), "sent"
      `commits`    counter by `result`: "committed", "repeated", "conflict", "refused", "lost"

    For snapshots, by `event`:
      `snapshots`  counter, and `snapshot_seconds` histogram: "made", "served", "fetched", "installed"
      `snapshot_failures`  counter: "make", "serve", "fetch", "install"
      `refused`    counter by `reason`: failures told to clients, as storage.proto's Reason, in lower case
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        name = "raftstorage_node_"
        self.sessions = Gauge(name + "sessions", "Connected clients", registry=registry)
        self.loads = Counter(name + "loads", "Loads answered", ["result"], registry=registry)
        self.votes = Counter(name + "votes", "Votes answered", ["result"], registry=registry)
        self.conflicts = Counter(
            name + "conflicts", "Conflicting objects told to clients", ["kind"], registry=registry
        )
        self.commits = Counter(name + "commits", "Commits answered", ["result"], registry=registry)
        self.blob_bytes = Counter(name + "blob_bytes", "Bytes of blobs", ["direction"], registry=registry)
        self.refused = Counter(name + "refused", "Calls refused", ["reason"], registry=registry)
        self.queue_items = Gauge(name + "queue_items", "What waits in a queue", ["queue"], registry=registry)
        self.queue_bytes = Gauge(name + "queue_bytes", "Bytes in a queue", ["queue"], registry=registry)
        self.queue_items_bound = Gauge(
            name + "queue_items_bound", "What a queue may hold", ["queue"], registry=registry
        )
        self.queue_bytes_bound = Gauge(
            name + "queue_bytes_bound", "Bytes that a queue may hold", ["queue"], registry=registry
        )
        self.disk_free = Gauge(name + "disk_free_bytes", "Room on the disk", registry=registry)
        self.disk_reserve = Gauge(name + "disk_reserve_bytes", "With less, no new writes", registry=registry)
        self.disk_full = Gauge(name + "disk_full", "1: a leader would refuse new writes", registry=registry)
        self.info = Info(name.rstrip("_"), "Who this is", registry=registry)
        self.role = Gauge(name + "role", "1 for the role the node has", ["role"], registry=registry)
        self.term = Gauge(name + "term", "Raft term", registry=registry)
        self.leader = Gauge(name + "leader_id", "Node id of the known leader, 0 for none", registry=registry)
        self.role_changes = Counter(name + "role_changes", "Changes of role, term or leader", registry=registry)
        self.last_index = Gauge(name + "last_index", "Newest log index, durable or not", registry=registry)
        self.commit_index = Gauge(name + "commit_index", "Committed log index", registry=registry)
        self.applied_index = Gauge(name + "applied_index", "Applied log index", registry=registry)
        self.log_sync_seconds = Histogram(
            name + "wal_sync_seconds", "Write and sync of one batch to the log", buckets=_FAST, registry=registry
        )
        self.log_batch = Histogram(
            name + "wal_batch_writes", "Writes that shared one sync", buckets=_COUNTS, registry=registry
        )
        self.proposals = Counter(name + "proposals", "Commands proposed here", registry=registry)
        self.applied = Counter(name + "applied_transactions", "Transactions applied", registry=registry)
        self.apply_seconds = Histogram(
            name + "apply_seconds", "Applying what one turn of the loop brought", buckets=_FAST, registry=registry
        )
        self.loop_lag_seconds = Histogram(
            name + "loop_lag_seconds", "How late the event loop ran a tick", buckets=_FAST, registry=registry
        )
        self.loop_lag_max = Gauge(
            name + "loop_lag_max_seconds", "The longest of them since this page was last read", registry=registry
        )
        self.loop_stalls = Counter(name + "loop_stalls", "Ticks that came more than 50 ms late", registry=registry)
        self._stalls = Stalls()
        self.loop_lag_max.set_function(self._stalls.take_longest)
        self.peer_connected = Gauge(
            name + "peer_connected", "1: stream to the peer is up", ["peer"], registry=registry
        )
        self.peer_dropped = Counter(
            name + "peer_dropped",
            "Messages dropped because the peer's queue was full",
            ["peer"],
            registry=registry,
        )
        self.snapshot_bytes = Counter(
            name + "snapshot_bytes", "Bytes of snapshots", ["direction"], registry=registry
        )
        self.snapshots = Counter(name + "snapshots", "Snapshots, by what was done", ["event"], registry=registry)
        self.snapshot_failures = Counter(
            name + "snapshot_failures", "What failed of snapshots", ["event"], registry=registry
        )
        self.snapshot_seconds = Histogram(
            name + "snapshot_seconds", "How long it took", ["event"], buckets=_SLOW, registry=registry
        )
        self.snapshot_fetch_done = Gauge(
            name + "snapshot_fetch_done_bytes", "Of the snapshot that is being fetched", registry=registry
        )
        self.snapshot_fetch_total = Gauge(
            name + "snapshot_fetch_total_bytes", "Size of the snapshot that is being fetched", registry=registry
        )
        for direction in ("sent", "received"):
            self.snapshot_bytes.labels(direction)
        for event in ("made", "served", "fetched", "installed"):
            self.snapshots.labels(event)
        for event in ("make", "serve", "fetch", "install"):
            self.snapshot_failures.labels(event)
        self.follower_lag = {
            what: Gauge(
                f"{name}follower_lag_{what}",
                f"How far a follower is behind, in {what}",
                ["peer"],
                registry=registry,
            )
            for what in ("entries", "transactions", "bytes", "seconds")
        }
        self.packs = {
            what: Gauge(f"raftstorage_pack_{what}", help_, registry=registry)
            for what, help_ in (
                ("running", "1: the newest pack is not done here"),
                ("done", "Of the newest pack's phase"),
                ("total", "Of the newest pack's phase, 0: not known"),
                ("removed_records", "By the newest pack, here"),
                ("removed_objects", "By garbage collection, in the newest pack"),
                ("removed_bytes", "By the newest pack, here"),
                ("garbage_kept", "1: the newest pack could not tell its garbage from what is needed"),
            )
        }
        self.pack_phase = Gauge("raftstorage_pack_phase", "1 for the newest pack's", ["phase"], registry=registry)
        self._server: WSGIServer | None = None

    def watch(self, driver: Driver, identity: NodeIdentity) -> None:
        """Reads the driver's plain numbers at each scrape."""
        self.info.info(
            {
                "node_id": str(identity.node_id),
                "cluster_id": identity.cluster_id,
                "version": metadata.version("raftstorage"),
            }
        )
        self.term.set_function(lambda: driver.term)
        self.leader.set_function(lambda: driver.leader)
        self.last_index.set_function(lambda: driver.last_index)
        self.commit_index.set_function(lambda: driver.commit_index)
        self.applied_index.set_function(lambda: driver.applied_index)
        for role in Role:
            self.role.labels(role.value).set_function(partial(_has_role, driver, role))

    def watch_queue(self, name: str, bound: Amount, measure: Callable[[], Amount]) -> None:
        """Asks `measure` at each scrape, in the page's thread: for numbers that are there already."""
        self.queue_items.labels(name).set_function(lambda: measure().items)
        self.queue_bytes.labels(name).set_function(lambda: measure().bytes)
        self.queue_items_bound.labels(name).set(bound.items)
        self.queue_bytes_bound.labels(name).set(bound.bytes)

    def watch_packing(self, state: Callable[[], PackState]) -> None:
        """Asks `state` at each scrape, in the page's thread."""
        for what in ("done", "total", "removed_records", "removed_objects", "removed_bytes"):
            self.packs[what].set_function(lambda what=what: getattr(state(), what))  # type: ignore[misc]
        self.packs["running"].set_function(lambda: state().phase not in ("", "done"))
        self.packs["garbage_kept"].set_function(lambda: bool(state().problem))
        for phase in ("marking", "collecting", "removing", "done"):
            self.pack_phase.labels(phase).set_function(lambda phase=phase: state().phase == phase)  # type: ignore[misc]

    def watch_disk(self, disk: DiskWatcher) -> None:
        gauge = disk.gauge
        self.disk_free.set_function(lambda: gauge.space.free)
        self.disk_reserve.set_function(lambda: gauge.reserve)
        self.disk_full.set_function(lambda: gauge.room is not Room.AMPLE)

    def connected_sessions(self) -> int:
        return int(next(iter(self.sessions.collect())).samples[0].value)

    # What the driver reports (driver.Observer).

    def synced(self, seconds: float, writes: int) -> None:
        """One batch of the log became durable. Called in the writer thread."""
        self.log_sync_seconds.observe(seconds)
        self.log_batch.observe(writes)

    def proposed(self, commands: int) -> None:
        self.proposals.inc(commands)

    def applied_batch(self, seconds: float, transactions: int) -> None:
        self.apply_seconds.observe(seconds)
        if transactions:
            self.applied.inc(transactions)

    def lagged(self, seconds: float) -> None:
        self.loop_lag_seconds.observe(seconds)
        if self._stalls.lagged(seconds, time.monotonic()):
            self.loop_stalls.inc()

    def role_changed(self) -> None:
        self.role_changes.inc()

    def lags(self, lags: dict[int, Lag]) -> None:
        """Of a leader's followers; those that are none any more vanish. See `leadership.LagObserver`."""
        for gauge in self.follower_lag.values():
            gauge.clear()
        for node, lag in lags.items():
            for name, gauge in self.follower_lag.items():
                gauge.labels(str(node)).set(getattr(lag, name))

    # What snapshots report (snapshots.SnapshotObserver).

    def snapshot_sent(self, count: int) -> None:
        self.snapshot_bytes.labels("sent").inc(count)

    def snapshot_received(self, count: int) -> None:
        self.snapshot_bytes.labels("received").inc(count)

    def snapshot_done(self, what: str, seconds: float) -> None:
        self.snapshots.labels(what).inc()
        self.snapshot_seconds.labels(what).observe(seconds)

    def snapshot_failed(self, what: str) -> None:
        self.snapshot_failures.labels(what).inc()

    def snapshot_progress(self, done: int, total: int) -> None:
        self.snapshot_fetch_done.set(done)
        self.snapshot_fetch_total.set(total)

    # The page.

    def serve(self, host: str, port: int) -> int:
        """Serves the page over HTTP in a thread; returns the port (a free one for 0). OSError: port in use."""
        self._server, _thread = start_http_server(port, host, registry=self.registry)
        return int(self._server.server_port)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _has_role(driver: Driver, role: Role) -> float:
    return float(driver.role is role)
