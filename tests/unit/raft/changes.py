"""Clusters whose members change: what their tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raftstorage.node.raft.membership import Change, Member, MemberRole, Membership
from raftstorage.node.raft.types import Entry, EntryKind, Message

from tests.unit.raft.raft_cluster import Cluster


def led(voters: int = 3, learners: tuple[int, ...] = (), **options: Any) -> Cluster:
    """Node 1 leads in term 1; everybody has its no-op and was heard."""
    cluster = Cluster(range(1, voters + 1), learners, **options)
    cluster.elect(1)
    live(cluster, 1)
    return cluster


def live(cluster: Cluster, ticks: int) -> None:
    for _ in range(ticks):
        for node, it in cluster.nodes.items():
            if it.up:
                cluster.tick(node)
        cluster.settle()


def promote(*some: int) -> Change:
    return Change(promote=frozenset(some))


def remove(*some: int) -> Change:
    return Change(remove=frozenset(some))


def add_learner(node: int) -> Change:
    return Change(add=(Member(node, MemberRole.LEARNER),))


def kinds(cluster: Cluster, node: int) -> list[EntryKind]:
    return [entry.kind for entry in cluster.nodes[node].log()]


def not_to(*nodes: int) -> Callable[[Message], bool]:
    return lambda message: message.to_node not in nodes


def voters_of(cluster: Cluster, node: int) -> list[list[int]]:
    return [sorted(voters) for voters in cluster[node].voters]


def membership_entry(term: int, index: int, *voters: int) -> Entry:
    return Entry(term, index, EntryKind.MEMBERSHIP, Membership.initial(voters).encode())
