"""The node as a process: what it says when it cannot start, how it stops, and what it shows to operators."""

from __future__ import annotations

import json
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from raftstorage.ops.local import LocalCluster, free_ports
from raftstorage.proto import PROTOCOL_VERSION, admin_pb2, admin_pb2_grpc, storage_pb2, storage_pb2_grpc

SECONDS = 30.0


class OneNode:
    """A cluster of one node, which needs nobody's vote. `run` waits for its end, `start` for its ready line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "node"
        self.address, self.metrics = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.processes: list[subprocess.Popen[str]] = []

    def popen(self, *more: str, **changes: str) -> subprocess.Popen[str]:
        options = {
            "id": "1",
            "dir": str(self.directory),
            "listen": self.address,
            "member": f"1={self.address}",
            "metrics": self.metrics,
        } | changes
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        process = subprocess.Popen(
            [sys.executable, "-m", "raftstorage.node", *arguments, *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, *more: str, **changes: str) -> tuple[int, str]:
        """Exit status and last line of standard error; nothing may have come out as if it served."""
        process = self.popen(*more, **changes)
        out, err = process.communicate(timeout=SECONDS)
        assert out == ""
        assert "Traceback" not in err
        return process.returncode, err.splitlines()[-1]

    def start(self, *more: str, **changes: str) -> subprocess.Popen[str]:
        process = self.popen(*more, **changes)
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready == {"event": "ready", "node_id": 1, "address": self.address, "metrics": self.metrics}
        return process

    def stop(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        process.terminate()
        _out, err = process.communicate(timeout=SECONDS)
        return process.returncode, err

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def node(disk_directory: Path) -> Iterator[OneNode]:
    one = OneNode(disk_directory)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("more", "changes", "word"),
    [
        (["--frobnicate"], {}, "--frobnicate"),
        (["extra"], {}, "extra"),
        ([], {"id": "one"}, "--id"),
        ([], {"id": "2"}, "not among the members"),
        ([], {"member": "1:127.0.0.1:1"}, "ID=HOST:PORT"),
        ([], {"tick-ms": "0"}, "--tick-ms"),
        ([], {"cluster-id": "xyz"}, "--cluster-id"),
        ([], {"log-format": "xml"}, "--log-format"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    node: OneNode, more: list[str], changes: dict[str, str], word: str
) -> None:
    process = node.popen(*more, **changes)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert word in err
    assert not node.directory.exists(), "a node with bad options must leave no trace"


def test_options_that_are_missing_are_named(node: OneNode) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raftstorage.node", "--id", "1"], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--dir" in done.stderr


@pytest.mark.parametrize("taken", ["listen", "metrics"])
def test_a_port_in_use_is_status_4(node: OneNode, taken: str) -> None:
    address = node.address if taken == "listen" else node.metrics
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        status, line = node.run()
    assert status == 4
    assert address in line
    assert "in use" in line
    # Nothing was spoilt, and the directory was given back.
    assert node.stop(node.start())[0] == 0


def test_another_nodes_directory_is_status_5(node: OneNode) -> None:
    node.stop(node.start())
    status, line = node.run(id="2", member=f"2={node.address}", **{"cluster-id": secrets.token_hex(16)})
    assert status == 5
    assert "belongs to" in line
    identity = json.loads((node.directory / "node.json").read_text())
    status, line = node.run(id="2", member=f"2={node.address}", **{"cluster-id": identity["cluster_id"]})
    assert (status, "belongs to node 1" in line) == (5, True)
    assert node.stop(node.start())[0] == 0


def test_a_locked_directory_is_status_5(node: OneNode) -> None:
    node.start()
    listen, metrics = (f"127.0.0.1:{port}" for port in free_ports(2))
    status, line = node.run(listen=listen, metrics=metrics)
    assert status == 5
    assert "in use by another process" in line


def commit_something(address: str, calls: int = 20) -> None:
    """Has the node write to its log: each block of new oids is an entry. Raises what the node's end raises."""
    requests = [
        storage_pb2.Request(
            id=1, hello=storage_pb2.Hello(protocol_version=PROTOCOL_VERSION, client_id=secrets.token_hex(16))
        )
    ]
    for number in range(calls):
        oids = storage_pb2.AllocateOids(count=10_000)
        requests.append(storage_pb2.Request(id=2 + number, allocate_oids=oids))
    answered = threading.Event()

    def sending() -> Iterator[storage_pb2.RequestBatch]:
        yield from (storage_pb2.RequestBatch(requests=[request]) for request in requests)
        answered.wait(SECONDS)  # a client that says no more ends its session

    got = 0
    with grpc.insecure_channel(address) as channel:
        try:
            for batch in storage_pb2_grpc.StorageStub(channel).Session(sending(), timeout=SECONDS):
                failed = [event.failure for event in batch.events if event.HasField("failure")]
                assert not failed, failed
                got += sum(1 for event in batch.events if event.HasField("oids"))
                if got == calls:
                    return
        finally:
            answered.set()
    raise AssertionError(f"{got} of {calls} answers")


