"""Logs that were cut, and who needs what they held: what their tests share."""

from __future__ import annotations

from typing import Any

from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import (
    Config,
    Entry,
    EntryKind,
)

from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.raft_cluster import Cluster, Timeouts

BEGIN = Membership.initial((1, 2, 3))


def commands(first: int, *terms: int) -> list[Entry]:
    return [Entry(term, index, EntryKind.COMMAND, b"%d" % index) for index, term in enumerate(terms, first)]


def core_on(
    disk: MemoryLog, applied: int, membership: Membership | None = BEGIN, node: int = 1, **options: Any
) -> RaftCore:
    config = Config(node, frozenset({1, 2, 3}), **options)
    return RaftCore(config, disk, disk.hard_state, applied, Timeouts(node), membership)


def behind(**options: int) -> Cluster:
    """Node 1 leads 2 and 3; 3 was away, and the logs of the others begin behind what it needs."""
    cluster = Cluster(**options)  # type: ignore[arg-type]
    cluster.elect(1)
    cluster.isolate(3)
    cluster.propose(1, *(b"%d" % number for number in range(5)))
    cluster.settle()
    for node in (1, 2):
        cluster.compact(node)
    cluster.heal()
    cluster.drop()
    return cluster


def beat(cluster: Cluster, count: int = 1) -> None:
    for _ in range(count):
        cluster.tick(1)
        cluster.settle()
