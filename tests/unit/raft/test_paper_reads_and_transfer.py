"""The rules of a leader's authority, one test each: thesis 3.10 (transfer), 6.2 (check-quorum), 6.4 (reads)."""

from __future__ import annotations

import pytest
from raftstorage.node.raft.types import HardState, Message, MessageType, NotLeader, ReadState, Role

from tests.unit.raft.one_node import ELECTION, disk, hear, role
from tests.unit.raft.raft_cluster import Cluster

APPEND, BEAT, BEAT_REPLY = MessageType.APPEND, MessageType.HEARTBEAT, MessageType.HEARTBEAT_REPLY
ASK, ANSWER = MessageType.READ_INDEX, MessageType.READ_INDEX_REPLY


def led(size: int = 3, learners: tuple[int, ...] = ()) -> Cluster:
    """Node 1 leads in term 1; everybody knows that the no-op, entry 1, is committed."""
    cluster = Cluster(range(1, size + 1), learners)
    cluster.elect(1)
    return cluster


def live(cluster: Cluster, ticks: int) -> None:
    """So much time goes by for the leader, and all its messages arrive."""
    for _ in range(ticks):
        cluster.tick(1)
        cluster.settle()


def reads(cluster: Cluster, node: int = 1) -> list[ReadState]:
    return cluster.nodes[node].reads


def take(cluster: Cluster, kind: MessageType) -> list[Message]:
    """The messages of this kind that fly, out of the network; `step` brings them back late."""
    found = [message for message in cluster.flying if message.type is kind]
    cluster.drop(lambda message: message.type is kind)
    return found


@pytest.mark.parametrize(("alive", "leads"), [(set(), False), ({2}, False), ({2, 3}, True), ({2, 6, 7}, False)])
def test_a_leader_that_reaches_no_majority_for_an_election_timeout_resigns(alive: set[int], leads: bool) -> None:
    """Thesis 6.2; the learners 6 and 7 are in no majority (4.2.1)."""
    cluster = led(5, (6, 7))
    for node in set(cluster.nodes) - {1, *alive}:
        cluster.cut(1, node)
    live(cluster, 2 * ELECTION)  # what is left of the one under way, and a whole one
    assert (role(cluster) is Role.LEADER) is leads
    assert cluster[1].term == 1, "stepping down is no new term"


# ---- reads of the leader (6.4) ---------------------------------------------------------------------------


def test_no_read_is_served_before_the_no_op_of_the_term_is_committed() -> None:
    """Thesis 6.4, step 1; paper, section 8: until then the leader does not know what is committed."""
    cluster = Cluster(logs={node: disk(1, 1) for node in (1, 2, 3)})
    cluster.elect(1, lambda message: message.type is not APPEND)
    cluster.read(1, 7)
    for _ in range(3):
        cluster.tick(1)
        cluster.settle(lambda message: message.type is not APPEND)
    assert reads(cluster) == []
    cluster.settle()
    assert reads(cluster) == [ReadState(7, 3)]


def test_the_read_index_is_the_commit_index_of_when_the_read_was_asked() -> None:
    """Thesis 6.4, step 2: what is committed during the round is not waited for."""
    cluster = led()
    cluster.read(1, 7)
    cluster.propose(1, b"x")
    cluster.settle(lambda message: message.type is not BEAT)
    assert cluster[1].commit_index == 2
    cluster.read(1, 8)
    cluster.settle()
    assert reads(cluster) == [ReadState(7, 1), ReadState(8, 2)]


@pytest.mark.parametrize("size", range(1, 6))
def test_a_read_is_confirmed_by_a_round_of_heartbeats_that_a_majority_answers(size: int) -> None:
    """Thesis 6.4, step 3: the leader itself is one of them."""
    for others in range(size):
        cluster = led(size)
        for node in range(2 + others, size + 1):
            cluster.cut(1, node)
        cluster.read(1, 7)
        cluster.settle()
        assert reads(cluster) == ([ReadState(7, 1)] if 2 * (1 + others) > size else [])


def test_a_learners_answer_confirms_no_read() -> None:
    """Thesis 4.2.1: a majority is one of voters."""
    cluster = led(3, (4, 5))
    cluster.read(1, 7)
    cluster.settle(lambda message: {message.from_node, message.to_node} <= {1, 4, 5})
    assert reads(cluster) == []


