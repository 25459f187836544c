"""The checks of `raft_cluster` notice every mutant: by chance, or when its story is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from raftstorage.node.raft.types import Message, MessageType, RaftInvariantError, Role

from tests.unit.raft.chaos import Chaos
from tests.unit.raft.mutants import MUTANTS, RARE, Mutant, commits_older_terms, forgets_its_vote
from tests.unit.raft.one_node import role
from tests.unit.raft.raft_cluster import Cluster, Violation

RUNS = 400


def figure_8() -> None:
    """The paper's figure 8, up to (d): an old term's entry is on a majority and is overwritten all the same."""
    cluster = Cluster(range(1, 6), max_message_entries=1)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.settle(lambda message: message.to_node in (1, 2), frozen=(3, 4, 5))
    cluster.crash(1)
    cluster.flying.clear()
    cluster.elect(5, lambda message: message.type is not MessageType.APPEND)
    cluster.crash(5)
    cluster.flying.clear()
    cluster.restart(1)
    cluster.elect(1, lambda message: message.type is not MessageType.APPEND)
    third = cluster.nodes[3].disk

    def old_entries_to_third(message: Message) -> bool:
        if message.type is MessageType.APPEND and message.to_node == 3 and third.matches(message.log_index, 1):
            return all(entry.term == 1 for entry in message.entries)
        return message.to_node in (1, 2, 3)

    cluster.settle(old_entries_to_third)
    assert [entry.term for entry in cluster.nodes[3].disk.entries(1, 3, 1 << 20)] == [1, 1]
    assert {node for node, it in cluster.nodes.items() if it.disk.matches(2, 1)} >= {1, 2, 3}
    cluster.crash(1)
    cluster.flying.clear()
    cluster.restart(5)
    cluster.elect(5)
    assert [entry.term for entry in cluster.nodes[3].disk.entries(1, 3, 1 << 20)] == [1, 2]


def a_voter_crashes_between_two_candidates() -> None:
    cluster = Cluster()
    cluster.time_out(1)
    cluster.time_out(2)
    votes = (MessageType.VOTE, MessageType.VOTE_REPLY)
    cluster.settle(lambda message: message.type not in votes)
    assert cluster[1].role is cluster[2].role is Role.CANDIDATE
    cluster.settle(lambda message: message.type in votes and 2 not in (message.from_node, message.to_node))
    assert role(cluster, 1) is Role.LEADER
    cluster.crash(3)
    cluster.restart(3)
    cluster.settle(lambda message: message.type in votes and 1 not in (message.from_node, message.to_node))
    assert role(cluster, 2) is not Role.LEADER


STORIES: dict[Mutant, Callable[[], None]] = {
    commits_older_terms: figure_8,
    forgets_its_vote: a_voter_crashes_between_two_candidates,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught(mutant: Mutant) -> None:
    with mutant():
        for number in range(RUNS):
            try:
                Chaos(f"mutant/{number}").run(2_500)
            except (Violation, RaftInvariantError, IndexError) as error:
                print(f"run {number}: {error}")
                return
    pytest.fail(f"{RUNS} runs did not find it")


@pytest.mark.parametrize("mutant", RARE, ids=lambda mutant: mutant.__name__)
def test_rare_mutants_are_caught_by_their_stories(mutant: Mutant) -> None:
    STORIES[mutant]()
    with mutant(), pytest.raises(Violation):
        STORIES[mutant]()
