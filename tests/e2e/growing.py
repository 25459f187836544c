"""Clusters whose members change: grow and shrink them, ask who is a member, and run the commands for it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from raftstorage.client import ClientStorage
from raftstorage.node.versions import FEATURE_LEVEL
from raftstorage.ops import members
from raftstorage.ops.errors import CommandError
from raftstorage.ops.local import LocalCluster
from raftstorage.proto import admin_pb2 as pb
from ZODB.utils import maxtid

SECONDS = 60.0
#: Reasons for which the same change is worth another try: a new leader, a node that is just back.
PASSING = (
    "has not committed anything yet",
    "under way",
    "were heard lately",
    "was not heard lately",
    "being handed",
    "does not lead",
    "leader is",
    "UNAVAILABLE",
    "too far behind",
)


def eventually(condition: Callable[[], Any], what: str, seconds: float = SECONDS, interval: float = 0.05) -> Any:
    """The first true value; AssertionError after `seconds`. What a cluster cannot answer yet is asked again."""
    deadline = time.monotonic() + seconds
    value: Any = None
    while True:
        try:
            if value := condition():
                return value
        except CommandError as error:
            value = error
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}; last value: {value!r}")
        time.sleep(interval)


def membership(cluster: LocalCluster) -> pb.MembersReply:
    """As the leader knows it."""
    return members.members(cluster.addresses.split(","), SECONDS)


def roles(cluster: LocalCluster) -> dict[int, str]:
    """Node id -> role; empty while a change of voters is under way."""
    reply = membership(cluster)
    return {} if reply.joint else {member.node_id: member.role for member in reply.members}


def await_role(cluster: LocalCluster, i: int, role: str) -> None:
    eventually(lambda: roles(cluster).get(cluster.node_id(i)) == role, f"node {cluster.node_id(i)} to be a {role}")


def grown(cluster: LocalCluster, *, learner: bool = False) -> int:
    """Another member's index, once it is a voter (or learner)."""
    i = cluster.grow(learner=learner)
    await_role(cluster, i, "learner" if learner else "voter")
    return i


def removed(cluster: LocalCluster, i: int) -> None:
    """Takes node i out of the cluster, and stops its process if it runs."""
    node = cluster.node_id(i)

    def gone() -> bool:
        if node not in roles(cluster):
            return True
        try:
            members.change(cluster.addresses.split(","), SECONDS, remove=node)
        except CommandError as error:
            if not any(reason in str(error) for reason in PASSING):
                raise AssertionError(str(error)) from error
        return False

    eventually(gone, f"node {node} to be removed")
    if cluster.is_running(i):
        assert cluster.stop(i) == 0
    cluster.gone(i)


@contextlib.contextmanager
def nothing_changed(cluster: LocalCluster) -> Iterator[None]:
    """The membership is the same behind the block."""
    before = membership(cluster)
    yield
    after = membership(cluster)
    before.leader_id = after.leader_id = 0
    assert before == after


def settled(cluster: LocalCluster, level: int = FEATURE_LEVEL) -> pb.MembersReply:
    """The membership once all directories are known in it and the level is what all can: the newest by default."""

    def done() -> pb.MembersReply | None:
        reply = membership(cluster)
        known = all(member.instance for member in reply.members)
        return reply if known and reply.level == level and not reply.joint else None

    reply: pb.MembersReply = eventually(done, f"level {level} and all directories in the membership")
    return reply


def raftstorage(*words: str, seconds: float = SECONDS) -> tuple[int, str, str]:
    """Runs the command: exit status, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "raftstorage.ops.cli", *words], capture_output=True, text=True, timeout=seconds
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def member(cluster: LocalCluster, *words: str) -> tuple[int, str]:
    """`raftstorage member ...`: exit status and what it says is wrong, in one line."""
    status, _, err = raftstorage("member", *words, "--addresses", cluster.addresses)
    assert len(err.splitlines()) <= 1, err
    return status, err.strip()


class Serving:
    """A `raftstorage serve` process; ended with the context. `founds`: the node's own command, for a founder."""

    def __init__(self, directory: Path, *words: str, founds: bool = False) -> None:
        self.directory = directory
        self._log = directory.with_name(directory.name + ".err")
        command = ["raftstorage.node", "--ready", "text"] if founds else ["raftstorage.ops.cli", "serve"]
        with self._log.open("ab") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command, "--dir", str(directory), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.communicate()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def said(self, text: str) -> None:
        """Waits for its log to hold it."""
        eventually(lambda: text in self.log or self.popen.poll() is not None, f"{text!r} in the log")
        assert text in self.log, self.log

    def serves(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            if "ClientStorage" in line:
                return
        raise AssertionError(self.log)

    def ended(self, seconds: float = SECONDS) -> tuple[int, str]:
        """Exit status and its last line, once it has ended by itself."""
        status = self.popen.wait(seconds)
        assert "Traceback" not in self.log, self.log
        return status, (self.log.splitlines() or [""])[-1]

    def stop(self) -> int:
        self.popen.terminate()
        return self.popen.wait(SECONDS)

    @property
    def node_id(self) -> int:
        return int(json.loads((self.directory / "node.json").read_text())["node_id"])


class Readers:
    """Threads that read linearizably: what was acknowledged before a read is there, and nothing goes back."""

    def __init__(self, count: int, addresses: str, latest: Callable[[], list[tuple[str, bytes, bytes]]]) -> None:
        self.reads = 0
        self.errors: list[BaseException] = []
        self._addresses = addresses
        self._latest = latest
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        try:
            storage = ClientStorage(self._addresses, consistency="linearizable", wait_timeout=2 * SECONDS)
            try:
                newest = b""
                counts: dict[str, int] = {}
                while not self._stop.wait(0.01):
                    wanted = self._latest()
                    storage.sync()
                    seen = storage.lastTransaction()
                    assert seen >= newest, f"went back from {newest.hex()} to {seen.hex()}"
                    newest = seen
                    for note, oid, tid in wanted:
                        assert seen >= tid, f"{note} is acknowledged, and not seen"
                        assert storage.loadBefore(oid, maxtid) == (note.encode(), tid, None)
                        writer, _, count = note.rpartition(" ")
                        assert int(count) >= counts.get(writer, 0)
                        counts[writer] = int(count)
                    self.reads += 1
            finally:
                storage.close()
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(3 * SECONDS)

    def stop(self) -> None:
        self.__exit__()
        assert not any(thread.is_alive() for thread in self._threads), "a reader hangs"
        assert not self.errors, self.errors
        assert self.reads