def test_a_voter_that_answers_a_round_twice_is_counted_once() -> None:
    """Thesis 6.4, step 3: a majority of the cluster, not of the answers."""
    cluster = led(5)
    cluster.read(1, 7)
    (answer,) = hear(cluster, BEAT, 1, 1, to=2, context=1)
    for _ in range(3):
        cluster.step(answer)
    assert reads(cluster) == []


def test_an_answer_to_a_heartbeat_from_before_the_read_does_not_confirm_it() -> None:
    """Thesis 6.4, step 3: a new round for each read; an old answer proves nothing about now."""
    cluster = led()
    cluster.tick(1)
    cluster.deliver()
    old = take(cluster, BEAT_REPLY)
    cluster.read(1, 7)
    cluster.deliver()
    first = take(cluster, BEAT_REPLY)
    cluster.read(1, 8)
    for message in old:
        cluster.step(message)
    assert reads(cluster) == []
    for message in first:
        cluster.step(message)
    assert reads(cluster) == [ReadState(7, 1)]
    cluster.settle()
    assert reads(cluster) == [ReadState(7, 1), ReadState(8, 1)]


def test_a_confirmed_round_confirms_the_rounds_before_it() -> None:
    """Thesis 6.4: who acknowledges a later heartbeat had not left the leader at the earlier one either."""
    cluster = led()
    cluster.read(1, 7)
    cluster.drop()
    cluster.read(1, 8)
    cluster.settle()
    assert reads(cluster) == [ReadState(7, 1), ReadState(8, 1)]


def test_an_answer_of_an_earlier_term_confirms_no_read() -> None:
    """Thesis 6.4: a round belongs to its term, also when a restarted leader counts its rounds anew."""
    cluster = led()
    cluster.read(1, 7)
    cluster.deliver()
    old = take(cluster, BEAT_REPLY)
    assert {message.context for message in old} == {1}
    cluster.crash(1)
    cluster.restart(1)
    cluster.elect(1)
    cluster.read(1, 8)
    assert {message.context for message in take(cluster, BEAT)} == {1}
    for message in old:
        cluster.step(message)
    assert reads(cluster) == []


def test_reads_that_come_together_share_one_round() -> None:
    """Thesis 6.4: the cost of a round is spread over many reads."""
    cluster = led()
    for request in (7, 8, 9):
        cluster.checks.asked[request] = len(cluster.committed)
        cluster[1].read_index(request)
    cluster.pump(1)
    assert [message.to_node for message in cluster.flying] == [2, 3]
    cluster.settle()
    assert reads(cluster) == [ReadState(request, 1) for request in (7, 8, 9)]


def test_a_round_that_is_lost_rides_along_with_the_next_heartbeat() -> None:
    """Thesis 6.4: the leader may have to wait for the heartbeats of a later period."""
    cluster = led()
    cluster.read(1, 7)
    cluster.drop()
    live(cluster, 1)
    assert reads(cluster) == [ReadState(7, 1)]


def test_a_leader_that_was_replaced_without_knowing_it_serves_no_read() -> None:
    """Thesis 6.4: a newer leader may have committed more; the read is lost, not stale."""
    cluster = led()
    cluster.isolate(1)
    cluster.elect(2)
    cluster.propose(2, b"x")
    cluster.settle()
    assert role(cluster) is role(cluster, 2) is Role.LEADER
    cluster.read(1, 7)
    live(cluster, ELECTION)
    assert reads(cluster) == []
    assert cluster.nodes[1].reads_lost == [7]


def test_a_leader_that_steps_down_gives_up_the_reads_that_wait() -> None:
    """Thesis 6.4: a round that is not finished in its term proves nothing."""
    cluster = led()
    cluster.read(1, 7)
    cluster.deliver()
    late = take(cluster, BEAT_REPLY)
    hear(cluster, BEAT, 3, 2)
    assert cluster.nodes[1].reads_lost == [7]
    for message in late:
        cluster.step(message)
    assert reads(cluster) == []


# ---- reads of the others (6.4) ---------------------------------------------------------------------------


@pytest.mark.parametrize("node", [2, 4])
def test_a_follower_or_learner_reads_at_the_index_that_its_leader_confirms(node: int) -> None:
    """Thesis 6.4, last part: the leader runs steps 1 to 3 for it."""
    cluster = led(3, (4,))
    cluster.propose(1, b"x")
    cluster.settle(lambda message: message.to_node != node)
    cluster.read(node, 7)
    assert [(m.type, m.to_node, m.context) for m in cluster.flying if m.from_node == node] == [(ASK, 1, 7)]
    cluster.deliver(lambda message: message.type is ASK)
    assert take(cluster, ANSWER) == [], "not before the round"
    cluster.settle()
    assert reads(cluster, node) == [ReadState(7, 2)]


