"""Stories in which a mistake with memberships or snapshots shows: each passes, and fails with its mutant."""

from __future__ import annotations

from collections.abc import Callable

from raftstorage.node.raft.membership import Change
from raftstorage.node.raft.types import EntryKind, Message, MessageType, Role

from tests.unit.raft import change_mutants as mutants
from tests.unit.raft.mutants import Mutant
from tests.unit.raft.one_node import ELECTION, role
from tests.unit.raft.raft_cluster import Cluster
from tests.unit.raft.raft_node import Snapshot


def led() -> Cluster:
    """Node 1 leads 2 and 3; the learners 4 and 5 have all that they have."""
    cluster = Cluster((1, 2, 3), (4, 5))
    cluster.elect(1)
    cluster.tick(1)
    cluster.settle()
    return cluster


def change_of(*promote: int, remove: tuple[int, ...] = ()) -> Change:
    return Change(promote=frozenset(promote), remove=frozenset(remove))


def between(*nodes: int) -> Callable[[Message], bool]:
    return lambda message: {message.from_node, message.to_node} <= set(nodes)


def carries_members(message: Message) -> bool:
    return any(entry.kind is EntryKind.MEMBERSHIP for entry in message.entries)


def split(cluster: Cluster, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    for a in one:
        for b in other:
            cluster.cut(a, b)


def two_majorities() -> None:
    """Paper, figure 10: 1, 4 and 5 are a majority of the new set, 2 and 3 of the old one."""
    cluster = led()
    split(cluster, (1, 4, 5), (2, 3))
    cluster.change(1, change_of(4, 5))
    cluster.settle()
    cluster.elect(2)
    cluster.propose(2, b"x")
    cluster.settle()
    assert cluster.committed[-1].data == b"x"


def two_leaders_while_joint() -> None:
    """4 and 5 know of the joint configuration, and are a majority of the new set only."""
    cluster = led()
    cluster.change(1, change_of(4, 5, remove=(1, 2)))
    cluster.settle(between(1, 4, 5))
    cluster.crash(1)
    split(cluster, (4, 5), (2, 3))
    cluster.drop()
    cluster.elect(2)
    for node in (4, 5):
        cluster[node].elapsed += ELECTION
    cluster.time_out(4)
    cluster.settle()
    assert role(cluster, 4) is not Role.LEADER


def left_too_early() -> None:
    """Of the old voters only 1 knows of a change that 4 and 5 would end."""
    cluster = led()
    cluster.change(1, change_of(4, 5, remove=(1, 2)))
    cluster.settle(between(1, 4, 5))
    cluster.drop()
    split(cluster, (1, 4, 5), (2, 3))
    cluster.elect(2)
    cluster.propose(2, b"x")
    cluster.settle()
    assert cluster.committed[-1].data == b"x"


def a_change_that_nobody_heard_of() -> None:
    """1 alone has it in its log, and loses it. When it leads again it must not end what never began."""
    cluster = led()
    cluster.isolate(1)
    cluster.change(1, change_of(remove=(2, 3)))
    cluster.write(1, 9)
    cluster.elect(2)
    cluster.heal()
    cluster.drop()
    cluster.tick(2)
    cluster.settle()
    cluster.tick(2)
    cluster.settle()
    assert cluster.nodes[1].applied == cluster.nodes[2].applied
    cluster.elect(1, lambda message: not carries_members(message))
    cluster.isolate(1)
    cluster.drop()
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.elect(2)


def learners_alone_cannot_commit() -> None:
    cluster = led()
    split(cluster, (1, 4, 5), (2, 3))
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.elect(2)


def a_removed_node_asks_for_votes() -> None:
    """Thesis 4.2.3: 3 is removed, and only the leader knows; it cannot reach 3 any more, the others can."""
    cluster = Cluster((1, 2, 3, 4))
    cluster.elect(1)
    cluster.cut(1, 3)
    cluster.change(1, change_of(remove=(3,)))
    cluster.write(1, 9)
    cluster.drop()  # the change is not on its way to 2 and 4 either
    cluster.time_out(3)
    cluster.settle(between(2, 3, 4))
    cluster.tick(1)
    cluster.settle()
    assert (role(cluster), cluster[1].term) == (Role.LEADER, 1), "a removed node has deposed the leader"


def the_last_who_knows() -> None:
    """Thesis 4.2.2: only 2 has the entry that removes it; nobody else's log can win, as 1 is down."""
    cluster = led()
    cluster.change(1, change_of(4, 5, remove=(1, 2, 3)))
    cluster.settle(lambda message: message.to_node == 2 or not carries_members(message) or message.log_index < 2)
    cluster.crash(1)
    cluster.drop()
    assert [cluster[node].last_index for node in (2, 3, 4, 5)] == [3, 2, 2, 2]
    for _ in range(20 * ELECTION):
        for node in (2, 3, 4, 5):
            cluster.tick(node)
            cluster.settle()
    assert any(cluster.nodes[node].leads for node in (4, 5)), "nobody can lead"


# ---- snapshots -----------------------------------------------------------------------------------------------


def early_snapshot(cluster: Cluster, index: int) -> Snapshot:
    """One that node 1 could have made when it had applied so much."""
    return Snapshot(tuple(cluster.nodes[1].applied[:index]), cluster.nodes[1].initial)


def a_snapshot_and_its_suffix() -> None:
    """3 has the entries behind the snapshot, hears that they are committed, and writes slowly."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.propose(1, b"a", b"b", b"c", b"d")
    cluster.settle(lambda message: message.to_node != 3 or message.commit < 2)
    assert (cluster[3].last_index, cluster[3].commit_index) == (5, 1)
    assert cluster.install(3, early_snapshot(cluster, 3))
    cluster.settle(frozen={3})
    assert cluster[3].commit_index == 5
    assert len(cluster.nodes[3].applied) == 3
    cluster.settle()
    assert len(cluster.nodes[3].applied) == 5


def a_write_from_before_the_snapshot() -> None:
    """3 writes entries of term 1 when a snapshot with others of term 2 replaces them, and more follow that."""
    cluster = Cluster()
    cluster.elect(3)
    cluster.isolate(3)
    cluster.propose(3, b"old", b"old", b"old", b"old")
    cluster.elect(1)
    cluster.propose(1, b"a")
    cluster.settle(frozen={3})
    cluster.heal()
    cluster.drop()
    snapshot = cluster.nodes[1].snapshot()
    cluster.step(Message(MessageType.HEARTBEAT, 1, 3, 2))
    assert cluster.install(3, snapshot)
    cluster.propose(1, b"b", b"c")
    cluster.settle(frozen={3})
    entries = tuple(cluster.nodes[1].log()[snapshot.index :])
    cluster.step(
        Message(MessageType.APPEND, 1, 3, 2, snapshot.index, snapshot.term, entries, cluster[1].commit_index)
    )
    while cluster.nodes[3].writes:
        cluster.write(3)
    cluster.settle()
    assert cluster.nodes[3].applied == cluster.committed


STORIES: dict[Mutant, Callable[[], None]] = {
    mutants.changes_voters_in_one_step: two_majorities,
    mutants.elects_with_one_majority_while_joint: two_leaders_while_joint,
    mutants.leaves_joint_before_it_is_committed: left_too_early,
    mutants.keeps_a_membership_that_is_cut_off: a_change_that_nobody_heard_of,
    mutants.counts_learners: learners_alone_cannot_commit,
    mutants.lets_removed_nodes_disturb: a_removed_node_asks_for_votes,
    mutants.removed_nodes_never_campaign: the_last_who_knows,
    mutants.applies_behind_a_snapshot_that_is_not_written: a_snapshot_and_its_suffix,
    mutants.takes_an_old_write_for_a_restored_log: a_write_from_before_the_snapshot,
}
