"""Clusters that have too little: in some runs leaders take on hardly anything, and disks are at times nearly full.

Refusals must be what they say: nothing was done. Drawn from a source of its own, beside the faults.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from raftstorage.node.admission import Amount, Bounds

from tests.simulation.disk import PLENTY
from tests.simulation.node import RESERVE, SimNode
from tests.simulation.world import World

MANY = Bounds()
#: With less than this not even what was voted for is written.
LOW = RESERVE // 4


class Scarcity:
    """`begin` before the nodes start, `strike` when there is work; `end` when all faults are over.

    Few bounds stay for the whole run.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.random("scarcity")
        self._over = False
        self.strikes = self._rng.random() < 0.5
        self.drills = self._rng.random() < 0.15  # disks fill up once more when all faults are over

    def begin(self, nodes: Mapping[int, SimNode]) -> None:
        if not self.strikes:
            return
        rng = self._rng
        few = rng.choice((1, 1, 2))
        size = rng.choice((1, 300, 1 << 20))
        new = Amount(few, size)
        bounds = Bounds(new, rng.choice((new, Amount(2 * few, 2 * size))), Amount(rng.choice((1, 2, 20)), 1 << 20))
        for node in nodes.values():
            node.bounds = rng.choice((bounds, bounds, MANY))

    def strike(self, nodes: Mapping[int, SimNode], seconds: float) -> None:
        """Disks are full from now on, at times."""
        if not self.strikes:
            return
        rng = self._rng
        at = 0.0
        while (at := at + rng.expovariate(1.0)) < seconds:
            node, left = nodes[rng.choice(list(nodes))], rng.choice((rng.randrange(LOW), rng.randrange(RESERVE)))
            self._world.after(at, partial(self._leave, node, left))
            self._world.after(at + rng.choice((0.3, 2.0, 6.0)), partial(self._leave, node, PLENTY))

    def _leave(self, node: SimNode, left: int) -> None:
        if not self._over:
            self._world.say(f"!! on the disk of {node.name} {left} bytes are free")
            node.files.left = left

    def end(self, nodes: Mapping[int, SimNode]) -> None:
        self._over = True
        for node in nodes.values():
            node.files.left = PLENTY
