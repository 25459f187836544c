"""The rules of elections, one test each: Raft paper 5.1, 5.2, 5.4.1; thesis 4.2.1, 4.2.3, 9.6."""

from __future__ import annotations

import random

import pytest
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.types import Config, HardState, MessageType, Role

from tests.unit.raft.one_node import ELECTION, disk, hear, in_role, make_candidate, role, said
from tests.unit.raft.raft_cluster import Cluster, MemoryLog

ROLES = [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.LEADER]
REQUESTS = [MessageType.PRE_VOTE, MessageType.VOTE]
LEADERS = [MessageType.APPEND, MessageType.HEARTBEAT]
REFUSALS = [MessageType.APPEND_REPLY, MessageType.PRE_VOTE_REPLY, MessageType.VOTE_REPLY]


# ---- terms (5.1) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ROLES)
@pytest.mark.parametrize("kind", [*LEADERS, *REFUSALS, MessageType.HEARTBEAT_REPLY])
def test_whoever_hears_a_later_term_takes_it_and_becomes_a_follower(before: Role, kind: MessageType) -> None:
    """Paper 5.1; figure 2, all servers: the larger term wins, and leaders and candidates step down."""
    cluster = in_role(before, 2)
    hear(cluster, kind, 2, 5, reject=kind in REFUSALS)
    assert role(cluster) is Role.FOLLOWER
    assert cluster.nodes[1].disk.hard_state == HardState(5, 0), "on disk, and no vote in the new term"
    assert cluster[1].leader == (2 if kind in LEADERS else 0)


@pytest.mark.parametrize("before", ROLES)
@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (MessageType.APPEND, MessageType.APPEND_REPLY),
        (MessageType.HEARTBEAT, MessageType.APPEND_REPLY),
        (MessageType.VOTE, MessageType.VOTE_REPLY),
        (MessageType.PRE_VOTE, MessageType.PRE_VOTE_REPLY),
        (MessageType.READ_INDEX, MessageType.READ_INDEX_REPLY),
    ],
)
def test_a_request_of_a_stale_term_is_refused_with_the_current_term(
    before: Role, kind: MessageType, answer: MessageType
) -> None:
    """Paper 5.1; figure 2, AppendEntries 1 and RequestVote 1."""
    cluster = in_role(before, 3)
    (reply,) = hear(cluster, kind, 2, 2, log_index=7, log_term=2)
    assert (reply.type, reply.to_node, reply.term, reply.reject) == (answer, 2, 3, True)
    assert (role(cluster), cluster[1].term) == (before, 3)


def test_a_vote_of_an_earlier_term_is_not_counted() -> None:
    """Paper 5.2: a majority of the votes of one and the same term."""
    cluster = in_role(Role.CANDIDATE, 3)
    assert hear(cluster, MessageType.VOTE_REPLY, 2, 2) == []
    assert role(cluster) is Role.CANDIDATE
    hear(cluster, MessageType.VOTE_REPLY, 2, 3)
    assert role(cluster) is Role.LEADER


# ---- followers and candidates (5.2) ----------------------------------------------------------------------


@pytest.mark.parametrize("vote", [0, 1, 2])
def test_every_node_starts_as_a_follower_that_knows_no_leader(vote: int) -> None:
    """Paper 5.2: even one that had voted for itself."""
    cluster = Cluster(logs={1: disk(1, 2, term=4, vote=vote)})
    assert (role(cluster), cluster[1].term, cluster[1].leader) == (Role.FOLLOWER, 4, 0)
    assert said(cluster) == []


@pytest.mark.parametrize("kind", LEADERS)
def test_a_follower_stays_one_while_its_leader_is_heard(kind: MessageType) -> None:
    """Paper 5.2; figure 2, followers."""
    cluster = Cluster()
    for _ in range(5):
        cluster.tick(1, ELECTION - 1)
        hear(cluster, kind, 2, 1)
        assert role(cluster) is Role.FOLLOWER
    cluster.tick(1, ELECTION)
    assert role(cluster) is not Role.FOLLOWER, "silence is what ends it"


