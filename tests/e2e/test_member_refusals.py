"""What makes no sense of a membership is refused with a clear reason, and nothing is changed by it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from raftstorage.ops.local import LocalCluster
from raftstorage.ops.ports import free_ports
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc

from tests.e2e.growing import (
    SECONDS,
    Serving,
    eventually,
    grown,
    member,
    membership,
    nothing_changed,
    raftstorage,
    removed,
    roles,
    settled,
)


def free_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture(scope="module")
def three(shared_cluster: LocalCluster) -> LocalCluster:
    settled(shared_cluster)
    return shared_cluster


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Another cluster, of one node."""
    with LocalCluster(nodes=1, directory=tmp_path_factory.mktemp("single") / "cluster") as cluster:
        settled(cluster)
        yield cluster


def refusal(address: str, **change: Any) -> tuple[grpc.StatusCode, str]:
    """How that one node refuses a change."""
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        stub: Any = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
        stub.ChangeMembers(pb.ChangeMembersRequest(**change), timeout=SECONDS)
    return refused.value.code(), refused.value.details() or ""


def claim(cluster: LocalCluster, node_id: int, directory: Path, **changes: str) -> Serving:
    """A node that says it is a founder of `cluster`, with a directory of its own."""
    words = ["--id", str(node_id), "--cluster-id", changes.get("cluster_id", cluster.cluster_id)]
    for i in range(3):
        words += ["--member", f"{cluster.node_id(i)}={cluster.address(i)}"]
    return Serving(directory, *words, "--listen", changes.get("listen", free_address()), founds=True)


# ---- changes that make no sense --------------------------------------------------------------------------


def test_unknown_members_are_refused(three: LocalCluster) -> None:
    with nothing_changed(three):
        for words in (("remove", "77"), ("promote", "77"), ("demote", "77"), ("replace", "1", "77")):
            status, said = member(three, *words)
            assert (status, "node 77 is no member" in said) == (1, True), said
        leader = three.address(three.leader(timeout=SECONDS))
        for change in ({"remove": 77}, {"promote": 77}, {"demote": 77}, {"replace": pb.Replacement(old=1, by=77)}):
            code, why = refusal(leader, **change)
            assert code is grpc.StatusCode.NOT_FOUND, (change, why)
        code, why = refusal(leader, replace=pb.Replacement(old=77, by=1))
        assert code is grpc.StatusCode.NOT_FOUND, why
        for change in ({}, {"replace": pb.Replacement(old=1, by=1)}, {"remove": 0}, {"promote": 0}):
            code, why = refusal(leader, **change)
            assert code in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.FAILED_PRECONDITION,
                grpc.StatusCode.NOT_FOUND,
            ), (change, why)


def test_the_last_voter_stays(single: LocalCluster) -> None:
    with nothing_changed(single):
        for words in (("remove", "1"), ("demote", "1")):
            status, said = member(single, *words)
            assert (status, "no voter would be left" in said) == (1, True), said
    learner = grown(single, learner=True)
    with nothing_changed(single):
        for words in (("remove", "1"), ("demote", "1")):
            status, said = member(single, *words)
            assert (status, "no voter would be left" in said) == (1, True), said
        node = str(single.node_id(learner))
        status, said = member(single, "demote", node)
        assert (status, "is a learner already" in said) == (1, True), said
    removed(single, learner)
    assert roles(single) == {1: "voter"}


def test_a_follower_changes_nothing(three: LocalCluster) -> None:
    leader = three.leader(timeout=SECONDS)
    with nothing_changed(three):
        for i in {0, 1, 2} - {leader}:
            for change in ({"remove": 1}, {"demote": 1}, {"promote": 1}, {"add": free_address()}):
                code, why = refusal(three.address(i), **change)
                assert code is grpc.StatusCode.FAILED_PRECONDITION, (change, why)
                assert "leader" in why or "lead" in why, (change, why)


