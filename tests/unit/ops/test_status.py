"""What `raftstorage status` concludes from the nodes' answers."""

from __future__ import annotations

import json

import pytest
from raftstorage.ops.diagnosis import diagnose, show_findings
from raftstorage.ops.status import NodeStatus, as_json, has_quorum, leader_of, show, split_addresses
from raftstorage.proto import admin_pb2 as pb
from rich.console import Console

ADDRESSES = {1: "127.0.0.1:7441", 2: "127.0.0.1:7442", 3: "127.0.0.1:7443"}


def node(
    node_id: int, role: str, leader: int, term: int = 5, cluster: str = "c", connected: bool = True
) -> NodeStatus:
    peers = [
        pb.PeerStatus(node_id=n, address=a, connected=connected) for n, a in ADDRESSES.items() if n != node_id
    ]
    reply = pb.StatusReply(
        cluster_id=cluster,
        node_id=node_id,
        role=role,
        term=term,
        leader_id=leader,
        peers=peers,
        last_tid=b"\1" * 8,
    )
    return NodeStatus(ADDRESSES[node_id], reply)


def dead(node_id: int) -> NodeStatus:
    return NodeStatus(ADDRESSES[node_id], None, "UNAVAILABLE: connection refused")


def test_a_healthy_cluster_has_a_quorum() -> None:
    statuses = [node(1, "follower", 2), node(2, "leader", 2), node(3, "follower", 2)]
    assert has_quorum(statuses)
    assert leader_of(statuses) == statuses[1]


def test_two_of_three_are_a_quorum_and_one_is_not() -> None:
    assert has_quorum([node(1, "leader", 1), node(2, "follower", 1), dead(3)])
    assert not has_quorum([node(1, "leader", 1), dead(2), dead(3)])


def test_a_leader_that_nobody_follows_is_none() -> None:
    deposed = node(1, "leader", 1, term=4)
    assert not has_quorum([deposed, node(2, "follower", 3), dead(3)])
    statuses = [deposed, node(2, "follower", 3), node(3, "leader", 3)]
    assert leader_of(statuses) == statuses[2]
    assert has_quorum(statuses)


def test_followers_of_another_cluster_do_not_count() -> None:
    assert not has_quorum([node(1, "leader", 1), node(2, "follower", 1, cluster="other"), dead(3)])


def test_a_leader_alone_is_asked_and_sees_the_others() -> None:
    assert has_quorum([node(1, "leader", 1)])
    assert not has_quorum([node(1, "leader", 1, connected=False)])


def test_no_leader_is_no_quorum() -> None:
    assert not has_quorum([node(1, "candidate", 0), node(2, "follower", 0), dead(3)])
    assert not has_quorum([])


def test_json_and_table_tell_the_same() -> None:
    statuses = [node(1, "leader", 1), node(2, "follower", 1), dead(3)]
    assert statuses[1].reply is not None
    statuses[1].reply.problems.append("the disk is nearly full: 5 bytes are free")
    value = json.loads(json.dumps(as_json(statuses)))
    assert value["leader"] == ADDRESSES[1]
    assert value["quorum"] is True
    assert [n["reachable"] for n in value["nodes"]] == [True, True, False]
    assert value["nodes"][0]["last_tid"] == "01" * 8
    assert [n.get("problems") for n in value["nodes"]] == [[], ["the disk is nearly full: 5 bytes are free"], None]
    console = Console(record=True, width=80, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    show(statuses, console)
    show_findings(statuses, console)
    text = console.export_text()
    assert "node 1 at 127.0.0.1:7441" in text
    assert "UNAVAILABLE" in text
    assert "node 2: the disk is nearly full" in text
    assert "…" not in text, "a table that does not fit a terminal"


def test_a_learner_is_no_voter() -> None:
    leader = node(1, "leader", 1)
    assert leader.reply is not None
    leader.reply.peers[1].member_role = "learner"
    assert not has_quorum([leader, dead(2), node(3, "learner", 1)])
    assert has_quorum([leader, node(2, "follower", 1), dead(3)])


def advice(*statuses: NodeStatus) -> list[tuple[str, bool]]:
    return [(str(finding), finding.grave) for finding in diagnose(statuses)]


def test_nothing_is_found_where_all_is_well() -> None:
    assert advice(node(1, "leader", 1), node(2, "follower", 1), node(3, "follower", 1)) == []


def test_a_member_that_is_away_is_named_with_how_many_more_may_fail() -> None:
    leader = node(1, "leader", 1)
    assert leader.reply is not None
    leader.reply.peers[0].connected = False
    found = advice(leader, dead(2), node(3, "follower", 1))
    assert any("node 2 at 127.0.0.1:7442" in text and "0 more may fail" in text and grave for text, grave in found)
    assert any("raftstorage member remove 2" in text for text, _ in found)


def test_without_a_leader_it_says_how_many_must_run() -> None:
    found = advice(node(1, "follower", 0), dead(2), dead(3))
    assert found[0][1]
    assert "2 of 3 voters must run" in found[0][0]


def test_what_a_node_says_of_itself_is_passed_on() -> None:
    leader = node(1, "leader", 1)
    assert leader.reply is not None
    leader.reply.problems.append("its disk is nearly full: make room")
    assert advice(leader, node(2, "follower", 1), node(3, "follower", 1)) == [
        ("node 1: its disk is nearly full: make room", False)
    ]


@pytest.mark.parametrize("bad", ["", " , ", "host", "host:", ":7441", "host:0", "host:65536", "a:1,b"])
def test_bad_addresses_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="address"):
        split_addresses(bad)


def test_addresses() -> None:
    assert split_addresses("a:1, b:2,[::1]:3,") == ["a:1", "b:2", "[::1]:3"]
