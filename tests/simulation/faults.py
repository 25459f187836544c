"""What a run suffers: an explicit list, drawn from the seed before the run begins, so that it can be shrunk.

A fault knows its own end. Nothing here looks at how the cluster does, but for the faults that strike whoever
leads at that moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from raftstorage.node.raft.types import Role

from tests.simulation.network import Network
from tests.simulation.node import Crash, SimNode
from tests.simulation.world import SimLoop, World

#: Places in a node where a crash may strike; each is passed by production code or by the disk below it.
CRASH_POINTS = (
    "before write",
    "after write",
    "before sync",
    "after sync",
    "before create",
    "before rename",
    "after rename",
    "before directory sync",
    "after directory sync",
    "before vote save",
    "after vote save",
    "before entries save",
    "after entries save",
    "before acknowledgement",
    "after acknowledgement",
    "before send",
    "after send",
    "before apply",
    "after apply",
    "before flush",
    "after flush",
    "before remove",
    "after remove",
    "before checkpoint",
    "after checkpoint",
    "before fetch",
    "after fetch",
    "before database switch",
    "after database switch",
    "after log reset",
)
#: Those that a snapshot passes, on its way to a node that was left behind.
SNAPSHOT_POINTS = (
    "before checkpoint",
    "after checkpoint",
    "before fetch",
    "after fetch",
    "before database switch",
    "before database switch",
    "after database switch",
    "after database switch",
    "after log reset",
)
MOST_CLIENTS = 4
MEMBERSHIP = "change the members at"
LEADER = 0  # in `nodes`: whoever leads when the fault strikes


@dataclass(frozen=True)
class Fault:
    """`kind` strikes `nodes` at `at` for `seconds`. `detail` and `number` are the kind's own."""

    at: float
    kind: str
    nodes: tuple[int, ...]
    seconds: float
    detail: str = ""
    number: float = 0.0

    def __str__(self) -> str:
        whom = "all" if not self.nodes else ", ".join(f"n{node}" if node else "the leader" for node in self.nodes)
        parts = [f"{self.at:7.3f} {self.kind} {whom}", self.detail, f"{self.number:g}" if self.number else ""]
        return " ".join(part for part in parts if part) + f", for {self.seconds:.3f} s"


