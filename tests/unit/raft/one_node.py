"""One node of a cluster under a glass: its disk, what it hears, what it says."""

from __future__ import annotations

from typing import Any

from raftstorage.node.raft.types import Entry, EntryKind, HardState, Message, MessageType, Role

from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.raft_cluster import Cluster

ELECTION = 10  # Config.election_ticks by default; node 1's timeout in the harness


def disk(*terms: int, term: int = 0, vote: int = 0) -> MemoryLog:
    """A disk with one command of each of these terms."""
    entries = [Entry(each, index, EntryKind.COMMAND, b"%d" % index) for index, each in enumerate(terms, 1)]
    return MemoryLog(entries, HardState(max(term, *terms, 0), vote))


def said(cluster: Cluster, node: int = 1) -> list[Message]:
    """What the node has to say once all its writes are done; nobody gets it."""
    while cluster.nodes[node].writes:
        cluster.write(node)
    found = [message for message in cluster.flying if message.from_node == node]
    cluster.drop(lambda message: message.from_node == node)
    return found


def hear(cluster: Cluster, kind: MessageType, sender: int, term: int, to: int = 1, **fields: Any) -> list[Message]:
    """A node gets a message; returns what it says then."""
    said(cluster, to)
    cluster.step(Message(kind, sender, to, term, **fields))
    return said(cluster, to)


def role(cluster: Cluster, node: int = 1) -> Role:
    return cluster[node].role


def make_candidate(cluster: Cluster) -> None:
    """Node 1 gets the pre-votes of all others, and asks for their votes."""
    cluster.time_out(1)
    for node in cluster.nodes:
        if role(cluster) is Role.PRE_CANDIDATE and node != 1:
            hear(cluster, MessageType.PRE_VOTE_REPLY, node, cluster[1].term + 1)


def in_role(wanted: Role, term: int) -> Cluster:
    """Three voters; node 1 has this role in this term. What it said is forgotten."""
    begins = term - 1 if wanted in (Role.CANDIDATE, Role.LEADER) else term
    cluster = Cluster(logs={1: disk(term=begins)})
    if wanted is Role.PRE_CANDIDATE:
        cluster.time_out(1)
    elif wanted is not Role.FOLLOWER:
        make_candidate(cluster)
    if wanted is Role.LEADER:
        hear(cluster, MessageType.VOTE_REPLY, 2, term)
    said(cluster)
    assert (role(cluster), cluster[1].term) == (wanted, term)
    return cluster
