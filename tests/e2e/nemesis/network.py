"""Network namespaces that a test makes itself: one for each node, around a bridge, with a leg for the clients.

Needs root, `ip` and a kernel with network namespaces; `why_not` says what is missing. Whatever is made carries the
pid of its maker in its name, so that the next run sweeps away what a killed one left behind.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Literal

PREFIX = "rsnem"
DEVICE = "eth0"
TEST_HOST = 254  # last byte of the address that clients have
_OWNED = re.compile(rf"{PREFIX}-(\d+)-")
_SECONDS = 30.0

#: "drop": packets vanish at the receiver. "refuse": the sender's own system says that there is no route.
Way = Literal["drop", "refuse"]


class NetworkError(Exception):
    """The system did not do what a namespace needs; the message has its words."""


def run(*command: str, text: str | None = None) -> str:
    """Standard output of a command that must succeed; `text` is its standard input. NetworkError."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise NetworkError(f"{' '.join(command)}: {said or f'exit status {done.returncode}'}")
    return done.stdout


def batch(namespace: str, lines: Iterable[str]) -> None:
    """Several `ip` commands in one namespace. NetworkError at the first that fails."""
    run("ip", "-n", namespace, "-batch", "-", text="".join(f"{line}\n" for line in lines))


def sweep() -> None:
    """Removes namespaces and mounts of makers that are gone. NetworkError."""
    for line in Path("/proc/mounts").read_text().splitlines():
        source, where, *_ = line.split(" ")
        owner = _OWNED.match(source)
        if owner and not _alive(int(owner[1])):
            run("umount", "-l", where)
    for line in run("ip", "netns", "list").splitlines():
        name = line.split(" ")[0]
        owner = _OWNED.match(name)
        if owner and not _alive(int(owner[1])):
            run("ip", "netns", "del", name)


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def own_name() -> str:
    """A new name for what this process makes."""
    return f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"


