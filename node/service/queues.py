"""Every queue of a node with its bound, on the metrics page. docs/architecture.md says what a full one does."""

from __future__ import annotations

from collections.abc import Collection

from raftstorage.node.admission import Amount, Bounds
from raftstorage.node.backlog import MOST_WRITES
from raftstorage.node.driver import Driver
from raftstorage.node.oids import MAX_WAITING
from raftstorage.node.service.barriers import Barriers
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.reads import MAX_PARKED, Reads
from raftstorage.node.service.session import ALL_BYTES, ClientSession
from raftstorage.node.service.unready import Unready
from raftstorage.node.service.validation import SessionLimits
from raftstorage.node.transactions import Coordinator
from raftstorage.node.uploads import Uploads


def watch(
    metrics: NodeMetrics,
    driver: Driver,
    coordinator: Coordinator,
    sessions: Collection[ClientSession],
    reads: Reads,
    barriers: Barriers,
    unready: Unready,
    uploads: Uploads,
    limits: SessionLimits,
    bounds: Bounds,
) -> None:
    """Bounds of sessions are those of all of them together, as `sessions` may be many."""
    most = limits.sessions
    metrics.watch_queue(
        "events",
        Amount(most * limits.queue_items, ALL_BYTES),
        lambda: _sum([one.queued for one in list(sessions)]),
    )
    metrics.watch_queue(
        "requests",
        Amount(most * limits.calls.items, most * limits.calls.bytes),
        lambda: _sum([one.calls.amount() for one in list(sessions)]),
    )
    metrics.watch_queue("proposals", bounds.voted, lambda: driver.backlog)
    metrics.watch_queue("uploads", bounds.new, lambda: uploads.waiting)
    metrics.watch_queue("votes", bounds.held, lambda: coordinator.held.amount)
    metrics.watch_queue("blocked", Amount(limits.waiting_votes, 0), lambda: Amount(coordinator.waiting, 0))
    metrics.watch_queue("oids", Amount(MAX_WAITING, 0), lambda: Amount(coordinator.oids.waiting, 0))
    metrics.watch_queue("parked_reads", MAX_PARKED, lambda: reads.parked)
    metrics.watch_queue("barriers", barriers.bound, lambda: barriers.amount)
    metrics.watch_queue("unready", unready.bound, lambda: unready.amount)
    metrics.watch_queue("log_writes", MOST_WRITES, lambda: driver.work.writes)


def _sum(amounts: list[Amount]) -> Amount:
    return Amount(sum(one.items for one in amounts), sum(one.bytes for one in amounts))