def test_a_candidate_raises_its_term_votes_for_itself_and_asks_all_others() -> None:
    """Paper 5.2; figure 2, candidates. What thesis 9.6 puts before it is the pre-vote."""
    cluster = Cluster((1, 2, 3, 4), logs={1: disk(1, 2, 2, term=6)})
    cluster.tick(1, ELECTION - 1)
    assert role(cluster) is Role.FOLLOWER
    cluster.tick(1)
    asked = said(cluster)
    assert {(m.type, m.to_node, m.term) for m in asked} == {(MessageType.PRE_VOTE, n, 7) for n in (2, 3, 4)}
    hear(cluster, MessageType.PRE_VOTE_REPLY, 2, 7)
    asked = hear(cluster, MessageType.PRE_VOTE_REPLY, 3, 7)
    assert {(m.type, m.to_node, m.term) for m in asked} == {(MessageType.VOTE, n, 7) for n in (2, 3, 4)}
    assert role(cluster) is Role.CANDIDATE
    assert cluster.nodes[1].disk.hard_state == HardState(7, 1)
    (refusal,) = hear(cluster, MessageType.VOTE, 4, 7, log_index=9, log_term=6)
    assert refusal.reject, "its vote is gone"


@pytest.mark.parametrize("before", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_a_candidate_that_neither_wins_nor_loses_tries_again_after_a_timeout(before: Role) -> None:
    """Paper 5.2: the third outcome of an election."""
    cluster = in_role(before, 3)
    cluster.tick(1, ELECTION - 1)
    assert said(cluster) == []
    cluster.tick(1)
    assert {(m.type, m.to_node, m.term) for m in said(cluster)} == {(MessageType.PRE_VOTE, n, 4) for n in (2, 3)}
    hear(cluster, MessageType.PRE_VOTE_REPLY, 3, 4)
    assert (role(cluster), cluster[1].term) == (Role.CANDIDATE, 4)


@pytest.mark.parametrize("size", range(1, 6))
def test_a_candidate_wins_with_a_majority_of_all_voters_and_loses_without(size: int) -> None:
    """Paper 5.2: a majority of the full cluster, not of those who answer."""
    for refused in range(size):
        for granted in range(size - refused):
            cluster = Cluster(range(1, size + 1))
            make_candidate(cluster)
            for node in range(2, 2 + refused + granted):
                hear(cluster, MessageType.VOTE_REPLY, node, 1, reject=node < 2 + refused)
            said(cluster)
            if 2 * (size - refused) <= size:
                outcome = Role.FOLLOWER
            else:
                outcome = Role.LEADER if 2 * (1 + granted) > size else Role.CANDIDATE
            assert (role(cluster), cluster[1].term) == (outcome, 1), (granted, refused)


def test_a_voter_that_answers_twice_is_counted_once() -> None:
    """Paper 5.2: votes of a majority of the servers; a network may deliver one of them twice."""
    cluster = Cluster(range(1, 6))
    make_candidate(cluster)
    for _ in range(3):
        hear(cluster, MessageType.VOTE_REPLY, 2, 1)
    assert role(cluster) is Role.CANDIDATE


@pytest.mark.parametrize(
    ("voted_for", "candidate", "granted"),
    [(0, 2, True), (0, 3, True), (2, 2, True), (3, 3, True), (2, 3, False), (3, 2, False)],
)
def test_a_vote_is_given_once_in_a_term_to_whoever_asks_first(
    voted_for: int, candidate: int, granted: bool
) -> None:
    """Paper 5.2; figure 2, RequestVote 2."""
    cluster = Cluster()
    if voted_for:
        (first,) = hear(cluster, MessageType.VOTE, voted_for, 1)
        assert not first.reject
    (reply,) = hear(cluster, MessageType.VOTE, candidate, 1)
    assert (reply.to_node, reply.term, reply.reject) == (candidate, 1, not granted)
    assert cluster.nodes[1].disk.hard_state == HardState(1, voted_for or candidate)


@pytest.mark.parametrize("granted", [True, False])
def test_a_vote_restarts_the_voters_timeout_and_a_refusal_does_not(granted: bool) -> None:
    """Figure 2, followers: silence counts from the last append of the leader or vote given."""
    cluster = Cluster(logs={1: disk(1)})
    hear(cluster, MessageType.VOTE_REPLY, 3, 2, reject=True)  # term 2, in which nobody leads
    cluster.tick(1, ELECTION - 1)
    (reply,) = hear(cluster, MessageType.VOTE, 2, 2, log_index=1 if granted else 0, log_term=1 if granted else 0)
    assert reply.reject is not granted
    cluster.tick(1)
    assert (role(cluster) is Role.FOLLOWER) is granted


@pytest.mark.parametrize("before", [Role.PRE_CANDIDATE, Role.CANDIDATE])
@pytest.mark.parametrize("kind", LEADERS)
@pytest.mark.parametrize("term", [2, 3])
def test_a_candidate_that_hears_a_leader_of_its_term_follows_it(
    before: Role, kind: MessageType, term: int
) -> None:
    """Paper 5.2; figure 2, candidates. (That one of a stale term is refused is said above.)"""
    cluster = in_role(before, 2)
    hear(cluster, kind, 3, term)
    assert (role(cluster), cluster[1].term, cluster[1].leader) == (Role.FOLLOWER, term, 3)
    hear(cluster, MessageType.VOTE_REPLY, 2, term)
    assert role(cluster) is Role.FOLLOWER, "a late vote makes no second leader"


def test_a_new_leader_tells_all_others_at_once() -> None:
    """Paper 5.2: so that nobody else starts an election."""
    cluster = Cluster(range(1, 6))
    make_candidate(cluster)
    hear(cluster, MessageType.VOTE_REPLY, 2, 1)
    told = hear(cluster, MessageType.VOTE_REPLY, 3, 1)
    assert {(m.type, m.to_node, m.term) for m in told} == {(MessageType.APPEND, n, 1) for n in (2, 3, 4, 5)}


def test_a_leader_sends_heartbeats_to_all_in_every_period() -> None:
    """Paper 5.2; figure 2, leaders."""
    cluster = Cluster(heartbeat_ticks=3)
    cluster.elect(1)
    for tick in range(1, 10):
        cluster.tick(1)
        beats = {m.to_node for m in said(cluster) if m.type is MessageType.HEARTBEAT}
        assert beats == ({2, 3} if tick % 3 == 0 else set())


def test_each_election_timeout_is_drawn_anew_from_the_whole_interval() -> None:
    """Paper 5.2: chosen at random, T to 2T, and again at the start of every election."""
    config = Config(1, frozenset({1, 2, 3}), election_ticks=ELECTION)
    each = RaftCore(config, MemoryLog(), HardState(), 0, random.Random(5))
    seen: list[int] = []
    while len(seen) < 200:
        waited = 0
        while not any(message.type is MessageType.PRE_VOTE for message in each.take_output().send):
            each.tick()
            waited += 1
        seen.append(waited)
    assert set(seen) == set(range(ELECTION, 2 * ELECTION))


def test_a_split_vote_elects_nobody_and_the_next_term_decides() -> None:
    """Paper 5.2: two candidates share the votes; the one that times out first wins the next election."""
    cluster = Cluster((1, 2, 3, 4))
    cluster.tick(2, 11)
    cluster.tick(1, 10)
    cluster.settle(lambda m: m.type in (MessageType.PRE_VOTE, MessageType.PRE_VOTE_REPLY))
    assert role(cluster, 1) is role(cluster, 2) is Role.CANDIDATE
    cluster.deliver(lambda m: m.type is MessageType.VOTE and (m.from_node, m.to_node) in {(1, 3), (2, 4)})
    cluster.settle()
    assert {cluster[node].term for node in cluster.nodes} == {1}
    assert all(role(cluster, node) is not Role.LEADER for node in cluster.nodes)
    cluster.time_out(1)
    cluster.settle()
    assert (role(cluster), cluster[1].term) == (Role.LEADER, 2)
    assert {cluster[node].leader for node in cluster.nodes} == {1}


# ---- who may win (5.4.1) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize(
    ("own", "log_index", "log_term", "granted"),
    [
        ((), 0, 0, True),
        ((1,), 0, 0, False),
        ((1,), 1, 1, True),
        ((1,), 2, 1, True),
        ((1, 1), 1, 1, False),
        ((1,), 1, 2, True),
        ((1, 1, 1), 1, 2, True),
        ((2,), 1, 1, False),
        ((2,), 2, 1, False),
        ((1, 2), 3, 1, False),
        ((1, 2), 2, 2, True),
    ],
)
def test_a_vote_is_refused_to_a_log_that_is_less_up_to_date(
    kind: MessageType, own: tuple[int, ...], log_index: int, log_term: int, granted: bool
) -> None:
    """Paper 5.4.1; figure 2, RequestVote 2; thesis 9.6: the later last term, then the longer log."""
    cluster = Cluster(logs={1: disk(*own)})
    (reply,) = hear(cluster, kind, 2, 5, log_index=log_index, log_term=log_term)
    assert reply.reject is not granted


