"""Who counts and who is heard while members change, and which changes are refused: thesis, chapter 4."""

from __future__ import annotations

import pytest
from raftstorage.node.raft.membership import Change, Member, MemberRole, MembershipError
from raftstorage.node.raft.tracker import ProgressState
from raftstorage.node.raft.types import (
    HardState,
    MessageType,
    NotLeader,
    Role,
)

from tests.unit.raft.changes import (
    add_learner,
    led,
    live,
    membership_entry,
    not_to,
    promote,
    remove,
    voters_of,
)
from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.one_node import ELECTION, hear, role, said
from tests.unit.raft.raft_cluster import Cluster

APPEND, ACK = MessageType.APPEND, MessageType.APPEND_REPLY


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