@functools.cache
def why_not() -> str:
    """Why namespaces cannot be made here; empty if they can. Tries it."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}` command here"
    try:
        sweep()
        with Namespaces(2) as namespaces:
            namespaces.cut([(0, 1)], "drop")
            namespaces.cut([(1, 0)], "refuse")
            run(*namespaces.prefix(0), "true")
    except (NetworkError, OSError) as error:
        return f"network namespaces are not allowed here: {error}"
    return ""


@functools.cache
def why_no_delay() -> str:
    """Why packets cannot be delayed or lost here; empty if they can. Tries it. Asks `why_not` first."""
    if why_not():
        return why_not()
    if shutil.which("tc") is None:
        return "there is no `tc` command here"
    try:
        with Namespaces(1) as namespaces:
            namespaces.delay(0, 10)
    except NetworkError as error:
        return f"this kernel has no netem: {str(error).rpartition('Error: ')[2]}"
    return ""


class Namespaces:
    """`with Namespaces(nodes) as network:` makes all, leaving removes all. NetworkError.

    Node i is at `hosts[i]`; who runs this is at `test_host`. Cuts add up until `heal`.
    """

    def __init__(self, nodes: int) -> None:
        self._name = own_name()
        self._hub = f"{self._name}-hub"
        self._leg = f"rs{secrets.token_hex(4)}"
        net = f"10.77.{_free_subnet()}"
        self.hosts = [f"{net}.{i + 1}" for i in range(nodes)]
        self.test_host = f"{net}.{TEST_HOST}"
        self._dropped: set[tuple[int, str]] = set()  # (receiver, sender's address)
        self._refused: set[tuple[int, str]] = set()  # (sender, receiver's address)
        self._down: set[int] = set()
        self._delayed: set[int] = set()

    def __len__(self) -> int:
        return len(self.hosts)

    def name(self, i: int) -> str:
        """The namespace of node i."""
        return f"{self._name}-n{i + 1}"

    def prefix(self, i: int) -> list[str]:
        """What a command begins with that is to run in node i's namespace; it keeps its pid."""
        return ["ip", "netns", "exec", self.name(i)]

    # ---- life ------------------------------------------------------------------------------------------

    def __enter__(self) -> Namespaces:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make(self) -> None:
        run("ip", "netns", "add", self._hub)
        batch(self._hub, ["link add bridge type bridge", "link set bridge up"])
        for i, host in enumerate(self.hosts):
            name = self.name(i)
            run("ip", "netns", "add", name)
            batch(
                self._hub,
                [
                    f"link add node{i} type veth peer name {DEVICE} netns {name}",
                    f"link set node{i} master bridge",
                    f"link set node{i} up",
                ],
            )
            batch(
                name,
                [
                    "link set lo up",
                    f"address add {host}/24 dev {DEVICE}",
                    f"link set {DEVICE} up",
                    # What is addressed to this host is looked up first; a rule that drops must come before.
                    "rule add pref 100 lookup local",
                    "rule del pref 0",
                ],
            )
        run("ip", "link", "add", self._leg, "type", "veth", "peer", "name", "test", "netns", self._hub)
        batch(self._hub, ["link set test master bridge", "link set test up"])
        run("ip", "address", "add", f"{self.test_host}/24", "dev", self._leg)
        run("ip", "link", "set", self._leg, "up")

    def close(self) -> None:
        """Removes all namespaces, and with the hub every link. Again: nothing. NetworkError."""
        if Path(f"/sys/class/net/{self._leg}").exists():
            run("ip", "link", "del", self._leg)
        made = {line.split(" ")[0] for line in run("ip", "netns", "list").splitlines()}
        for name in (*(self.name(i) for i in range(len(self))), self._hub):
            if name in made:
                run("ip", "netns", "del", name)

    # ---- cuts ------------------------------------------------------------------------------------------

    def cut(self, pairs: Iterable[tuple[int, int]], way: Way = "drop") -> None:
        """For each (a, b): nothing that node a sends reaches node b any more; b's packets reach a."""
        for a, b in pairs:
            if way == "drop":
                self._drop(b, self.hosts[a])
            else:
                self._refuse(a, self.hosts[b])

    def _drop(self, receiver: int, sender: str) -> None:
        if (receiver, sender) not in self._dropped:
            run("ip", "-n", self.name(receiver), "rule", "add", "pref", "50", "from", sender, "blackhole")
            self._dropped.add((receiver, sender))

    def _refuse(self, sender: int, receiver: str) -> None:
        if (sender, receiver) not in self._refused:
            run("ip", "-n", self.name(sender), "route", "add", "unreachable", f"{receiver}/32")
            self._refused.add((sender, receiver))

    def unplug(self, i: int) -> None:
        """Node i's link goes down: nothing in, nothing out, and its system knows."""
        run("ip", "-n", self.name(i), "link", "set", DEVICE, "down")
        self._down.add(i)

    def isolate(self, group: Collection[int]) -> None:
        """`group` is cut off from all other nodes and, unlike with `part`, from the clients."""
        self.part(group)
        for i in group:
            self._drop(i, self.test_host)
            self._refuse(i, self.test_host)  # nothing is changed in the namespace that is not ours

    def part(self, group: Collection[int], way: Way = "drop") -> None:
        """`group` and the other nodes do not hear of each other; clients reach both sides."""
        others = [i for i in range(len(self)) if i not in group]
        self.cut([*product(group, others), *product(others, group)], way)

    def one_way(self, a: int, others: Sequence[int] = ()) -> None:
        """What node a sends does not reach `others` (default: any other node); it still hears them."""
        self.cut((a, b) for b in (others or range(len(self))) if b != a)

    def bridge(self, middle: int) -> None:
        """Two halves that only node `middle` connects."""
        others = [i for i in range(len(self)) if i != middle]
        half = len(others) // 2
        one, other = others[:half], others[half:]
        self.cut([*product(one, other), *product(other, one)])

    def delay(self, i: int, milliseconds: int, loss_percent: float = 0.0) -> None:
        """What node i sends takes that much longer, and some of it gets lost. NetworkError without netem."""
        how = ["delay", f"{milliseconds}ms", f"{milliseconds // 2}ms", "loss", f"{loss_percent}%"]
        run(*self.prefix(i), "tc", "qdisc", "replace", "dev", DEVICE, "root", "netem", *how)
        self._delayed.add(i)

    def heal(self) -> None:
        """Undoes all cuts and delays."""
        for receiver, sender in sorted(self._dropped):
            run("ip", "-n", self.name(receiver), "rule", "del", "pref", "50", "from", sender, "blackhole")
        for a, host in sorted(self._refused):
            run("ip", "-n", self.name(a), "route", "del", "unreachable", f"{host}/32")
        for i in sorted(self._down):
            run("ip", "-n", self.name(i), "link", "set", DEVICE, "up")
        for i in sorted(self._delayed):
            run(*self.prefix(i), "tc", "qdisc", "del", "dev", DEVICE, "root")
        self._dropped.clear()
        self._refused.clear()
        self._down.clear()
        self._delayed.clear()


def _free_subnet() -> int:
    """x of a 10.77.x.0/24 that this machine knows nothing of."""
    try:
        known = run("ip", "-4", "route", "show", "table", "all")
    except NetworkError:  # whoever makes the namespaces is told more
        known = ""
    taken = {int(x) for x in re.findall(r"\b10\.77\.(\d+)\.", known)}
    return secrets.choice([x for x in range(1, 255) if x not in taken])
