"""A disk that finishes no write: who leads gives way, who follows does not campaign. (No rule of the paper.)"""

from __future__ import annotations

from raftstorage.node.raft.types import Message, MessageType, Role

from tests.unit.raft.one_node import ELECTION, hear, role
from tests.unit.raft.raft_cluster import Cluster

HANGS = 2 * ELECTION


def led_by_one(**options: int) -> Cluster:
    cluster = Cluster(**options)  # type: ignore[arg-type]
    cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle()
    return cluster


def tick_all(cluster: Cluster, count: int, hanging: int = 1) -> None:
    """Ticks every node; all but one write and answer at once."""
    for _ in range(count):
        for node in cluster.nodes:
            cluster.tick(node)
        cluster.settle(frozen={hanging})


def test_a_leader_whose_disk_hangs_hands_over() -> None:
    cluster = led_by_one()
    cluster.propose(1, b"b")
    tick_all(cluster, HANGS - 1)
    assert role(cluster) is Role.LEADER
    assert cluster[1].commit_index == 3, "the others' disks commit it"
    assert len(cluster.nodes[1].applied) == 2, "but nobody hears of that from here"
    tick_all(cluster, 2)
    assert role(cluster) is Role.FOLLOWER
    leader = cluster[1].leader
    assert leader in (2, 3)
    assert len(cluster.nodes[leader].applied) == 4


def test_a_leader_that_writes_slowly_stays() -> None:
    cluster = led_by_one()
    for _ in range(4):
        cluster.propose(1, b"b")
        tick_all(cluster, HANGS - 1)
        cluster.write(1, 100)
        cluster.settle()
    assert role(cluster) is Role.LEADER


def test_a_leader_that_nobody_relieves_steps_down() -> None:
    cluster = led_by_one()
    cluster.propose(1, b"b")
    for _ in range(HANGS + ELECTION):
        for node in cluster.nodes:
            cluster.tick(node)
        cluster.drop(lambda message: message.type is MessageType.TIMEOUT_NOW)
        cluster.settle(frozen={1})
    assert role(cluster) is Role.FOLLOWER


def test_a_node_whose_disk_hangs_does_not_campaign() -> None:
    cluster = led_by_one()
    cluster.propose(1, b"b")
    cluster.deliver()
    assert cluster.nodes[2].writes
    cluster.isolate(2)
    cluster.tick(2, HANGS)
    cluster.nodes[2].core.elapsed = 10 * ELECTION
    before = cluster[2].term
    cluster.tick(2, ELECTION)
    assert role(cluster, 2) is not Role.CANDIDATE
    assert cluster[2].term == before
    assert hear_timeout_now(cluster) == before, "not by order either"
    cluster.write(2, 100)
    cluster.time_out(2)
    assert role(cluster, 2) is Role.PRE_CANDIDATE


def hear_timeout_now(cluster: Cluster) -> int:
    cluster.step(Message(MessageType.TIMEOUT_NOW, 1, 2, cluster[2].term))
    return cluster[2].term


def test_a_leader_with_no_other_voter_waits_for_its_disk() -> None:
    cluster = Cluster(voters=(1,))
    cluster.elect(1)
    cluster.settle()
    cluster.propose(1, b"a")
    cluster.tick(1, 10 * HANGS)
    assert role(cluster) is Role.LEADER
    assert hear(cluster, MessageType.HEARTBEAT_REPLY, 2, cluster[1].term) == []
    assert len(cluster.nodes[1].applied) == 2
