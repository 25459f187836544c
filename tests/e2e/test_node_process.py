"""The node as a process: what it says when it cannot start, how it stops, and what it shows to operators."""

from __future__ import annotations

import json
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from raftstorage.ops.ports import free_ports

from tests.e2e.nodes import SECONDS, OneNode, admin_status, commit_something, wait_until_leading


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


@pytest.mark.parametrize("enters", [["--standby"], ["--join", "127.0.0.1:1"]])
def test_a_port_in_use_is_status_4_for_a_node_that_enters(node: OneNode, enters: list[str]) -> None:
    with socket.create_server(("127.0.0.1", int(node.address.rpartition(":")[2]))):
        done = subprocess.run(
            [sys.executable, "-m", "raftstorage.node", "--dir", node.directory, "--listen", node.address, *enters],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert done.returncode == 4
    assert f"cannot listen on {node.address}" in done.stderr
    assert "in use" in done.stderr


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
