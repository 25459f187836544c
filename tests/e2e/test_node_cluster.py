"""Three nodes as processes: who leads, how they hand over, and what they show to operators."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from raftstorage.ops.local import LocalCluster
from raftstorage.proto import PROTOCOL_VERSION, admin_pb2, admin_pb2_grpc

from tests.e2e.nodes import SECONDS, commit_something


def leader_after(cluster: LocalCluster, old: int) -> int:
    new = cluster.leader(timeout=SECONDS)
    assert new != old
    return new


def test_another_node_leads_when_the_leader_is_killed(cluster: LocalCluster) -> None:
    old = cluster.leader(timeout=SECONDS)
    term = cluster.status(old).term
    cluster.kill(old)
    new = leader_after(cluster, old)
    assert cluster.status(new).term > term
    cluster.start(old)
    cluster.leader(timeout=SECONDS)


def test_a_leader_that_is_terminated_hands_over_at_once(cluster: LocalCluster) -> None:
    old = cluster.leader(timeout=SECONDS)
    term = cluster.status(old).term
    assert cluster.stop(old) == 0
    new = leader_after(cluster, old)
    status = cluster.status(new)
    # One election, and no vote was split or refused: it was called for, not found out by silence.
    assert status.term == term + 1
    assert "without handing" not in cluster.log_path(old).read_text()


def test_status_tells_what_the_cluster_is(shared_cluster: LocalCluster, wait_for: Callable[..., Any]) -> None:
    leader = shared_cluster.leader(timeout=SECONDS)
    follower = (leader + 1) % 3
    status = shared_cluster.status(leader)
    assert (status.role, status.leader_id, status.node_id) == ("leader", leader + 1, leader + 1)
    assert status.cluster_id == shared_cluster.cluster_id
    assert status.protocol_version == PROTOCOL_VERSION
    assert status.version
    assert [peer.node_id for peer in status.peers] == sorted({1, 2, 3} - {leader + 1})
    assert [peer.address for peer in status.peers] == [
        shared_cluster.address(peer.node_id - 1) for peer in status.peers
    ]
    wait_for(
        lambda: all(
            peer.connected and peer.state == "replicate" and peer.match_index == reply.last_index
            for reply in [shared_cluster.status(leader)]
            for peer in reply.peers
        ),
        "both followers to be level",
    )
    status = shared_cluster.status(follower)
    assert (status.role, status.leader_id) == ("follower", leader + 1)
    assert status.log_bytes > 0
    assert status.uptime_seconds > 0


def test_leadership_is_transferred_on_request(cluster: LocalCluster) -> None:
    old = cluster.leader(timeout=SECONDS)
    to = (old + 1) % 3
    request = admin_pb2.TransferLeaderRequest(to_node=to + 1)
    with (
        grpc.insecure_channel(cluster.address(old)) as at_leader,
        grpc.insecure_channel(cluster.address(to)) as at_follower,
    ):
        for channel, asked, code in (
            (at_follower, request, grpc.StatusCode.FAILED_PRECONDITION),
            (at_leader, admin_pb2.TransferLeaderRequest(to_node=77), grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                admin_pb2_grpc.AdminStub(channel).TransferLeader(asked, timeout=SECONDS)
            assert refused.value.code() is code
        reply = admin_pb2_grpc.AdminStub(at_leader).TransferLeader(request, timeout=SECONDS)
    assert reply.leader_id == to + 1
    assert cluster.leader(timeout=SECONDS) == to


def health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=SECONDS).status)


def test_health_tells_followers_from_the_leader(cluster: LocalCluster, wait_for: Callable[..., Any]) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    leader = cluster.leader(timeout=SECONDS)
    for i in range(3):
        for service in ("", "raftstorage.v1.Storage"):
            wait_for(
                lambda i=i, service=service: health(cluster.address(i), service) == serving, f"{i} {service!r}"
            )
        wanted = serving if i == leader else not_serving
        wait_for(
            lambda i=i, wanted=wanted: health(cluster.address(i), "raftstorage.leader") == wanted, f"leader {i}"
        )
    for i in range(3):
        if i != leader:
            cluster.kill(i)
    # It notices by itself that it has no majority any more, and sends clients away.
    for service in ("", "raftstorage.v1.Storage", "raftstorage.leader"):
        wait_for(
            lambda service=service: health(cluster.address(leader), service) == not_serving, f"{service!r} to end"
        )


def test_reflection_lists_the_services(shared_cluster: LocalCluster) -> None:
    with grpc.insecure_channel(shared_cluster.address(0)) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=SECONDS)))
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {
        "raftstorage.v1.Peers",
        "raftstorage.v1.Storage",
        "raftstorage.v1.Admin",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_the_metrics_page(shared_cluster: LocalCluster, wait_for: Callable[..., Any]) -> None:
    leader = shared_cluster.leader(timeout=SECONDS)

    def page(i: int) -> dict[str, float]:
        with urllib.request.urlopen(
            f"http://{shared_cluster.metrics_address(i)}/metrics", timeout=SECONDS
        ) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))
        }

    samples = page(leader)
    prefix = "raftstorage_node_"
    assert samples[prefix + 'role{role="leader"}'] == 1
    assert samples[prefix + 'role{role="follower"}'] == 0
    assert samples[prefix + "leader_id"] == leader + 1
    assert samples[prefix + "term"] == shared_cluster.status(leader).term
    assert samples[prefix + "applied_index"] >= 1
    assert samples[prefix + "commit_index"] >= 1
    assert samples[prefix + "wal_sync_seconds_count"] >= 1
    assert samples[prefix + "loop_lag_seconds_count"] >= 1
    for peer in {1, 2, 3} - {leader + 1}:
        assert samples[f'{prefix}peer_connected{{peer="{peer}"}}'] == 1
        assert samples[f'{prefix}peer_dropped_total{{peer="{peer}"}}'] == 0
    follower = (leader + 1) % 3
    assert page(follower)[prefix + 'role{role="follower"}'] == 1
    commit_something(shared_cluster.address(leader), calls=3)
    assert page(leader)[prefix + "proposals_total"] > samples[prefix + "proposals_total"]


def test_a_paused_node_comes_back_without_disturbing_the_leader(
    cluster: LocalCluster, wait_for: Callable[..., Any]
) -> None:
    leader = cluster.leader(timeout=SECONDS)
    term = cluster.status(leader).term
    paused = (leader + 1) % 3
    os.kill(cluster.pid(paused), signal.SIGSTOP)
    commit_something(cluster.address(leader), calls=30)
    wanted = cluster.status(leader).last_index
    some_timeouts = 3 * 20 * 0.05  # three times the longest election timeout
    elected = "an election, of which there shall be none"
    with pytest.raises(AssertionError, match="in vain"):
        wait_for(lambda: cluster.status(leader).term != term, elected, timeout=some_timeouts)
    os.kill(cluster.pid(paused), signal.SIGCONT)
    wait_for(lambda: cluster.status(paused).applied_index >= wanted, "the node to catch up")
    assert cluster.leader(timeout=SECONDS) == leader
    assert cluster.status(leader).term == term
