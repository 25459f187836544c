"""Clusters whose nodes need not import everything anew, which takes longer than many checks of this folder.

Each node is a process of its own, as from the command line. It is forked from one that has imported what a node
needs, and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import spawn
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from unittest import mock

from raftstorage.ops.child import die_with_parent
from raftstorage.ops.local import LocalCluster
from raftstorage.ops.process import Running

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["raftstorage.node.main"])
_prepared = spawn.get_preparation_data


def _anywhere(name: str) -> dict[str, Any]:
    """Without this process's current directory: a test may have changed it to one that goes meanwhile."""
    return {key: value for key, value in _prepared(name).items() if key != "dir"}


class ForkedCluster(LocalCluster):
    """Its nodes share their environment with the first that was started."""

    def launch(self, i: int) -> Running:
        if self.prefix(i) or self.environment(i):
            raise ValueError("a forked node has its starter's environment")
        return ForkedNode(self.command(i)[3:], self.log_path(i))


class ForkedNode:
    """What subprocess.Popen is for a started one. `arguments`: the node's; `log`: gets its standard error."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        reading, writing = _forks.Pipe(duplex=False)
        # It ends with this process: a cluster that was not closed is in nobody's way.
        self._process = _forks.Process(target=_run, args=(list(arguments), str(log), writing), daemon=True)
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as `python -m raftstorage.node` has it
        with mock.patch.object(spawn, "get_preparation_data", _anywhere):
            self._process.start()
        writing.close()
        self.stdout: IO[str] = os.fdopen(os.dup(reading.fileno()), encoding="utf-8")
        reading.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("raftstorage.node", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], log: str, output: Connection) -> None:
    # By this the fork server sees that its starter is gone; it ends then, and this with it.
    alive: int = multiprocessing.forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    os.close(alive)
    die_with_parent()
    os.setsid()
    os.dup2(output.fileno(), 1)
    output.close()
    errors = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(errors, 2)
    os.close(errors)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["raftstorage.node", *arguments]
    runpy.run_module("raftstorage.node", run_name="__main__", alter_sys=True)
