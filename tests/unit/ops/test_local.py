"""LocalCluster's care for its processes, with a stand-in for a node that only answers Admin.Status.

The real nodes run in tests/e2e; what is tested here is what no node is needed for: ports, restarts, failed starts,
and that nobody is left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from raftstorage.ops.local import ClusterError, LocalCluster
from raftstorage.ops.ports import free_ports

STAND_IN = """
import json, signal, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from raftstorage.ops.child import die_with_parent
from raftstorage.proto import admin_pb2 as pb, admin_pb2_grpc

die_with_parent()
words = sys.argv[1:]
def option(name):
    return words[words.index(name) + 1]
if "--fail-with" in words:
    print("first line\\nthe reason", file=sys.stderr)
    sys.exit(int(option("--fail-with")))
if "--never-ready" in words:
    signal.pause()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
me = int(option("--id"))
members = dict(w.split("=") for i, w in enumerate(words) if words[i - 1] == "--member")

class Admin(admin_pb2_grpc.AdminServicer):
    def Status(self, request, context):
        peers = [pb.PeerStatus(node_id=int(n), address=a) for n, a in members.items() if int(n) != me]
        return pb.StatusReply(node_id=me, role="leader" if me == 1 else "follower", term=1, leader_id=1,
                              cluster_id=option("--cluster-id"), peers=peers)

server = grpc.server(ThreadPoolExecutor(2))
admin_pb2_grpc.add_AdminServicer_to_server(Admin(), server)
assert server.add_insecure_port(option("--listen"))
server.start()
print("noise that is no JSON")
print(json.dumps({"event": "ready", "node_id": me}), flush=True)
signal.sigwait({signal.SIGTERM})
server.stop(0).wait()
"""


class Cluster(LocalCluster):
    """A LocalCluster of stand-ins."""

    script: Path

    def command(self, i: int) -> list[str]:
        return [str(self.script), *super().command(i)[3:]]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Cluster]:
    Cluster.script = tmp_path / "stand_in.py"
    Cluster.script.write_text(STAND_IN)
    return Cluster


def test_starts_answers_and_stops(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(3, tmp_path / "c", lease_ms=500) as cluster:
        assert cluster.leader() == 0
        assert cluster.addresses == ",".join(cluster.address(i) for i in range(3))
        assert [cluster.status(i).node_id for i in range(3)] == [1, 2, 3]
        assert psutil.Process(cluster.pid(1)).cmdline()[-2:] == ["--lease-ms", "500"]
        pids = [cluster.pid(i) for i in range(3)]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_killed_node_comes_back_at_its_address(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(3, tmp_path / "c") as cluster:
        address, pid = cluster.address(2), cluster.pid(2)
        cluster.kill(2)
        assert not cluster.is_running(2)
        assert not psutil.pid_exists(pid)
        with pytest.raises(ClusterError, match="not running"):
            cluster.kill(2)
        with pytest.raises(ClusterError, match="does not answer"):
            cluster.status(2)
        cluster.start(2)
        assert cluster.address(2) == address
        assert cluster.status(2).node_id == 3
        with pytest.raises(ClusterError, match="running already"):
            cluster.start(2)


def test_leadership_needs_a_majority(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(3, tmp_path / "c") as cluster:
        cluster.kill(1)
        assert cluster.leader() == 0
        cluster.kill(2)
        assert cluster.leader() is None
        with pytest.raises(ClusterError, match=r"no leader after 0\.2 s"):
            cluster.leader(timeout=0.2)


def test_a_paused_node_does_nothing_and_can_be_stopped(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(3, tmp_path / "c") as cluster:
        cluster.pause(0)
        with pytest.raises(ClusterError, match="does not answer"):
            cluster.status(0, timeout=0.3)
        assert cluster.leader() is None
        cluster.resume(0)
        assert cluster.status(0).node_id == 1
        cluster.pause(0)
        assert cluster.stop(0) == 0


def test_a_directory_keeps_its_cluster(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with make(3, tmp_path / "c") as cluster:
        addresses, cluster_id = cluster.addresses, cluster.cluster_id
    with make(3, tmp_path / "c") as cluster:
        assert (cluster.addresses, cluster.cluster_id) == (addresses, cluster_id)
    with pytest.raises(ClusterError, match="3 nodes, not 5"):
        make(5, tmp_path / "c")
    (tmp_path / "c" / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match="not a local cluster's description"):
        make(3, tmp_path / "c")


def test_a_temporary_cluster_leaves_nothing(make: Callable[..., Cluster]) -> None:
    with make(1) as cluster:
        directory = cluster.directory
        assert directory.is_dir()
    assert not directory.exists()


def test_a_failed_start_says_why_and_stops_the_others(make: Callable[..., Cluster], tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"ended with exit code 3:\nfirst line\nthe reason"):
        make(3, tmp_path / "c", fail_with=3).__enter__()
    begun = time.monotonic()
    with pytest.raises(ClusterError, match="did not come up in time"):
        make(3, tmp_path / "d", never_ready=1, start_timeout=0.5).__enter__()
    assert time.monotonic() - begun < 20
    directories = {str(tmp_path / "c"), str(tmp_path / "d")}
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        assert not any(directory in line for directory in directories), line


def test_the_nodes_die_with_whoever_started_them(make: Callable[..., Cluster], tmp_path: Path) -> None:
    starter = tmp_path / "starter.py"
    starter.write_text(
        textwrap.dedent(f"""
        import json, signal, threading
        from pathlib import Path
        from raftstorage.ops.local import LocalCluster
        class Cluster(LocalCluster):
            def command(self, i):
                return [{str(make.script)!r}, *super().command(i)[3:]]
        cluster = Cluster(3, {str(tmp_path / "c")!r})
        # Started in a thread that ends at once: the nodes must outlive it, but not the process.
        thread = threading.Thread(target=cluster.__enter__)
        thread.start()
        thread.join()
        print(json.dumps([cluster.pid(i) for i in range(3)]), flush=True)
        signal.pause()
        """)
    )
    process = subprocess.Popen([sys.executable, str(starter)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        nodes = [psutil.Process(pid) for pid in json.loads(process.stdout.readline())]
        assert all(node.is_running() for node in nodes)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    _, alive = psutil.wait_procs(nodes, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(1024 < port < 32768 for port in ports)


def test_ops_does_not_import_the_node_or_zodb() -> None:
    code = "import sys, raftstorage.ops.cli, raftstorage.ops.local; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", "import json;" + code],
        capture_output=True,
        text=True,
        check=True,
    )
    modules: list[Any] = json.loads(done.stdout)
    assert not [m for m in modules if m.startswith(("raftstorage.node", "ZODB", "rocksdict"))]