def draw(rng: random.Random, nodes: Sequence[int], seconds: float, only: Sequence[str] = ()) -> list[Fault]:
    """The faults of one run, in time order. Each run has its own rate and mix, of kinds in `only` if given."""
    kinds = sorted(only or [*KINDS, *SCENES])
    mix = rng.sample(kinds, rng.randrange(1, len(kinds) + 1))
    weights: list[float] = [rng.choice((1, 1, 5)) * (2 if kind in SCENES else 1) for kind in mix]
    if not only and rng.random() < 0.5:  # in every second run the members change, and nodes fall far behind
        weights += [sum(weights) / 6] * len(CHANGING)
        mix += CHANGING
    rate = rng.choice((0.3, 0.7, 1.5, 3.0))
    spared = rng.sample(list(nodes), len(nodes) // 2 + 1)  # a majority keeps what its disks hold
    if not CHANGING_KINDS.isdisjoint(mix):  # who is a majority later on cannot be known here
        spared = list(nodes)
    found: list[Fault] = []
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        if at >= seconds:
            return sorted(found, key=lambda fault: fault.at)
        kind = rng.choices(mix, weights)[0]
        scene = SCENES[kind](rng, at, nodes) if kind in SCENES else [KINDS[kind](rng, at, nodes)]
        found += [each for each in scene if each.kind != "flip a bit of" or each.nodes[0] not in spared]


def _while(rng: random.Random, long: float = 3.0) -> float:
    return rng.choice((0.02, 0.2, 1.0, long)) * rng.uniform(0.5, 1.5)


def _victim(rng: random.Random, nodes: Sequence[int]) -> tuple[int, ...]:
    return (LEADER,) if rng.random() < 0.4 else (rng.choice(nodes),)


def _simple(kind: str, long: float = 3.0, *, leader: bool = True) -> Callable[..., Fault]:
    def make(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
        return Fault(at, kind, _victim(rng, nodes) if leader else (rng.choice(nodes),), _while(rng, long))

    return make


def _kill_all(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
    return Fault(at, rng.choice(("kill", "cut the power of")), (), _while(rng, 1.0))


def _crash_point(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
    point = rng.choice(CRASH_POINTS)
    kind = rng.choice(("kill", "cut the power of"))
    seconds = rng.choice((0.002, 0.02, 0.2, 1.0)) * rng.uniform(0.5, 1.5)
    passes = 0 if any(rare in point for rare in ("create", "rename", "directory")) else rng.randrange(4)
    return Fault(at, f"{kind} at a point", _victim(rng, nodes), seconds, point, passes)


def _cut(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
    kind = rng.choice(("isolate", "part", "silence", "deafen", "bridge", "cut off from clients"))
    size = rng.randrange(1, len(nodes) // 2 + 1) if len(nodes) > 2 and kind == "part" else 1
    group = tuple(sorted(rng.sample(list(nodes), size)))
    if size == 1 and rng.random() < 0.4:
        group = (LEADER,)
    return Fault(at, kind, group, _while(rng, 4.0))


def _some_clients(rng: random.Random) -> str:
    return "".join(rng.choice("01") for _ in range(MOST_CLIENTS))


def _split(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
    """Everybody is on one of two sides, clients too. Old streams stall, or are reset."""
    size = rng.randrange(1, len(nodes) // 2 + 1) if len(nodes) > 2 else 1
    group = (LEADER,) if size == 1 and rng.random() < 0.6 else tuple(sorted(rng.sample(list(nodes), size)))
    return Fault(at, rng.choice(("split", "split and reset")), group, _while(rng, 4.0), _some_clients(rng))


def _clock(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
    jump = rng.choice((-3600.0, -5.0, -0.5, 0.5, 5.0, 3600.0))
    return Fault(at, "set the clock of", _victim(rng, nodes), _while(rng), number=jump)


def _membership(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
    """`number`: which of the nodes that it may be."""
    change = rng.choice(("let in", "let in", "promote", "promote", "promote", "demote", "remove", "replace"))
    return Fault(at, MEMBERSHIP, (LEADER,), 0.0, change, rng.randrange(60))


def _slow(rng: random.Random, at: float, nodes: Sequence[int]) -> Fault:
    """`number`: the longest that a write takes, in seconds. The shortest is a tenth."""
    group = () if rng.random() < 0.4 else _victim(rng, nodes)
    return Fault(at, "slow the disk of", group, _while(rng, 5.0), number=rng.choice((0.05, 0.3, 1.0, 3.0)))


KINDS: dict[str, Callable[[random.Random, float, Sequence[int]], Fault]] = {
    "kill": _simple("kill"),
    "power": _simple("cut the power of"),
    "kill all": _kill_all,
    "crash point": _crash_point,
    "pause": _simple("pause", 4.0),
    "cut": _cut,
    "split": _split,
    "reset": _simple("reset the connections of"),
    "clock": _clock,
    "full disk": _simple("fill the disk of", 1.0),
    "failing write": _simple("fail a write of"),
    "failing sync": _simple("fail a sync of"),
    "slow disk": _slow,
    "flip": _simple("flip a bit of", leader=False),
    "membership": _membership,
}


def _slow_then_cut(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """Writes are under way everywhere, or at the leader, when it is cut off."""
    group = rng.choice(((), (LEADER,)))
    slow = Fault(at, "slow the disk of", group, rng.uniform(2.0, 5.0), number=rng.choice((0.3, 1.0, 3.0)))
    kind = rng.choice(("part", "silence", "silence", "isolate"))
    cut = Fault(at + rng.uniform(0.05, 0.5), kind, (LEADER,), rng.uniform(1.0, 3.0))
    if kind == "silence":
        cut = replace(cut, detail=_some_clients(rng))
    return [slow, cut, Fault(at, "crowd the elections of", (), cut.seconds)]


def _contest(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """The leader goes, and whoever votes crashes and is back at once."""
    point = rng.choice(("before vote save", "after vote save", "after acknowledgement", "after send"))
    kind = rng.choice(("kill", "cut the power of"))
    crash = Fault(at, f"{kind} at a point", (), rng.uniform(0.001, 0.02), point, rng.randrange(3))
    gone = Fault(at, rng.choice(("isolate", "pause")), (LEADER,), rng.uniform(1.0, 3.0))
    return [crash, gone, Fault(at + 0.01, "crowd the elections of", (), rng.uniform(1.0, 3.0))]


def _stale_leader(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """A leader that some clients still reach, while the others are quick to elect the next one."""
    seconds = rng.uniform(1.0, 3.0)
    away = Fault(at, rng.choice(("split", "pause")), (LEADER,), seconds, _some_clients(rng))
    return [away, Fault(at, "crowd the elections of", (), seconds)]


def _grow_and_cut(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """A node comes, has caught up, and the leader is cut off, or is gone, while the voters change."""
    changes = [Fault(at, MEMBERSHIP, (LEADER,), 0.0, "let in", 0)]
    changes += [
        Fault(
            at + after,
            MEMBERSHIP,
            (LEADER,),
            0.0,
            rng.choice(("promote", "promote", "replace")),
            rng.randrange(60),
        )
        for after in (rng.uniform(0.3, 0.6), rng.uniform(0.7, 1.2))
    ]
    if rng.random() < 0.7:
        what = rng.choice(("demote", "remove", "remove"))
        changes.append(Fault(at + rng.uniform(1.2, 2.0), MEMBERSHIP, (LEADER,), 0.0, what, rng.randrange(60)))
    meanwhile = rng.choice(changes[1:]).at + rng.uniform(0.0, 0.02)
    seconds = rng.uniform(0.5, 3.0)
    kind = rng.choice(("split", "split", "part", "silence", "isolate", "kill"))
    gone = Fault(meanwhile, kind, (LEADER,), seconds, _some_clients(rng) if kind in ("split", "silence") else "")
    if len(nodes) > 2 and rng.random() < 0.35:  # who came may be with the leader, on the side of the few
        founders = tuple(sorted(rng.sample(list(nodes), len(nodes) // 2 + 1)))
        gone = Fault(meanwhile, "split", founders, seconds, _some_clients(rng))
    if rng.random() < 0.3:  # an operator who does not wait
        changes += [
            Fault(meanwhile + rng.uniform(0.0, 0.2), MEMBERSHIP, (LEADER,), 0.0, what, rng.randrange(60))
            for what in ("promote", "remove", "remove")
        ]
    scene = [*changes, gone, Fault(meanwhile, "crowd the elections of", (), seconds)]
    if rng.random() < 0.3:
        scene.append(Fault(at, "slow the disk of", (), rng.uniform(1.0, 3.0), number=rng.choice((0.05, 0.3))))
    return scene


def _left_behind(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """A node is away while the others write and cut their logs; it may crash when it gets a snapshot."""
    node = (rng.choice(nodes),) if rng.random() < 0.65 else (LEADER,)
    seconds = rng.uniform(1.0, 3.0)
    back = at + seconds
    away = rng.choice(("split", "isolate", "part", "kill", "cut the power of"))
    scene = [Fault(at, away, node, seconds, _some_clients(rng) if away == "split" else "")]
    if rng.random() < 0.6:
        point = rng.choice(SNAPSHOT_POINTS)
        whom = (LEADER,) if "checkpoint" in point else node
        kind = rng.choice(("kill", "cut the power of"))
        down = rng.choice((0.002, 0.2, 1.0)) * rng.uniform(0.5, 1.5)
        scene.append(Fault(back, f"{kind} at a point", whom, down, point))
    if rng.random() < 0.4:
        slow = Fault(back - 0.2, "slow the disk of", node, rng.uniform(0.5, 2.0), number=rng.choice((0.05, 0.3)))
        scene.append(slow)
    if rng.random() < 0.5:
        gone = rng.choice(("kill", "isolate", "pause", "pause", "cut the power of"))
        again = node if rng.random() < 0.3 else (LEADER,)
        when, down = back + rng.uniform(0.05, 0.5), rng.uniform(0.05, 2.0)
        scene += [Fault(when, gone, again, down), Fault(when, "crowd the elections of", (), down)]
    return scene


SCENES: dict[str, Callable[[random.Random, float, Sequence[int]], list[Fault]]] = {
    "slow then cut": _slow_then_cut,
    "contest": _contest,
    "stale leader": _stale_leader,
    "grow and cut": _grow_and_cut,
    "left behind": _left_behind,
}
#: What changes the membership, and what has nodes need snapshots.
CHANGING = ("membership", "grow and cut", "left behind")
CHANGING_KINDS = frozenset({"membership", "grow and cut"})


class Breaker:
    """Strikes with faults. `stop` ends them all and brings everybody back."""

    def __init__(self, world: World, network: Network, nodes: dict[int, SimNode], clients: Iterable[str]) -> None:
        self._world = world
        self._network = network
        self._nodes = nodes
        self._clients = tuple(clients)
        self._rng = world.random("breaker")
        self._cuts: dict[Fault, set[tuple[str, str]]] = {}
        self._paused: dict[SimLoop, int] = {}
        self._over = False
        #: Has the leader change the membership: what, and which node of those that it may be.
        self.change_members: Callable[[SimNode, str, int], None] = lambda node, change, number: None
        for node in nodes.values():
            node.ended_itself = self._restart_soon

    def came(self, node: SimNode) -> None:
        """Another node is there."""
        node.ended_itself = self._restart_soon

    def plan(self, faults: Sequence[Fault]) -> None:
        """Has `faults` strike from now on; their times count from here."""
        for fault in faults:
            self._world.after(fault.at, lambda fault=fault: None if self._over else self.strike(fault))  # type: ignore[misc]

    def strike(self, fault: Fault) -> None:
        self._world.say(f"!! {fault}")
        nodes = [self._nodes[node] for node in self._whom(fault)]
        match fault.kind:
            case "kill" | "cut the power of":
                for node in nodes:
                    node.kill(power=fault.kind != "kill")
                    self._start_later(node, fault.seconds * self._rng.uniform(0.5, 1.5))
            case "kill at a point" | "cut the power of at a point":
                for node in nodes:
                    power = not fault.kind.startswith("kill")
                    node.crash = Crash(fault.detail, int(fault.number), power, fault.seconds)
            case "pause":
                for node in nodes:
                    self._pause(node, fault.seconds)
            case "set the clock of":
                for node in nodes:
                    node.clock_offset += fault.number
            case "fill the disk of" | "slow the disk of":
                for node in nodes:
                    self._ail(node, fault)
            case "fail a write of":
                for node in nodes:
                    node.files.fail_writes = 1
            case "fail a sync of":
                for node in nodes:
                    node.files.fail_syncs = 1
            case "crowd the elections of":
                for node in nodes:
                    node.crowded_until = self._world.now + fault.seconds
            case "reset the connections of":
                for node in nodes:
                    for client in self._clients:
                        self._network.reset(client, node.name)
            case "change the members at":
                for node in nodes:
                    self.change_members(node, fault.detail, int(fault.number))
            case "flip a bit of":
                for node in nodes:
                    self._flip(node)
                    node.kill()  # it shows when the log is read
                    self._start_later(node, fault.seconds)
            case _:
                self._cut(fault, [node.name for node in nodes])

    def stop(self) -> None:
        """Nothing strikes any more: all cuts heal, who is paused goes on, who is down starts."""
        self._over = True
        self._cuts.clear()
        self._network.heal()
        for loop in self._paused:
            loop.paused = False
        for node in self._nodes.values():
            node.recover_disk()
            node.crash = None
            self._start_later(node, self._rng.uniform(0.0, 0.5))

    # ---- kinds ---------------------------------------------------------------------------------------

    def _whom(self, fault: Fault) -> list[int]:
        if not fault.nodes:
            return sorted(self._nodes)
        if fault.nodes != (LEADER,):
            return list(fault.nodes)
        leaders = [n for n, node in self._nodes.items() if node.up and node.driver.role is Role.LEADER]
        return leaders[-1:] or [self._rng.choice(sorted(self._nodes))]

    def _start_later(self, node: SimNode, seconds: float) -> None:
        self._world.after(seconds, node.start)

    def _restart_soon(self, node: SimNode, seconds: float | None) -> None:
        """What an operator's supervisor does with a process that ended by itself."""
        self._start_later(node, self._rng.uniform(0.1, 1.0) if seconds is None else seconds)

    def _pause(self, node: SimNode, seconds: float) -> None:
        loop = node.loop
        if loop is None:
            return
        self._paused[loop] = self._paused.get(loop, 0) + 1
        loop.paused = True

        def resume() -> None:
            self._paused[loop] -= 1
            if not self._paused[loop]:
                loop.paused = False

        self._world.after(seconds, resume)

    def _ail(self, node: SimNode, fault: Fault) -> None:
        if fault.kind == "fill the disk of":
            node.files.full = True
        else:
            node.disk_seconds = (fault.number / 10, fault.number)
        self._world.after(fault.seconds, node.recover_disk)

    def _flip(self, node: SimNode) -> None:
        where = node.files.flip()
        if where:
            node.damaged = True
            self._world.say(f"!! the disk of {node.name} flips a bit at {where}")

    def _cut(self, fault: Fault, group: list[str]) -> None:
        everyone = [node.name for node in self._nodes.values()]
        others = [name for name in everyone if name not in group]
        cuts: set[tuple[str, str]] = set()
        match fault.kind:
            case "isolate":  # from everybody
                outside = [*others, *self._clients]
                cuts = {pair for a in group for b in outside for pair in ((a, b), (b, a))}
            case "part":  # the clients stay with both sides
                cuts = {pair for a in group for b in others for pair in ((a, b), (b, a))}
            case "silence":  # is not heard, by some clients neither
                cuts = {(a, b) for a in group for b in others + self._chosen(fault.detail)}
            case "deafen":
                cuts = {(b, a) for a in group for b in others}
            case "bridge":  # two halves that only the one in the middle connects
                half = len(others) // 2
                cuts = {p for a in others[:half] for b in others[half:] for p in ((a, b), (b, a))}
            case "cut off from clients":
                cuts = {p for a in group for b in self._clients for p in ((a, b), (b, a))}
            case "split" | "split and reset":
                clients = self._chosen(fault.detail)
                there = [name for name in (*everyone, *self._clients) if name not in group + clients]
                cuts = {p for a in group + clients for b in there for p in ((a, b), (b, a))}
                if fault.kind != "split":
                    for a, b in sorted(cuts):
                        self._network.reset(a, b)
            case _:
                raise AssertionError(f"no fault is called {fault.kind!r}")
        self._cuts[fault] = cuts
        self._cuts_changed()

        def heal() -> None:
            self._cuts.pop(fault, None)
            self._cuts_changed()

        self._world.after(fault.seconds, heal)

    def _chosen(self, bits: str) -> list[str]:
        return [client for client, bit in zip(self._clients, bits, strict=False) if bit == "1"]

    def _cuts_changed(self) -> None:
        self._network.cuts = set().union(*self._cuts.values())
        self._network.wake()
