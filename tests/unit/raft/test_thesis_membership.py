"""The rules of membership changes, one test each: Raft paper, section 6; thesis, chapter 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.membership import Change, Member, MemberRole, Membership, MembershipError
from raftstorage.node.raft.tracker import ProgressState
from raftstorage.node.raft.types import (
    Config,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    NotLeader,
    RaftInvariantError,
    Role,
)

from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.one_node import ELECTION, hear, role, said
from tests.unit.raft.raft_cluster import Cluster, Timeouts

APPEND, ACK = MessageType.APPEND, MessageType.APPEND_REPLY


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


# ---- in effect when appended (4.1) ---------------------------------------------------------------------------


def test_a_server_uses_the_latest_membership_in_its_log_committed_or_not() -> None:
    """Thesis 4.1; paper, section 6."""
    cluster = led(3, (4,))
    cluster.isolate(3)
    assert cluster.change(1, promote(4)) == 2
    assert voters_of(cluster, 1) == [[1, 2, 3, 4], [1, 2, 3]]
    cluster.deliver(lambda message: message.type is APPEND and message.to_node == 2)
    assert cluster[2].commit_index == 1
    assert voters_of(cluster, 2) == [[1, 2, 3, 4], [1, 2, 3]], "before it is even on disk"
    assert voters_of(cluster, 3) == [[1, 2, 3]]
    assert cluster[2].membership_index == 2


def test_a_server_falls_back_to_the_one_before_when_the_entry_is_cut_off() -> None:
    """Thesis 4.1: also over two of them; and it says so."""
    cluster = Cluster()
    own = (membership_entry(1, 1, 1, 2, 3, 4), Entry(1, 2, EntryKind.COMMAND), membership_entry(1, 3, 1, 5))
    hear(cluster, APPEND, 2, 1, entries=own)
    assert (voters_of(cluster, 1), cluster[1].membership_index) == ([[1, 5]], 3)
    command = Entry(2, 3, EntryKind.COMMAND)
    hear(cluster, APPEND, 3, 2, log_index=2, log_term=1, entries=(command,))
    assert (voters_of(cluster, 1), cluster[1].membership_index) == ([[1, 2, 3, 4]], 1)
    core = cluster[1]
    core.step(Message(APPEND, 2, 1, 3, entries=(Entry(3, 1, EntryKind.COMMAND),)))
    assert core.take_output().membership == Membership.initial((1, 2, 3))


def test_after_a_restart_the_log_behind_what_was_applied_is_searched() -> None:
    """Thesis 4.1: the log is where the membership is; what was applied tells the one before."""
    state = HardState(1)
    entries = [
        membership_entry(1, 1, 1, 2, 3, 4),
        *(Entry(1, index, EntryKind.COMMAND, b"xxxx") for index in range(2, 2000)),
        membership_entry(1, 2000, 1, 5),
        Entry(1, 2001, EntryKind.COMMAND),
    ]

    def core(applied: int, membership: Membership | None, count: int = 2001) -> RaftCore:
        config = Config(1, frozenset({1, 2, 3}), max_apply_bytes=100)
        return RaftCore(config, MemoryLog(entries[:count], state), state, applied, Timeouts(1), membership)

    assert core(0, None).voters == (frozenset({1, 5}),)
    assert core(0, None, 1999).voters == (frozenset({1, 2, 3, 4}),)
    assert core(0, None, 0).voters == (frozenset({1, 2, 3}),)
    known = Membership.initial((1, 2, 3, 4))
    assert (core(1999, known, 1999).voters, core(1999, known, 1999).membership_index) == (
        (frozenset({1, 2, 3, 4}),),
        1999,
    )
    assert core(1999, known).membership_index == 2000


def test_an_entry_of_ones_own_log_that_cannot_be_read_ends_the_node() -> None:
    broken = MemoryLog([Entry(1, 1, EntryKind.MEMBERSHIP, b"{}")], HardState(1))
    with pytest.raises(RaftInvariantError, match="entry 1 cannot be read"):
        Cluster(logs={1: broken})


@pytest.mark.parametrize("data", [b"", b"{}", Membership().encode()])
def test_a_message_with_what_is_no_membership_is_not_taken(data: bytes) -> None:
    cluster = Cluster()
    assert hear(cluster, APPEND, 2, 1, entries=(Entry(1, 1, EntryKind.MEMBERSHIP, data),)) == []
    assert (cluster[1].term, cluster[1].last_index) == (0, 0)


# ---- joint consensus (paper, section 6; 4.3) ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("holders", "committed"), [((2,), False), ((4, 5), False), ((2, 4), True), ((3, 5), True), ((2, 3), True)]
)
def test_while_joint_an_entry_needs_a_majority_of_both_sets(holders: tuple[int, ...], committed: bool) -> None:
    """Paper, section 6: here of {1,2,3} and of {1,2,3,4,5}."""
    cluster = led(3, (4, 5))
    cluster.change(1, promote(4, 5))
    cluster.settle(frozen={2, 3, 4, 5} - set(holders))
    assert (cluster[1].commit_index >= 2) is committed


@pytest.mark.parametrize(("granting", "wins"), [((4, 5), False), ((2,), False), ((2, 4), True), ((2, 3), True)])
def test_while_joint_an_election_needs_a_majority_of_both_sets(granting: tuple[int, ...], wins: bool) -> None:
    """Paper, section 6, and thesis 9.6: votes and pre-votes; sets {1,2,3} and {1,2,3,4,5}, the candidate is 1."""
    joint = Membership(tuple(Member(node) for node in (1, 2, 3, 4, 5)), frozenset({1, 2, 3}), highest_id=5)
    stages = (
        (MessageType.PRE_VOTE_REPLY, Role.PRE_CANDIDATE, Role.CANDIDATE),
        (MessageType.VOTE_REPLY, Role.CANDIDATE, Role.LEADER),
    )
    for kind, before, after in stages:
        log = MemoryLog([Entry(1, 1, EntryKind.MEMBERSHIP, joint.encode())], HardState(1))
        cluster = Cluster(logs={1: log})
        cluster.time_out(1)
        for node in (2, 4) if before is Role.CANDIDATE else ():
            hear(cluster, MessageType.PRE_VOTE_REPLY, node, 2)
        said(cluster)
        assert role(cluster) is before
        for node in granting:
            hear(cluster, kind, node, 2)
        assert role(cluster) is (after if wins else before)


def test_while_joint_a_candidate_asks_the_voters_of_both_sets_and_no_learner() -> None:
    """Thesis 4.2.1 and 4.3."""
    members = (Member(1), Member(2, MemberRole.LEAVING), Member(4), Member(5, MemberRole.LEARNER))
    joint = Membership(members, frozenset({1, 2}), highest_id=5)
    log = MemoryLog([Entry(1, 1, EntryKind.MEMBERSHIP, joint.encode())], HardState(1))
    cluster = Cluster((1, 2, 3, 4, 5), logs={1: log})
    cluster.time_out(1)
    assert {message.to_node for message in said(cluster)} == {2, 4}


def test_while_joint_a_read_needs_a_majority_of_both_sets() -> None:
    """Thesis 6.4 with 4.3."""
    cluster = led(3, (4, 5))
    cluster.change(1, promote(4, 5))
    cluster.settle(lambda message: message.type is not APPEND)
    cluster.read(1, 7)
    replies = MessageType.HEARTBEAT_REPLY
    cluster.settle(lambda message: message.type is MessageType.HEARTBEAT or message.from_node in (4, 5))
    assert cluster.nodes[1].reads == [], "a majority of the new set only"
    cluster.settle(lambda message: message.type is replies)
    assert [read.request for read in cluster.nodes[1].reads] == [7]


def test_while_joint_a_leader_steps_down_without_a_majority_of_one_set() -> None:
    """Thesis 6.2 with 4.3."""
    cluster = led(3, (4, 5))
    cluster.change(1, promote(4, 5))
    cluster.isolate(2)
    cluster.isolate(3)
    live(cluster, 3 * ELECTION)
    assert role(cluster) is not Role.LEADER, "three of five, but one of three"


def test_when_the_joint_entry_is_committed_the_leader_ends_it() -> None:
    """Paper, section 6, figure 11: C-new is appended once C-old,new is committed, and not before."""
    cluster = led(3, (4,))
    cluster.change(1, Change(promote=frozenset({4}), remove=frozenset({3})))
    cluster.settle(frozen={2, 4})
    assert (cluster[1].commit_index, cluster[1].last_index) == (1, 2)
    assert voters_of(cluster, 1) == [[1, 2, 4], [1, 2, 3]]
    cluster.settle()
    assert (cluster[1].commit_index, cluster[1].last_index) == (3, 3)
    for node in (1, 2, 4):
        assert voters_of(cluster, node) == [[1, 2, 4]]
        assert kinds(cluster, node) == [EntryKind.NOOP, EntryKind.MEMBERSHIP, EntryKind.MEMBERSHIP]


@pytest.mark.parametrize("committed", [False, True])
def test_a_new_leader_ends_what_another_one_began(committed: bool) -> None:
    """Paper, section 6, and 5.4.2: when its no-op commits the joint entry with it."""
    cluster = led(3, (4,))
    cluster.change(1, promote(4))
    cluster.deliver()
    for node in (2, 3, 4):
        cluster.write(node, 9)
    if committed:
        cluster.deliver()
    assert cluster[1].commit_index == (2 if committed else 1)
    cluster.drop()
    cluster.crash(1)
    cluster.elect(2)
    live(cluster, 2)
    assert role(cluster, 2) is Role.LEADER
    assert voters_of(cluster, 2) == voters_of(cluster, 3) == voters_of(cluster, 4) == [[1, 2, 3, 4]]
    assert cluster[2].commit_index == cluster[2].last_index == cluster[2].membership_index == 4


def test_the_end_of_a_change_waits_while_leadership_is_handed_over() -> None:
    """Thesis 3.10: a leader that hands over appends nothing; its successor ends the change, or it does later."""
    for successor_lives in (True, False):
        cluster = led(3, (4,))
        cluster.change(1, promote(4))
        cluster.settle(frozen={2, 3})
        cluster.transfer(1, 2)
        cluster.settle(lambda message: message.from_node == 3 or message.to_node != 2)
        cluster.settle(lambda message: message.type is not MessageType.TIMEOUT_NOW)
        assert (cluster[1].commit_index, cluster[1].last_index) == (2, 2)
        if not successor_lives:
            cluster.crash(2)
        cluster.settle()
        live(cluster, ELECTION + 3)
        leader = 2 if successor_lives else 1
        assert role(cluster, leader) is Role.LEADER
        assert voters_of(cluster, leader) == [[1, 2, 3, 4]]
        assert cluster[leader].commit_index == cluster[leader].last_index


def test_learners_come_and_go_in_one_step() -> None:
    """Thesis 4.2.1: they are in no majority, so that nothing has to be joint."""
    cluster = led()
    cluster.join(4)
    cluster.change(1, add_learner(4))
    live(cluster, 1)
    assert role(cluster, 4) is Role.LEARNER
    assert cluster.nodes[4].applied == cluster.nodes[1].applied
    assert kinds(cluster, 1) == [EntryKind.NOOP, EntryKind.MEMBERSHIP]
    cluster.change(1, remove(4))
    live(cluster, 1)
    assert kinds(cluster, 1) == [EntryKind.NOOP, EntryKind.MEMBERSHIP, EntryKind.MEMBERSHIP]
    assert cluster[4].membership.ids == {1, 2, 3}
    assert 4 not in cluster[1].progress()


def test_a_cluster_moves_to_other_nodes_in_one_change() -> None:
    """Paper, section 6: any set to any other; here without a node in common, the leader among those who go."""
    cluster = led(3)
    for node in (4, 5, 6):
        cluster.join(node)
        cluster.change(1, add_learner(node))
        live(cluster, 1)
    cluster.propose(1, b"x")
    live(cluster, 1)
    cluster.change(1, Change(promote=frozenset({4, 5, 6}), remove=frozenset({1, 2, 3})))
    live(cluster, 3 * ELECTION)
    for node in (1, 2, 3):
        cluster.crash(node)
    (leader,) = (node for node, it in cluster.nodes.items() if it.leads)
    cluster.propose(leader, b"y")
    live(cluster, 1)
    assert leader in (4, 5, 6)
    assert cluster.nodes[4].applied == cluster.nodes[5].applied == cluster.nodes[6].applied == cluster.committed
    assert cluster.committed[-1].data == b"y"


# ---- who counts (4.2) ----------------------------------------------------------------------------------------


def test_a_leader_that_is_no_voter_counts_the_others_only() -> None:
    """Thesis 4.2.2: it manages a cluster that it is not part of, and is not in its majorities."""
    cluster = led(3)
    cluster.change(1, remove(1))
    cluster.settle(lambda message: message.to_node != 3, frozen={1})  # joint: 2 alone is no majority of {2,3}
    assert cluster[1].commit_index == 1
    cluster.write(1)
    assert cluster[1].commit_index == 1
    cluster.deliver()
    cluster.write(3, 9)
    cluster.deliver()
    assert (cluster[1].commit_index, voters_of(cluster, 1)) == (2, [[2, 3]])
    cluster.settle(lambda message: message.to_node != 3)
    assert cluster[1].commit_index == 2, "1 and 2 have the final entry; of the voters only 2"
    cluster.settle(lambda message: message.type is not MessageType.TIMEOUT_NOW)
    assert cluster[1].commit_index == 3


def test_a_leader_that_removed_itself_hands_over_and_follows() -> None:
    """Thesis 4.2.2: it steps down when the final entry is committed; by 3.10 without a timeout."""
    cluster = led(3)
    cluster.change(1, remove(1))
    cluster.propose(1, b"x")
    cluster.settle()
    assert role(cluster, 2) is Role.LEADER
    live(cluster, 2)
    assert (role(cluster), cluster[1].term) == (Role.LEARNER, 2)
    with pytest.raises(NotLeader):
        cluster[1].propose([b"y"])
    term = cluster[2].term
    live(cluster, 5 * ELECTION)
    assert (role(cluster, 2), cluster[2].term) == (Role.LEADER, term)


def test_a_leader_that_nobody_relieves_steps_down_all_the_same() -> None:
    """Thesis 4.2.2."""
    cluster = led(3)
    cluster.change(1, remove(1))
    cluster.settle(lambda message: message.type is not MessageType.TIMEOUT_NOW)
    for _ in range(ELECTION):
        assert role(cluster) is Role.LEADER
        cluster.drop()
        cluster.tick(1)
    assert role(cluster) is Role.LEARNER


def test_a_demoted_leader_becomes_a_learner() -> None:
    cluster = led(3)
    cluster.change(1, Change(demote=frozenset({1})))
    live(cluster, 2)
    assert (role(cluster), role(cluster, 2)) == (Role.LEARNER, Role.LEADER)
    cluster.propose(2, b"x")
    live(cluster, 1)
    assert cluster.nodes[1].applied == cluster.committed
    assert cluster.committed[-1].data == b"x"


def test_the_last_node_can_be_another_one() -> None:
    """From one node to another one, by way of both."""
    cluster = led(1)
    cluster.join(2)
    cluster.change(1, add_learner(2))
    live(cluster, 1)
    cluster.change(1, Change(promote=frozenset({2}), remove=frozenset({1})))
    live(cluster, 2)
    assert (role(cluster, 2), voters_of(cluster, 2)) == (Role.LEADER, [[2]])
    cluster.crash(1)
    cluster.propose(2, b"x")
    cluster.settle()
    assert cluster.nodes[2].applied[-1].data == b"x"


# ---- who is heard (4.2.2, 4.2.3) ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MessageType.VOTE, MessageType.PRE_VOTE])
def test_a_server_votes_for_a_candidate_that_it_does_not_know(kind: MessageType) -> None:
    """Thesis 4.2.2: its own membership may be the old one, or none at all."""
    cluster = Cluster((1, 2))
    cluster.join(3)
    for node in (1, 3):
        (reply,) = hear(cluster, kind, 9, 1, to=node)
        assert (reply.to_node, reply.reject) == (9, False)


def test_a_server_takes_entries_of_a_leader_that_it_does_not_know() -> None:
    """Thesis 4.2.2."""
    cluster = Cluster((1, 2))
    (reply,) = hear(cluster, APPEND, 9, 1, entries=(membership_entry(1, 1, 8, 9),))
    assert (reply.type, reply.to_node, reply.reject, reply.log_index) == (ACK, 9, False, 1)
    assert cluster[1].leader == 9


def test_a_node_that_joins_waits_until_it_is_told() -> None:
    """Thesis 4.2.1: it has no members, campaigns for nothing, and takes what a leader sends."""
    cluster = led()
    cluster.join(4)
    cluster.tick(4, 10 * ELECTION)
    assert (role(cluster, 4), cluster[4].term, cluster.flying) == (Role.LEARNER, 0, [])
    cluster.change(1, add_learner(4))
    live(cluster, 1)
    assert cluster[4].membership == cluster[1].membership
    cluster.change(1, promote(4))
    live(cluster, 1)
    assert role(cluster, 4) is Role.FOLLOWER
    cluster.crash(1)
    cluster.elect(4)


@pytest.mark.parametrize(
    "kind", [ACK, MessageType.HEARTBEAT_REPLY, MessageType.VOTE_REPLY, MessageType.PRE_VOTE_REPLY]
)
@pytest.mark.parametrize("term", [1, 5])
def test_replies_of_strangers_count_for_nothing(kind: MessageType, term: int) -> None:
    """Also not for a later term: a removed node may be in one."""
    cluster = led()
    cluster.propose(1, b"x")
    before = cluster[1].progress()
    assert hear(cluster, kind, 9, term, log_index=2, reject=term == 5 and kind is not ACK) == []
    assert (role(cluster), cluster[1].term, cluster[1].commit_index) == (Role.LEADER, 1, 1)
    assert cluster[1].progress().keys() == before.keys()


def test_a_removed_node_is_told_and_then_left_alone() -> None:
    """Thesis 4.2.2: it would else campaign for ever; what it hears is the final entry and that it is committed."""
    cluster = led(4)
    cluster.change(1, remove(4))
    live(cluster, 1)
    removed = cluster[4]
    assert removed.membership.member(4) is None
    assert removed.commit_index >= removed.membership_index == 3, "it knows for good"
    assert role(cluster, 4) is Role.LEARNER
    cluster.propose(1, b"x")
    live(cluster, 3)
    assert removed.last_index == 3
    cluster.tick(4, 10 * ELECTION)
    assert cluster.flying == [], "and it keeps still"


def test_a_removed_node_that_does_not_answer_is_told_for_an_election_timeout() -> None:
    cluster = led(4)
    cluster.change(1, remove(4))
    cluster.settle(not_to(4))
    assert cluster[1].commit_index == 3
    tried = 0
    for _ in range(2 * ELECTION):
        tried += cluster.drop(lambda message: message.to_node == 4)
        cluster.tick(1)
        cluster.settle(not_to(4))
    assert tried > 0
    assert cluster.drop(lambda message: message.to_node == 4) == 0
    assert role(cluster) is Role.LEADER


def test_what_a_removed_node_missed_is_sent_once_more_while_it_answers() -> None:
    cluster = led(4)
    cluster.change(1, remove(4))
    cluster.settle(not_to(4))
    cluster.drop()
    live(cluster, 4)
    assert cluster[4].commit_index == 3
    assert cluster[4].membership.member(4) is None


def test_a_removed_node_that_was_not_told_disturbs_nobody() -> None:
    """Thesis 4.2.3: it times out again and again, and the leader stays."""
    cluster = led(4)
    cluster.isolate(4)
    cluster.change(1, remove(4))
    live(cluster, 3 * ELECTION)
    cluster.heal()
    live(cluster, 10 * ELECTION)
    assert role(cluster, 4) in (Role.PRE_CANDIDATE, Role.FOLLOWER)
    assert (role(cluster), cluster[1].term, cluster[4].term) == (Role.LEADER, 1, 1)
    assert {cluster[node].leader for node in (1, 2, 3)} == {1}


def test_who_has_the_only_log_that_can_win_campaigns_although_it_is_removed() -> None:
    """Thesis 4.2.2: until the entry that removes it is known to be committed."""
    log = MemoryLog([membership_entry(1, 1, 1, 2), membership_entry(1, 2, 2, 3)], HardState(1))
    cluster = Cluster((1, 2, 3), logs={1: log})
    assert role(cluster) is Role.FOLLOWER
    cluster.time_out(1)
    assert {message.to_node for message in said(cluster)} == {2, 3}
    for _ in range(2):
        kind = MessageType.PRE_VOTE_REPLY if role(cluster) is Role.PRE_CANDIDATE else MessageType.VOTE_REPLY
        hear(cluster, kind, 2, 2)
        assert role(cluster) is not Role.LEADER, "its own vote is none"
        hear(cluster, kind, 3, 2)
    assert role(cluster) is Role.LEADER
    cluster.tick(1)
    cluster.settle(not_to(3))
    assert (cluster[2].last_index, cluster[1].commit_index) == (3, 0), "its own log counts for nothing either"
    live(cluster, 2)
    leaders = [node for node, it in cluster.nodes.items() if it.leads]
    assert leaders in ([2], [3]), "it is not to lead, and has handed over"
    assert cluster[leaders[0]].commit_index == 4


# ---- what is refused -----------------------------------------------------------------------------------------


def refused(cluster: Cluster, change: Change, reason: str) -> None:
    before = cluster[1].last_index, cluster[1].membership
    with pytest.raises(MembershipError, match=reason):
        cluster.change(1, change)
    assert (cluster[1].last_index, cluster[1].membership) == before


def test_only_a_leader_changes_the_membership() -> None:
    cluster = led()
    with pytest.raises(NotLeader, match="leader is 1"):
        cluster.change(2, remove(3))


def test_one_change_at_a_time() -> None:
    """Paper, section 6; thesis 4.1: not before the last one is committed, and its joint configuration left."""
    cluster = led(3, (4, 5))
    cluster.change(1, add_learner(6))
    refused(cluster, remove(4), "entry 2, is under way")
    cluster.settle(frozen={2, 3})
    refused(cluster, remove(4), "entry 2, is under way")
    cluster.settle()
    cluster.change(1, promote(4))
    refused(cluster, promote(5), "entry 3, is under way")
    cluster.deliver()
    for node in (2, 3, 4):
        cluster.write(node, 9)
    cluster.deliver()
    assert (cluster[1].commit_index, cluster[1].membership.is_joint) == (3, False)
    refused(cluster, promote(5), "entry 4, is under way")
    cluster.settle()
    cluster.change(1, promote(5))


def test_no_change_before_an_entry_of_the_leaders_own_term_is_committed() -> None:
    """Ongaro's correction of 2015 to thesis 4.1: else a change that another leader has in flight is not seen."""
    cluster = Cluster()
    cluster.elect(1, lambda message: message.type is not ACK)
    assert role(cluster) is Role.LEADER
    refused(cluster, remove(3), "not committed anything yet")
    cluster.settle()
    cluster.change(1, remove(3))