def wait_until_leading(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="raftstorage.leader")
        for answer in stub.Watch(request, timeout=SECONDS):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise AssertionError("it does not lead")


def test_damage_in_the_middle_of_the_log_is_status_3(node: OneNode) -> None:
    process = node.start()
    wait_until_leading(node.address)
    commit_something(node.address)
    process.kill()  # no clean stop: the log is all there is
    process.communicate()
    segment = next((node.directory / "log").glob("*.segment"))
    content = bytearray(segment.read_bytes())
    used = len(bytes(content).rstrip(b"\0"))
    content[used // 2] ^= 0x40
    segment.write_bytes(content)
    status, line = node.run()
    assert status == 3
    assert str(segment) in line
    assert re.search(r"\b\d+\b", line.replace(str(segment), "")), "no offset in the message"


def test_a_log_that_lost_its_tail_is_status_3(node: OneNode) -> None:
    process = node.start()
    wait_until_leading(node.address)
    commit_something(node.address)
    node.stop(process)
    for segment in (node.directory / "log").iterdir():
        segment.unlink()
    status, line = node.run()
    assert status == 3
    assert "lost its tail" in line


def test_a_damaged_database_is_status_3(node: OneNode) -> None:
    process = node.start()
    wait_until_leading(node.address)
    node.stop(process)
    (node.directory / "db" / "CURRENT").write_bytes(b"MANIFEST-999999\n")
    status, line = node.run()
    assert status == 3
    assert str(node.directory / "db") in line


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit on a running process")
def test_a_write_that_fails_ends_the_process_with_status_70(node: OneNode) -> None:
    process = node.start()
    wait_until_leading(node.address)
    commit_something(node.address, calls=1)
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (1, 1))
    with pytest.raises((grpc.RpcError, AssertionError)):
        commit_something(node.address, calls=5)
    _out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 70
    assert "fatal: [Errno 27] File too large" in err
    process = node.start()
    wait_until_leading(node.address)
    commit_something(node.address, calls=1)
    assert node.stop(process)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_stop_is_status_0_and_keeps_everything(node: OneNode, number: signal.Signals) -> None:
    process = node.start()
    wait_until_leading(node.address)
    commit_something(node.address)
    before = admin_status(node.address)
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    node.start()
    wait_until_leading(node.address)
    after = admin_status(node.address)
    assert after.applied_index >= before.applied_index > 1
    assert after.term == before.term + 1


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_logs_have_their_standard_fields(node: OneNode, log_format: str) -> None:
    process = node.start(**{"log-format": log_format})
    wait_until_leading(node.address)
    _status, err = node.stop(process)
    lines = err.splitlines()
    assert len(lines) >= 4
    for line in lines:
        if log_format == "json":
            fields = json.loads(line)
            assert {"time", "level", "logger", "message", "node_id", "term", "role"} <= set(fields)
            assert fields["node_id"] == 1
        else:
            assert re.match(r"\S+Z INFO     node 1 \S+ term \d+ raftstorage\.\S+: ", line)
    if log_format == "json":
        stopping = next(json.loads(line) for line in lines if '"stops"' in line)
        assert (stopping["role"], stopping["term"]) == ("leader", 1)


def admin_status(address: str) -> admin_pb2.StatusReply:
    with grpc.insecure_channel(address) as channel:
        return admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=SECONDS)


# ---- three nodes -------------------------------------------------------------------------------------------


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
