"""A cluster of real node processes on this machine, for trying things out, for tests and for drills."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import overload

from raftstorage.ops.child import PARENT_VARIABLE
from raftstorage.ops.local_member import LocalMember
from raftstorage.ops.ports import free_ports
from raftstorage.ops.process import NodeProcess, Running
from raftstorage.ops.status import StatusClient, has_quorum, leader_of
from raftstorage.proto import admin_pb2 as pb

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.05


class ClusterError(Exception):
    """A cluster or one of its nodes did not do what it was told to."""


class LocalCluster:
    """`nodes` node processes on free loopback ports: `with LocalCluster() as cluster: ...`.

    A node is named by its index, 0 to nodes - 1; its node id is the index plus 1. `grow` adds nodes behind them,
    which get their ids from the cluster. With `directory`, a cluster that
    was there before is started again on its old ports; without it, a temporary one is used and removed at the end.
    `base_port` gives a new cluster consecutive ports instead of free ones. `options` and further keywords go to
    every node: `lease_ms=500` becomes `--lease-ms 500`. The processes end with this one, however it ends.

    Leaving the context stops all nodes; entering it starts all and waits for a leader. ClusterError says why a
    node did not start, with the last lines of its log.
    """

    def __init__(
        self,
        nodes: int = 3,
        directory: str | os.PathLike[str] | None = None,
        *,
        base_port: int | None = None,
        start_timeout: float = 30.0,
        options: Mapping[str, str | int | float] | None = None,
        **more_options: str | int | float,
    ) -> None:
        if nodes < 1:
            raise ValueError("a cluster has at least one node")
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="raftstorage-") if directory is None else directory)
        self._options = {**(options or {}), **more_options}
        self._start_timeout = start_timeout
        self._cluster_id, self._members = self._load_or_create(nodes, base_port)
        self._processes: dict[int, NodeProcess] = {}
        self._paused: set[int] = set()
        # The kernel ties a child to the thread that started it: this one lives as long as the cluster.
        self._launcher = ThreadPoolExecutor(1, thread_name_prefix="raftstorage-launcher")
        self._client = StatusClient([self.address(i) for i in range(len(self))])

    # ---- names -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._members)

    @property
    def addresses(self) -> str:
        """All members' addresses, as ClientStorage takes them: `host:port,host:port,...`."""
        return ",".join(self.address(i) for i in self.members)

    @property
    def members(self) -> list[int]:
        """Indexes of all nodes but those that were removed."""
        return [i for i, member in enumerate(self._members) if not member.gone]

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    def host(self, i: int) -> str:
        """Where node i listens. This, `prefix` and `environment` are for a subclass whose nodes run elsewhere."""
        return _HOST

    def prefix(self, i: int) -> list[str]:
        """What node i's command line begins with; it must keep the pid."""
        return []

    def environment(self, i: int) -> dict[str, str]:
        """Environment variables for node i, besides this process's own."""
        return {}

    def address(self, i: int) -> str:
        return f"{self.host(i)}:{self._members[i].port}"

    def metrics_address(self, i: int) -> str:
        """host:port of the node's HTTP metrics."""
        return f"{self.host(i)}:{self._members[i].metrics_port}"

    def node_id(self, i: int) -> int:
        return self._members[i].node_id

    def node_directory(self, i: int) -> Path:
        return self.directory / f"node-{i + 1}"

    def log_path(self, i: int) -> Path:
        """The file with the node's standard error; every start appends."""
        return self.directory / f"node-{i + 1}.log"

    def command(self, i: int) -> list[str]:
        """The arguments that node i is started with, without the interpreter."""
        member = self._members[i]
        arguments = ["--dir", str(self.node_directory(i)), "--listen", self.address(i)]
        if member.founder:
            arguments += ["--id", str(member.node_id), "--cluster-id", self._cluster_id]
            for other, each in enumerate(self._members):
                if each.founder:
                    arguments += ["--member", f"{each.node_id}={self.address(other)}"]
        else:
            arguments += [part for other in self.members if other != i for part in ("--join", self.address(other))]
            arguments += ["--learner"] if member.learner else []
        arguments += ["--metrics", self.metrics_address(i)]
        for name, value in self._options.items():
            arguments += ["--" + name.replace("_", "-"), str(value)]
        return ["-m", "raftstorage.ops.child", "raftstorage.node", *arguments]

    # ---- all nodes -------------------------------------------------------------------------------------

    def __enter__(self) -> LocalCluster:
        try:
            self.start_all()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_all(self, on_ready: Callable[[int], None] | None = None) -> None:
        """Starts every node that does not run; calls `on_ready(i)` as each one serves."""
        started = [i for i in self.members if not self.is_running(i)]
        for i in started:
            self._spawn(i)
        for i in started:
            self._await_ready(i)
            if on_ready is not None:
                on_ready(i)

    def stop_all(self, timeout: float = 15.0) -> None:
        """SIGTERM to every node, then waits; whoever is still there after `timeout` seconds is killed."""
        deadline = time.monotonic() + timeout
        for i in list(self._processes):
            self._signal(i, signal.SIGTERM)
        for i in list(self._processes):
            self._reap(i, max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Stops all nodes, and removes a temporary directory."""
        self.stop_all()
        self._client.close()
        self._launcher.shutdown()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def wait_ready(self, timeout: float = 30.0) -> int:
        """Waits until a leader has a majority behind it; its index. ClusterError after `timeout` seconds."""
        return self.leader(timeout=timeout)

    # ---- one node --------------------------------------------------------------------------------------

    def start(self, i: int) -> None:
        """Starts node i and waits until it serves."""
        if self.is_running(i):
            raise ClusterError(f"node {self.node_id(i)} is running already")
        self._spawn(i)
        self._await_ready(i)

    def grow(self, *, learner: bool = False) -> int:
        """Starts another node, which joins; its index, once it serves. Unless `learner`, it asks for a vote."""
        port, metrics_port = free_ports(2)
        self._members.append(LocalMember(0, port, metrics_port, founder=False, learner=learner))
        i = len(self._members) - 1
        self._client.add(self.address(i))
        self._spawn(i)
        self._await_ready(i)
        return i

    def lose_disk(self, i: int) -> None:
        """Deletes node i's directory, which may run. When it is started again it joins as a new member."""
        while self.node_directory(i).exists():  # one that runs may make a file while its folder is emptied
            shutil.rmtree(self.node_directory(i), ignore_errors=True)
        self._members[i] = replace(self._members[i], node_id=0, founder=False)
        self._save()

    def gone(self, i: int) -> None:
        """Node i was removed from the cluster; it is not started again."""
        self._members[i] = replace(self._members[i], gone=True)
        self._save()

    def stop(self, i: int, timeout: float = 15.0) -> int:
        """SIGTERM, and waits for the end; the exit code (negative: a signal's number)."""
        self._signal(i, signal.SIGTERM)
        return self._reap(i, timeout)

    def kill(self, i: int) -> None:
        """SIGKILL, and waits for the end."""
        self._process(i).popen.kill()
        self._reap(i, 10.0)

    def wait_exit(self, i: int, timeout: float = 15.0) -> int:
        """Waits for node i to end by itself; its exit code. ClusterError when it does not."""
        try:
            code = self._process(i).popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"node {self.node_id(i)} still runs after {timeout} s") from None
        self._forget(i)
        return code

    def pause(self, i: int) -> None:
        """SIGSTOP: the node keeps its connections and does nothing."""
        self._process(i).popen.send_signal(signal.SIGSTOP)
        self._paused.add(i)

    def resume(self, i: int) -> None:
        """SIGCONT."""
        self._process(i).popen.send_signal(signal.SIGCONT)
        self._paused.discard(i)

    def pid(self, i: int) -> int:
        return self._process(i).popen.pid

    def is_running(self, i: int) -> bool:
        """Whether node i's process is there (paused or not)."""
        process = self._processes.get(i)
        return process is not None and process.popen.poll() is None

    def status(self, i: int, timeout: float = 2.0) -> pb.StatusReply:
        """Node i's Admin.Status. ClusterError when it does not answer."""
        status = self._client.ask(timeout, [self.address(i)], wait=self.is_running(i))[0]
        if status.reply is None:
            raise ClusterError(f"node {self.node_id(i)} does not answer: {status.error}")
        return status.reply

    @overload
    def leader(self) -> int | None: ...
    @overload
    def leader(self, timeout: float) -> int: ...
    def leader(self, timeout: float | None = None) -> int | None:
        """Index of the leader that a majority follows; without `timeout` None when there is none just now.

        With `timeout`, waits that many seconds for one, then raises ClusterError.
        """
        deadline = time.monotonic() + (timeout or 0.0)
        while True:
            running = [self.address(i) for i in range(len(self)) if self.is_running(i) and i not in self._paused]
            statuses = self._client.ask(1.0, running)
            found = leader_of(statuses)
            if found is not None and has_quorum(statuses):
                return next(i for i in range(len(self)) if self.address(i) == found.address)
            if timeout is None:
                return None
            self._check_for_failures()
            if time.monotonic() > deadline:
                states = "; ".join(f"{s.address} {s.reply.role if s.reply else s.error}" for s in statuses)
                raise ClusterError(f"no leader after {timeout} s ({states or 'no node runs'})")
            time.sleep(_POLL_SECONDS)  # nodes have no event to tell an operator of an election

    # ---- inside ----------------------------------------------------------------------------------------

    def _load_or_create(self, nodes: int, base_port: int | None) -> tuple[str, list[LocalMember]]:
        path = self.directory / "cluster.json"
        if path.exists():
            try:
                state = json.loads(path.read_text())
                members = [LocalMember(**member) for member in state["members"]]
                cluster_id = str(state["cluster_id"])
            except (ValueError, KeyError, TypeError) as error:
                raise ClusterError(f"{path} is not a local cluster's description: {error}") from error
            founders = sum(member.founder for member in members)
            if nodes not in (founders, len(members)):
                raise ClusterError(f"{self.directory} holds a cluster of {founders} nodes, not {nodes}")
            if base_port is not None and members[0].port != base_port:
                raise ClusterError(f"{self.directory} holds a cluster that starts at port {members[0].port}")
            return cluster_id, members
        self.directory.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * nodes)
        if base_port is not None:
            ports[:nodes] = range(base_port, base_port + nodes)
        members = [LocalMember(i + 1, ports[i], ports[nodes + i]) for i in range(nodes)]
        self._save_as(secrets.token_hex(16), members)
        return self._load_or_create(nodes, base_port)

    def _save(self) -> None:
        self._save_as(self._cluster_id, self._members)

    def _save_as(self, cluster_id: str, members: list[LocalMember]) -> None:
        state = {"format": 1, "cluster_id": cluster_id, "members": [asdict(member) for member in members]}
        path = self.directory / "cluster.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=1) + "\n")
        temporary.replace(path)

    def launch(self, i: int) -> Running:
        """Starts node i's process, in a thread of the cluster's own. For a subclass that has another way."""
        environment = os.environ | {PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        with self.log_path(i).open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the one that runs the cluster.
            return subprocess.Popen(
                [*self.prefix(i), sys.executable, *self.command(i)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment | self.environment(i),
                text=True,
                start_new_session=True,
            )

    def _spawn(self, i: int) -> None:
        self._processes[i] = NodeProcess(self._launcher.submit(self.launch, i).result())

    def _await_ready(self, i: int) -> None:
        process = self._process(i)
        if process.wait_ready(self._start_timeout):
            if self.node_id(i) != process.node_id:
                self._members[i] = replace(self._members[i], node_id=process.node_id)
                self._save()
            return
        if process.popen.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its output is closed: it is about to end
                process.popen.wait(1.0)
        code = process.popen.poll()
        if code is None:
            process.popen.kill()
            process.popen.wait()
        self._forget(i)
        why = "did not come up in time" if code is None else f"ended with exit code {code}"
        raise ClusterError(f"node {self.node_id(i)} {why}:\n{self._log_tail(i)}")

    def _check_for_failures(self) -> None:
        """ClusterError when so many nodes ended by themselves that the rest is no majority."""
        ended = [i for i, process in self._processes.items() if process.popen.poll() is not None]
        if ended and 2 * (len(self.members) - len(ended)) <= len(self.members):
            i = ended[0]
            code = self._process(i).popen.returncode
            raise ClusterError(
                f"no majority: {len(ended)} nodes ended, node {self.node_id(i)} with exit code {code}:\n"
                + self._log_tail(i)
            )

    def _log_tail(self, i: int, lines: int = 12) -> str:
        with self.log_path(i).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    def _process(self, i: int) -> NodeProcess:
        if i not in self._processes:
            raise ClusterError(f"node {self.node_id(i)} is not running")
        return self._processes[i]

    def _signal(self, i: int, number: signal.Signals) -> None:
        if i in self._paused:  # a stopped process takes no signal but SIGKILL
            self.resume(i)
        self._process(i).popen.send_signal(number)

    def _reap(self, i: int, timeout: float) -> int:
        process = self._process(i)
        try:
            code = process.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            code = process.popen.wait()
        self._forget(i)
        return code

    def _forget(self, i: int) -> None:
        del self._processes[i]
        self._paused.discard(i)