def test_a_followers_read_is_bound_to_the_leader_that_it_asked() -> None:
    """Thesis 6.4: with a new term the request is lost, and the late answer of the old one is not taken."""
    cluster = led()
    cluster.read(2, 7)
    cluster.settle(lambda message: message.type is not ANSWER)
    late = take(cluster, ANSWER)
    cluster.isolate(1)
    cluster.elect(3)
    assert cluster.nodes[2].reads_lost == [7]
    for message in late:
        cluster.step(message)
    assert (reads(cluster, 2), cluster.nodes[2].reads_lost) == ([], [7])


@pytest.mark.parametrize(("sender", "number"), [(3, 7), (1, 8), (1, 0)])
def test_a_followers_read_takes_only_its_leaders_answer_to_this_request(sender: int, number: int) -> None:
    """Thesis 6.4: the answer to another read may be of an earlier time."""
    cluster = led()
    cluster.read(2, 7)
    hear(cluster, ANSWER, sender, 1, to=2, context=number, log_index=1)
    assert (reads(cluster, 2), cluster.nodes[2].reads_lost) == ([], [])
    for _ in range(2):
        hear(cluster, ANSWER, 1, 1, to=2, context=7, log_index=1)
    assert reads(cluster, 2) == [ReadState(7, 1)], "and that once"


def test_a_node_that_does_not_lead_confirms_no_read_for_others() -> None:
    """Thesis 6.4: only the leader of the term may."""
    cluster = led()
    (answer,) = hear(cluster, ASK, 2, 1, to=3, context=7)
    assert (answer.type, answer.context, answer.reject) == (ANSWER, 7, True)


def test_a_read_without_a_leader_or_without_an_answer_is_lost() -> None:
    """Thesis 6.4: the client asks again; nobody serves it from what it happens to have."""
    cluster = Cluster()
    cluster.read(2, 7)
    assert cluster.nodes[2].reads_lost == [7]
    cluster.elect(1)
    cluster.read(2, 8)
    cluster.drop(lambda message: message.type is ASK)
    for _ in range(ELECTION):
        cluster.tick(1)
        cluster.tick(2)
        cluster.settle()
    assert (reads(cluster, 2), cluster.nodes[2].reads_lost) == ([], [7, 8])


# ---- leadership transfer (3.10) --------------------------------------------------------------------------


def test_a_leader_takes_no_commands_while_it_hands_over() -> None:
    """Thesis 3.10, step 1."""
    cluster = led()
    cluster.transfer(1, 2)
    with pytest.raises(NotLeader, match="to 2"):
        cluster[1].propose([b"x"])
    assert cluster[1].last_index == 1


def test_the_target_is_told_to_campaign_only_when_it_has_the_whole_log() -> None:
    """Thesis 3.10, steps 2 and 3."""
    cluster = led()
    cluster.propose(1, b"x")
    cluster.transfer(1, 2)
    cluster.settle(frozen={2})
    assert cluster[1].commit_index == 2, "the others have it"
    assert (cluster[2].term, role(cluster)) == (1, Role.LEADER)
    cluster.write(2, 9)
    cluster.deliver(lambda message: message.type is MessageType.APPEND_REPLY)
    (order,) = take(cluster, MessageType.TIMEOUT_NOW)
    assert (order.to_node, order.term) == (2, 1)


def test_the_target_campaigns_at_once_without_a_pre_vote() -> None:
    """Thesis 3.10, step 3: as if its timeout had gone by; 4.2.3: the request says that the leader ordered it."""
    cluster = led()
    asked = hear(cluster, MessageType.TIMEOUT_NOW, 1, 1, to=2)
    assert role(cluster, 2) is Role.CANDIDATE
    assert cluster.nodes[2].disk.hard_state == HardState(2, 2)
    assert {(m.type, m.to_node, m.term, m.transfer) for m in asked} == {
        (MessageType.VOTE, node, 2, True) for node in (1, 3)
    }


