"""What a run suffers: an explicit list, drawn from the seed before the run begins, so that it can be shrunk.

A fault knows its own end. Nothing here looks at how the cluster does, but for the faults that strike whoever
leads at that moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    "before part",
    "after part",
    "between fragments",
    "within a run of fragments",
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
#: Those that only large transactions pass.
LARGE_POINTS = frozenset({"before part", "after part", "between fragments", "within a run of fragments"})
#: Parts of the names of points that a run may pass once, or never: a crash there strikes at the first chance.
RARE = ("remove", "checkpoint", "fetch", "switch", "reset", "part", "fragment")
#: Before and behind each bit of what packs have removed; struck in runs with packs.
PACK_POINTS = ("before pack step", "after pack step")
MOST_CLIENTS = 4
#: Scenes begin in this share of a run, so that there is time for most of them to come to their end.
EARLY = 0.7
MEMBERSHIP = "change the members at"
HAND_OVER = "hand over the leadership of"
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
    undisturbed: dict[str, float] = {}  # until when a scene goes on that another one would end
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        if at >= seconds:
            return sorted(found, key=lambda fault: fault.at)
        kind = rng.choices(mix, weights)[0]
        if at < undisturbed.get(kind, 0.0):
            continue
        undisturbed[kind] = at + ALONE.get(kind, 0.0)
        early = at if only else at * EARLY
        scene = SCENES[kind](rng, early, nodes) if kind in SCENES else [KINDS[kind](rng, at, nodes)]
        found += [each for each in scene if each.kind != "flip a bit of" or each.nodes[0] not in spared]


def strike_at_removals(rng: random.Random, seconds: float) -> list[Fault]:
    """Crashes beside the faults of a run: at some nodes, when they remove what a pack has taken."""
    return [
        Fault(
            rng.uniform(0.0, seconds),
            rng.choice(("kill at a point", "cut the power of at a point")),
            rng.choice(((), (LEADER,))),
            rng.choice((0.002, 0.2, 1.0)),
            rng.choice(PACK_POINTS),
            rng.randrange(4),
        )
        for _ in range(rng.randrange(1, 4))
    ]


def strike_at_a_point(rng: random.Random, nodes: Sequence[int], seconds: float) -> list[Fault]:
    """Crashes at one point of all, wherever it is passed first after some moments of a run.

    A run that has its crashes where snapshots are installed needs somebody who was left behind, as well.
    """
    weights = [3 if any(rare in point for rare in (*RARE, "create")) else 1 for point in CRASH_POINTS]
    point = rng.choices(CRASH_POINTS, weights)[0]
    passes = 0 if any(rare in point for rare in (*RARE, "create", "rename", "directory")) else 3
    scene: list[Fault] = []
    moments = [rng.uniform(0.0, EARLY) * seconds for _ in range(3)]
    if point in SNAPSHOT_POINTS and len(nodes) > 2:
        at = rng.uniform(0.1, 0.3) * seconds
        scene.append(Fault(at, "isolate", (rng.choice(nodes),), 1.5))
        scene.append(Fault(at, "cut the log of", (), 3.0))
        moments = [at + 1.0, at + 1.8]
    kinds = ("kill at a point", "cut the power of at a point")
    down = (0.002, 0.2, 1.0)
    return scene + [
        Fault(at, rng.choice(kinds), (), rng.choice(down), point, rng.randrange(passes + 1)) for at in moments
    ]


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
    if any(rare in point for rare in RARE):
        passes = 0
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
    "hand over": lambda rng, at, nodes: Fault(at, HAND_OVER, (LEADER,), 0.0),
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
    meanwhile = rng.choice(changes).at + rng.uniform(0.0, 0.02)
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
    if rng.random() < 0.4:  # to one with a longer log, perhaps, while the snapshot is on its way
        scene.append(Fault(back + rng.uniform(0.05, 1.0), HAND_OVER, (LEADER,), 0.0))
    if rng.random() < 0.5:
        gone = rng.choice(("kill", "isolate", "pause", "pause", "cut the power of"))
        again = node if rng.random() < 0.3 else (LEADER,)
        when, down = back + rng.uniform(0.05, 0.5), rng.uniform(0.05, 2.0)
        scene += [Fault(when, gone, again, down), Fault(when, "crowd the elections of", (), down)]
    return scene


def _overtaken(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """While a snapshot is on its way to a node, one with a longer log comes to lead, and sends it the entries."""
    node = rng.choice(nodes)
    back = at + rng.uniform(1.0, 2.5)
    change = back + rng.uniform(0.2, 0.8)
    piece = rng.choice((0.3, 0.6, 0.9, 1.2))
    scene = [
        Fault(at, "do not cut the log of", (), back - at + 3.0),
        Fault(back - 0.6, "cut the log of", (LEADER,), 3.0),
        Fault(at, rng.choice(("isolate", "part")), (node,), back - at),
        Fault(back - 0.1, "slow the snapshots to", (node,), 2.0, number=piece),
        Fault(change, "crowd the elections of", (), 1.5),
    ]
    if rng.random() < 0.3:
        scene.append(Fault(change, HAND_OVER, (LEADER,), 0.0))
    else:  # those who start do not know yet how much is committed; the snapshot may hold more than that
        scene.append(Fault(change, "kill all but the leader and", (node,), 0.05))
        scene.append(Fault(change, "pause", (LEADER,), rng.uniform(1.0, 2.5)))
    if rng.random() < 0.8:
        slow = rng.choice(((), (node,), (node,), (node,)))
        scene.append(
            Fault(
                change + rng.uniform(0.2, 0.8), "slow the disk of", slow, 2.0, number=rng.choice((0.3, 1.0, 2.0))
            )
        )
    return scene


def _long_tail(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """A leader is cut off with many entries that nobody else gets, and comes back to logs that were cut and are
    shorter than its own. Its disk may be writing them still."""
    seconds = rng.uniform(0.8, 2.0)
    scene = [
        Fault(at, "split", (LEADER,), seconds, _some_clients(rng)),
        Fault(at, "crowd the elections of", (), seconds),
        Fault(at + 0.02, "pile entries up at", (LEADER,), 0.0, number=rng.randrange(5, 40)),
    ]
    if rng.random() < 0.6:
        slow = rng.choice((0.3, 1.0, 3.0))
        scene.append(Fault(at + 0.05, "slow the disk of", (LEADER,), seconds + 1.0, number=slow))
        scene.append(Fault(at + 0.1, "pile entries up at", (LEADER,), 0.0, number=rng.randrange(5, 40)))
    return scene


def _torn_run(rng: random.Random, at: float, nodes: Sequence[int]) -> list[Fault]:
    """A leader dies before all of a large transaction is sent; another one comes to lead with some of it."""
    kind = rng.choice(("kill", "cut the power of"))
    passes = rng.randrange(8)
    dies = Fault(at, f"{kind} at a point", (LEADER,), rng.uniform(0.5, 2.0), "within a run of fragments", passes)
    return [dies, Fault(at + 0.01, "crowd the elections of", (), 2.0)]


SCENES: dict[str, Callable[[random.Random, float, Sequence[int]], list[Fault]]] = {
    "slow then cut": _slow_then_cut,
    "contest": _contest,
    "stale leader": _stale_leader,
    "grow and cut": _grow_and_cut,
    "left behind": _left_behind,
    "overtaken": _overtaken,
    "long tail": _long_tail,
    "torn run": _torn_run,
}
#: Scenes of which there is one at a time, and for how long.
ALONE = {"overtaken": 4.5}
#: What changes the membership, and what has nodes need snapshots.
CHANGING = ("membership", "grow and cut", "left behind")
CHANGING_KINDS = frozenset({"membership", "grow and cut"})