def test_no_change_while_leadership_is_handed_over() -> None:
    cluster = led()
    cluster.transfer(1, 2)
    refused(cluster, remove(3), "handed to node 2")


def test_what_makes_no_sense_is_refused_with_its_reason() -> None:
    cluster = led(1)
    refused(cluster, remove(1), "no voter would be left")
    refused(cluster, add_learner(1), "id 1 was used before")
    refused(cluster, remove(7), "node 7 is no member")
    refused(cluster, Change(add=(Member(2),), promote=frozenset({2})), "named twice")


def test_no_change_that_a_majority_of_the_living_cannot_commit() -> None:
    """Of either set: voters that were heard within an election timeout, and the leader."""
    cluster = led(3)
    cluster.crash(3)
    live(cluster, ELECTION + 1)
    refused(cluster, remove(2), r"of the voters \[1, 3\] only \[1\] were heard")
    cluster.change(1, remove(3))
    live(cluster, 1)
    refused(cluster, Change(add=(Member(4), Member(5))), r"of the voters \[1, 2, 4, 5\] only \[1, 2\]")
    cluster.crash(2)
    live(cluster, 2)
    cluster.change(1, Change(add=(Member(4, MemberRole.LEARNER),)))  # 2 was heard a moment ago


def test_a_learner_that_is_far_behind_is_not_promoted() -> None:
    """Thesis 4.2.1: it would hold up what needs its vote."""
    cluster = led(3)
    cluster.change(1, add_learner(4))
    live(cluster, 1)
    refused(cluster, promote(4), "node 4 was not heard lately")
    cluster.join(4)
    for node in (1, 2, 3):
        cluster.compact(node)
    live(cluster, 2)
    assert cluster[1].progress()[4].state is ProgressState.SNAPSHOT
    refused(cluster, promote(4), r"node 4 is too far behind to be a voter \(snapshot\)")
    assert cluster.install(4)
    live(cluster, 1)
    cluster.change(1, promote(4))


# ---- handing over (3.10) -------------------------------------------------------------------------------------


def test_leadership_goes_to_a_voter_of_the_incoming_set_only() -> None:
    cluster = led(3, (4,))
    cluster.change(1, Change(promote=frozenset({4}), remove=frozenset({2})))
    cluster.transfer(1, 2)
    assert cluster[1].transferring_to == 0
    cluster.transfer(1, 4)
    cluster.settle()
    assert role(cluster, 4) is Role.LEADER


def test_without_a_name_leadership_does_not_go_to_one_that_is_silent() -> None:
    """2 has all that 3 has, and is dead since the last check of the majority."""
    cluster = led(3)
    cluster.crash(2)
    for _ in range(5):
        cluster.tick(1)
        cluster.settle()
    assert cluster[1].progress()[2].match == cluster[1].progress()[3].match
    cluster.transfer(1)
    cluster.settle()
    assert role(cluster, 3) is Role.LEADER


def test_the_membership_is_told_once_when_it_changes() -> None:
    cluster = led(3)
    core = cluster[1]
    core.propose_membership(add_learner(4))
    output = core.take_output()
    assert output.membership == core.membership
    assert core.take_output().membership is None