def test_a_voter_that_hears_the_leader_votes_for_its_chosen_successor_only() -> None:
    """Thesis 4.2.3: the exception to the rule that a live leader's followers do not vote."""
    cluster = led()
    assert hear(cluster, MessageType.VOTE, 2, 2, to=3, log_index=1, log_term=1) == []
    (reply,) = hear(cluster, MessageType.VOTE, 2, 2, to=3, log_index=1, log_term=1, transfer=True)
    assert (reply.type, reply.reject, reply.term) == (MessageType.VOTE_REPLY, False, 2)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_transfer_makes_the_target_leader_of_the_next_term(size: int) -> None:
    """Thesis 3.10: without any timeout, with all that was written, and the old leader follows."""
    cluster = led(size)
    cluster.propose(1, b"x")
    cluster.transfer(1, 2)
    cluster.settle()
    assert [role(cluster, node) for node in (1, 2)] == [Role.FOLLOWER, Role.LEADER]
    assert {(cluster[node].term, cluster[node].leader) for node in cluster.nodes} == {(2, 2)}
    cluster.propose(2, b"y")
    cluster.settle()
    assert [entry.data for entry in cluster.nodes[1].applied] == [b"", b"x", b"", b"y"]


def test_a_transfer_that_does_not_succeed_is_given_up_after_an_election_timeout() -> None:
    """Thesis 3.10: then the leader takes commands again."""
    cluster = led()
    cluster.crash(2)
    cluster.transfer(1, 2)
    for _ in range(ELECTION):
        with pytest.raises(NotLeader):
            cluster[1].propose([b"x"])
        cluster.tick(1)
        cluster.settle()
    cluster.propose(1, b"x")
    cluster.settle()
    assert (role(cluster), cluster[1].term, cluster[1].commit_index) == (Role.LEADER, 1, 2)
    cluster.restart(2)
    live(cluster, 3)
    assert (cluster[2].term, cluster[2].commit_index) == (1, 2), "nobody orders it later"


def test_an_order_to_campaign_that_is_lost_is_given_again() -> None:
    """Thesis 3.10: the target may well be alive; its next answer to a heartbeat shows it."""
    cluster = led()
    cluster.transfer(1, 2)
    assert len(take(cluster, MessageType.TIMEOUT_NOW)) == 1
    live(cluster, 1)
    assert role(cluster, 2) is Role.LEADER


@pytest.mark.parametrize(("node", "target"), [(1, 1), (1, 4), (1, 9), (2, 3), (4, 2)])
def test_only_a_leader_hands_over_and_only_to_another_voter(node: int, target: int) -> None:
    """Thesis 3.10 and 4.2.1: not to itself, to a learner or to a stranger; the leader goes on."""
    cluster = led(3, (4,))
    cluster.transfer(node, target)
    cluster.settle()
    cluster.propose(1, b"x")
    cluster.settle()
    assert (role(cluster), cluster[1].term, cluster[1].commit_index) == (Role.LEADER, 1, 2)


def test_without_a_name_the_leader_chooses_the_voter_that_is_furthest() -> None:
    """Thesis 3.10: it needs the least to be brought up to date."""
    cluster = led(3, (4,))
    cluster.cut(1, 2)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.transfer(1)
    cluster.settle()
    assert role(cluster, 3) is Role.LEADER


@pytest.mark.parametrize(("node", "term"), [(2, 1), (4, 2)])
def test_an_order_of_a_former_leader_or_to_a_learner_starts_no_election(node: int, term: int) -> None:
    """Paper 5.1 and thesis 4.2.1."""
    cluster = Cluster((1, 2, 3), (4,), logs={each: disk(1) for each in (1, 2, 3, 4)})
    cluster.elect(1)
    assert {cluster[each].term for each in cluster.nodes} == {2}
    assert hear(cluster, MessageType.TIMEOUT_NOW, 1, term, to=node) == []
    assert cluster[node].term == 2


def test_a_target_that_lacks_entries_is_not_elected() -> None:
    """Paper 5.4.1: the order lifts the rule of the live leader, not that of the log."""
    cluster = led()
    cluster.cut(1, 2)
    cluster.propose(1, b"x")
    cluster.settle()
    cluster.heal()
    cluster.drop()
    cluster.step(Message(MessageType.TIMEOUT_NOW, 1, 2, 1))
    cluster.settle(lambda message: message.type in (MessageType.VOTE, MessageType.VOTE_REPLY))
    assert (role(cluster, 2), cluster[2].term) == (Role.FOLLOWER, 2)
    assert cluster[3].term == 2, "it was asked, and refused"