@pytest.mark.parametrize("terms", [(), (1,), (1, 1, 2), (1, 3, 3, 3)])
def test_a_candidate_tells_the_index_and_term_of_its_last_entry(terms: tuple[int, ...]) -> None:
    """Paper 5.4.1; figure 2, RequestVote's arguments."""
    cluster = Cluster(logs={1: disk(*terms)})
    cluster.time_out(1)
    asked = said(cluster) + hear(cluster, MessageType.PRE_VOTE_REPLY, 2, cluster[1].term + 1)
    assert len(asked) == 4
    assert {(m.log_index, m.log_term) for m in asked} == {(len(terms), terms[-1] if terms else 0)}


# ---- pre-vote, learners (thesis) -------------------------------------------------------------------------


def test_a_pre_vote_binds_nobody_and_changes_no_term() -> None:
    """Thesis 9.6: both are told that they would get the vote, and the term stays."""
    cluster = Cluster()
    for candidate in (2, 3):
        (reply,) = hear(cluster, MessageType.PRE_VOTE, candidate, 1)
        assert (reply.to_node, reply.term, reply.reject) == (candidate, 1, False)
    assert cluster.nodes[1].disk.hard_state == HardState(0, 0)
    assert cluster[1].term == 0


def test_a_pre_candidate_whom_a_majority_refuses_does_not_raise_its_term() -> None:
    """Thesis 9.6: no election that cannot be won."""
    cluster = in_role(Role.PRE_CANDIDATE, 3)
    for node in (2, 3):
        hear(cluster, MessageType.PRE_VOTE_REPLY, node, 3, reject=True)
    assert (role(cluster), cluster[1].term) == (Role.FOLLOWER, 3)


