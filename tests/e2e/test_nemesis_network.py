"""The network namespaces that the nemesis makes: what they cut, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.nemesis import disk, network
from tests.e2e.nemesis.faults import PATIENCE
from tests.e2e.nemesis.network import Namespaces

#: One small program for each host: says whom it heard, among those that it is told to wait for and shortly after.
_TALKER = """
import json, socket, sys, time
mine, hosts, wanted, meeting = sys.argv[1], json.loads(sys.argv[2]), set(json.loads(sys.argv[3])), sys.argv[4]
heard = set()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as box:
    box.bind((mine, 7447))
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for host in hosts:
            try:
                box.sendto(f"{meeting} {mine}".encode(), (host, 7447))
            except OSError:
                pass
        box.settimeout(0.05)
        try:
            while True:
                where, who = box.recv(100).decode().split()
                # Not what was sent under an earlier cut, and waited in a queue for its neighbour's address.
                if where == meeting:
                    heard.add(who)
        except OSError:
            pass
        if heard >= wanted and end > time.monotonic() + 1:
            end = time.monotonic() + 0.5
print(json.dumps(sorted(heard)))
"""


def _need(reason: str) -> None:
    if reason:
        pytest.skip(reason)


def _ours() -> str:
    """What this process has made of namespaces, links and mounts."""
    words = f"{network.PREFIX}-{os.getpid()}-"
    found = network.run("ip", "netns", "list") + Path("/proc/mounts").read_text()
    return "\n".join(line for line in found.splitlines() if words in line)


def heard(made: Namespaces, expected: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """(sender, receiver) of what arrives; the test's own host has the number after the nodes'."""
    hosts = [*made.hosts, made.test_host]
    meeting = secrets.token_hex(4)
    talkers = []
    for i, host in enumerate(hosts):
        wanted = json.dumps([hosts[a] for a, b in expected if b == i])
        prefix = made.prefix(i) if i < len(made) else []
        command = [
            *prefix,
            sys.executable,
            "-c",
            _TALKER,
            host,
            json.dumps([h for h in hosts if h != host]),
            wanted,
            meeting,
        ]
        talkers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        for talker in talkers:
            assert talker.stdout is not None
            assert talker.stdout.readline() == "ready\n"
        for talker in talkers:
            assert talker.stdin is not None
            talker.stdin.write("\n")
            talker.stdin.flush()
        results = [talker.communicate(timeout=PATIENCE)[0] for talker in talkers]
    finally:
        for talker in talkers:
            talker.kill()
            talker.communicate()
    return {(hosts.index(host), b) for b, result in enumerate(results) for host in json.loads(result)}


ALL = {(a, b) for a in range(4) for b in range(4) if a != b}
CUTS: dict[str, tuple[Callable[[Namespaces], None], set[tuple[int, int]]]] = {
    "isolate": (lambda net: net.isolate([0]), {(a, b) for a, b in ALL if 0 in (a, b)}),
    "unplug": (lambda net: net.unplug(0), {(a, b) for a, b in ALL if 0 in (a, b)}),
    "part": (lambda net: net.part([0]), {(0, 1), (0, 2), (1, 0), (2, 0)}),
    "part, refused": (lambda net: net.part([0], "refuse"), {(0, 1), (0, 2), (1, 0), (2, 0)}),
    "one way": (lambda net: net.one_way(0, [1]), {(0, 1)}),
    "bridge": (lambda net: net.bridge(1), {(0, 2), (2, 0)}),
}


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Three, or a skip."""
    _need(network.why_not())
    with Namespaces(3) as made:
        yield made


def test_cuts_cut_what_they_say_and_nothing_else(namespaces: Namespaces) -> None:
    for name, (cut, lost) in CUTS.items():
        cut(namespaces)
        assert heard(namespaces, ALL - lost) == ALL - lost, name
        namespaces.heal()
    assert heard(namespaces, ALL) == ALL


def test_nothing_is_left_behind(disk_directory: Path) -> None:
    _need(network.why_not())
    with pytest.raises(ZeroDivisionError), Namespaces(2) as made:
        small = disk.SmallDisk(disk_directory / "small", 1 << 20)
        small.mount()
        try:
            small.fill()
            assert made.name(0) in _ours()
            with pytest.raises(OSError, match="No space left"):
                (small.path / "more").write_bytes(b"x" * 4096)
            small.make_room()
            (small.path / "more").write_bytes(b"x" * 4096)
        finally:
            small.unmount()
        raise ZeroDivisionError
    assert _ours() == ""


def test_what_a_killed_run_left_is_swept(disk_directory: Path) -> None:
    _need(network.why_not())
    program = (
        "import sys, signal, os; from pathlib import Path\n"
        "from tests.e2e.nemesis import disk, network\n"
        "network.Namespaces(1).__enter__(); disk.SmallDisk(Path(sys.argv[1]), 1 << 20).mount()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(disk_directory / "small")]) as killed:
        assert killed.wait(PATIENCE) == -9
    mark = f"{network.PREFIX}-{killed.pid}-"
    assert mark in network.run("ip", "netns", "list")
    assert mark in Path("/proc/mounts").read_text()
    network.sweep()
    assert mark not in network.run("ip", "netns", "list")
    assert mark not in Path("/proc/mounts").read_text()


def test_why_not_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert network.why_not.__wrapped__() == "network namespaces need root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert network.why_not.__wrapped__() == "there is no `ip` command here"
    assert disk.why_no_shim.__wrapped__().startswith("there is no C compiler here")