def test_who_is_added_must_answer_and_be_empty(three: LocalCluster, single: LocalCluster) -> None:
    with nothing_changed(three), nothing_changed(single):
        address = free_address()
        status, said = member(three, "add", address)
        assert (status, f"{address} does not answer" in said) == (1, True), said
        with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
            address = f"127.0.0.1:{server.getsockname()[1]}"
            status, said = raftstorage("member", "add", address, "--addresses", three.addresses, "--timeout", "3")[
                ::2
            ]
            assert (status, len(said.splitlines())) == (1, 1), said
        status, said = member(three, "add", three.address(1))
        assert (status, "node 2 of cluster" in said, "already" in said) == (1, True, True), said
        status, said = member(three, "add", single.address(0))
        assert (status, f"of cluster {single.cluster_id} already" in said) == (1, True), said
        status, said = member(three, "add", "nonsense")
        assert (status, "host:port" in said) == (2, True), said
        leader = three.address(three.leader(timeout=SECONDS))
        for address in ("", "nonsense", "127.0.0.1:0", "127.0.0.1:99999"):
            code, why = refusal(leader, add=address)
            assert code is grpc.StatusCode.INVALID_ARGUMENT, why


def test_a_removal_that_would_lose_the_majority_is_refused(cluster: LocalCluster) -> None:
    settled(cluster)
    leader = cluster.leader(timeout=SECONDS)
    down, other = (i for i in range(3) if i != leader)
    cluster.kill(down)
    node = str(cluster.node_id(other))

    def refused(*words: str) -> str:
        status, said = member(cluster, *words)
        assert status == 1, said
        return said if "no majority" in said else ""

    # A dead node is known as one after an election timeout; there is nothing to see of that but the time.
    begin = cluster.status(leader).uptime_seconds
    eventually(lambda: cluster.status(leader).uptime_seconds > begin + 1.5, "some election timeouts to pass")
    with nothing_changed(cluster):
        assert refused("remove", node)
        assert refused("demote", node)
        assert refused("remove", str(cluster.node_id(leader)))
    # The dead one may go.
    removed(cluster, down)
    assert roles(cluster) == {cluster.node_id(i): "voter" for i in (leader, other)}


# ---- nodes that are not what they say ---------------------------------------------------------------------


def test_a_second_directory_does_not_become_a_member_that_lives(three: LocalCluster, disk_directory: Path) -> None:
    victim = (three.leader(timeout=SECONDS) + 1) % 3
    with nothing_changed(three), claim(three, three.node_id(victim), disk_directory / "second") as node:
        status, line = node.ended()
        assert status == 5
        assert "another directory" in line, line
        assert "--join" in line, line
        assert three.is_running(victim)


def test_a_second_directory_does_not_become_a_member_that_died(
    cluster: LocalCluster, disk_directory: Path
) -> None:
    settled(cluster)
    victim = (cluster.leader(timeout=SECONDS) + 1) % 3
    cluster.kill(victim)
    with (
        nothing_changed(cluster),
        claim(cluster, cluster.node_id(victim), disk_directory / "second", listen=cluster.address(victim)) as node,
    ):
        status, line = node.ended()
        assert status == 5
        assert "another directory" in line, line
    cluster.start(victim)
    eventually(lambda: cluster.status(victim).leader_id, "the true one to be back")


def test_a_node_of_another_cluster_is_kept_out(
    three: LocalCluster, disk_directory: Path, wait_for: Callable[..., Any]
) -> None:
    victim = (three.leader(timeout=SECONDS) + 1) % 3
    other = "0" * 32
    with (
        nothing_changed(three),
        claim(three, three.node_id(victim), disk_directory / "stranger", cluster_id=other) as node,
    ):
        node.serves()
        node.said(f"is of cluster '{other}'")
        wait_for(
            lambda: any(
                "is of cluster" in problem and other in problem
                for i in range(3)
                for problem in three.status(i).problems
            ),
            "the members to tell of it",
        )