def test_a_node_that_was_cut_off_disturbs_nobody_when_it_comes_back() -> None:
    """Thesis 9.6: its term has not grown, and the leader stays."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.isolate(3)
    cluster.tick(3, 10 * ELECTION)
    cluster.settle()
    cluster.heal()
    cluster.tick(3, 2 * ELECTION)
    assert any(message.from_node == 3 for message in cluster.flying), "it campaigns"
    cluster.settle()
    assert cluster[3].term == 1
    cluster.tick(1)
    cluster.settle()
    assert [role(cluster, node) for node in (1, 2, 3)] == [Role.LEADER, Role.FOLLOWER, Role.FOLLOWER]
    assert cluster[1].term == 1


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_vote_is_given_within_a_minimum_timeout_of_the_leaders_last_word(kind: MessageType) -> None:
    """Thesis 4.2.3 and 9.6: neither a vote nor the later term is taken; after that time both are."""
    cluster = Cluster()
    hear(cluster, MessageType.HEARTBEAT, 1, 1, to=2)
    cluster.tick(2, ELECTION - 1)
    assert hear(cluster, kind, 3, 2, to=2) == []
    assert (cluster[2].term, cluster[2].leader) == (1, 1)
    cluster.tick(2)
    (reply,) = hear(cluster, kind, 3, 2, to=2)
    assert (reply.term, reply.reject) == (2, False)


def test_a_learner_neither_campaigns_nor_is_asked_nor_counts() -> None:
    """Thesis 4.2.1: it gets the log and is in no majority."""
    cluster = Cluster((1, 2, 3), (4, 5))
    cluster.tick(4, 5 * ELECTION)
    assert (role(cluster, 4), cluster.flying) == (Role.LEARNER, [])
    cluster.time_out(1)
    assert {m.to_node for m in said(cluster)} == {2, 3}
    for learner in (4, 5):
        hear(cluster, MessageType.PRE_VOTE_REPLY, learner, 1)
    assert role(cluster) is Role.PRE_CANDIDATE
    hear(cluster, MessageType.PRE_VOTE_REPLY, 2, 1)
    for learner in (4, 5):
        hear(cluster, MessageType.VOTE_REPLY, learner, 1)
    assert role(cluster) is Role.CANDIDATE


# ---- the beginning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voters", "learners", "began"),
    [({1}, (), Role.CANDIDATE), ({1}, {2}, Role.CANDIDATE), ({1, 2}, (), Role.FOLLOWER), ({2}, {1}, Role.LEARNER)],
)
def test_a_sole_voter_waits_for_nobody(voters: set[int], learners: set[int], began: Role) -> None:
    config = Config(1, frozenset(voters), frozenset(learners), election_ticks=ELECTION)
    core = RaftCore(config, MemoryLog([], HardState()), HardState(), 0, random.Random(0))
    core.begin()
    assert core.role is began, "a candidate leads when its own vote is on disk"
