"""`raftstorage up`: a cluster in the foreground that says who leads, stops cleanly and comes back as it was."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
import transaction
import ZODB


def up(directory: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "raftstorage.ops.cli", "up", "--dir", str(directory), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )


def read_until(stream: IO[str], pattern: str) -> re.Match[str]:
    """The first line that matches; AssertionError with all lines when the output ends before."""
    lines = []
    for line in stream:
        lines.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError("".join(lines))


def test_up_tells_stops_and_comes_back(disk_directory: Path, wait_for: Callable[..., Any]) -> None:
    from raftstorage.client import ClientStorage
    from raftstorage.ops.ports import free_ports

    port = next(p for p in free_ports(50) if p < 32700)
    directory = disk_directory / "cluster"
    for count in range(2):
        process = up(directory, port)
        assert process.stdout is not None
        try:
            pids = [int(read_until(process.stdout, rf"node {n} is up .* process (\d+)")[1]) for n in (1, 2, 3)]
            addresses = read_until(process.stdout, r'ZODB\.DB\(ClientStorage\("(.*)"\)\)')[1]
            assert addresses == f"127.0.0.1:{port},127.0.0.1:{port + 1},127.0.0.1:{port + 2}"
            leader = int(read_until(process.stdout, r"node (\d) leads")[1])
            db = ZODB.DB(ClientStorage(addresses))
            try:
                with db.transaction() as connection:
                    assert connection.root().get("count", 0) == count
                    connection.root()["count"] = count + 1
            finally:
                db.close()
                transaction.abort()

            status = subprocess.run(
                [sys.executable, "-m", "raftstorage.ops.cli", "status", "--json", "--addresses", addresses],
                capture_output=True,
                text=True,
                check=True,
            )
            assert json.loads(status.stdout)["leader"] == f"127.0.0.1:{port + leader - 1}"

            psutil.Process(pids[leader - 1]).kill()
            read_until(process.stdout, f"node {leader} has ended")
            assert int(read_until(process.stdout, r"node (\d) leads")[1]) != leader

            process.send_signal((signal.SIGTERM, signal.SIGINT)[count])
            read_until(process.stdout, "stopping")
            assert process.wait(60) == 0
            assert not any(psutil.pid_exists(pid) for pid in pids)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_a_port_in_use_is_told_in_a_few_words(disk_directory: Path) -> None:
    import socket

    from raftstorage.ops.ports import free_ports

    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "raftstorage.ops.cli",
                "up",
                "--dir",
                str(disk_directory / "c"),
                "--port",
                str(port),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert "exit code 4" in done.stderr
    assert "Traceback" not in done.stderr