def test_a_directory_of_another_cluster_is_not_joined_with(three: LocalCluster, disk_directory: Path) -> None:
    directory = disk_directory / "node"
    with Serving(directory, "--listen", free_address()) as node:
        node.serves()
        assert node.stop() == 0
    before = (directory / "node.json").read_bytes()
    with (
        nothing_changed(three),
        Serving(
            directory, "--listen", free_address(), "--join", three.address(0), "--cluster-id", "1" * 32
        ) as node,
    ):
        status, line = node.ended()
        assert (status, "belongs to cluster" in line) == (5, True), line
    assert (directory / "node.json").read_bytes() == before


def test_nobody_answers_who_could_let_it_in(disk_directory: Path) -> None:
    words = ["--listen", free_address(), "--join", free_address(), "--join", free_address()]
    begin = time.monotonic()
    with Serving(disk_directory / "node", *words, "--join-seconds", "2") as node:
        status, line = node.ended(30.0)
    assert status == 6
    assert "no cluster at" in line, line
    assert time.monotonic() - begin < 30
    with Serving(disk_directory / "node", *words, "--join-seconds", "0") as node:
        status, line = node.ended(30.0)
        assert (status, "--join-seconds" in line) == (2, True), line


def test_a_cluster_without_a_majority_lets_nobody_in(cluster: LocalCluster, disk_directory: Path) -> None:
    settled(cluster)
    left, *down = range(3)
    words = ["--listen", free_address(), "--join", cluster.address(left), "--join-seconds", "2"]
    with nothing_changed(cluster):
        for i in down:
            cluster.kill(i)
        eventually(lambda: not cluster.status(left).leader_id, "the one that is left to know no leader")
        with Serving(disk_directory / "node", *words) as node:
            status, line = node.ended()
        assert (status, f"{cluster.address(left)}: no leader is known there" in line) == (6, True), line
        for i in down:
            cluster.start(i)


def test_an_address_that_others_cannot_reach_is_not_joined(three: LocalCluster, disk_directory: Path) -> None:
    words = ["--listen", free_address(), "--join", three.address(0), "--join-seconds", "1"]
    with (
        nothing_changed(three),
        Serving(disk_directory / "node", *words, "--advertise", free_address()) as node,
    ):
        status, line = node.ended()
        assert (status, "does not answer, so that no member could reach it" in line) == (6, True), line
    with (
        nothing_changed(three),
        Serving(disk_directory / "node", *words, "--advertise", three.address(1)) as node,
    ):
        status, line = node.ended()
        assert (status, "is answered by node 2" in line) == (6, True), line


def test_a_standby_is_added_as_a_learner_promoted_and_removed(cluster: LocalCluster, disk_directory: Path) -> None:
    settled(cluster)
    address = free_address()
    with Serving(disk_directory / "standby", "--listen", address, "--standby") as node:
        node.said("waits to be added")
        with nothing_changed(cluster):
            pass  # it waits, and does nothing by itself
        assert member(cluster, "add", "--learner", address) == (0, "")
        node.serves()
        assert node.node_id == 4
        assert roles(cluster)[4] == "learner"
        with nothing_changed(cluster):
            status, said = member(cluster, "add", address)
            assert (status, "already" in said) == (1, True), said
        eventually(lambda: member(cluster, "promote", "4") == (0, ""), "it to be promoted", interval=0.2)
        assert roles(cluster)[4] == "voter"
        assert member(cluster, "demote", "4") == (0, "")
        assert roles(cluster)[4] == "learner"
        assert member(cluster, "remove", "4") == (0, "")
        assert 4 not in roles(cluster)
        with nothing_changed(cluster):
            status, said = member(cluster, "remove", "4")
            assert (status, "node 4 is no member" in said) == (1, True), said
        assert node.stop() == 0
    assert {each.node_id for each in membership(cluster).members} == {1, 2, 3}
