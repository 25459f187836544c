"""Strikes a run with its faults, and ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from raftstorage.node.raft.types import Role

from tests.simulation.around import Crash
from tests.simulation.faults import LEADER, Fault
from tests.simulation.network import Network
from tests.simulation.node import SimNode
from tests.simulation.orders import hand_over, pile_up
from tests.simulation.world import SimLoop, World


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
            case "kill all but the leader and":
                spared = self._whom(replace(fault, nodes=(LEADER,)))
                for node in self._nodes.values():
                    if node not in nodes and node.id not in spared:
                        node.kill()
                        self._start_later(node, fault.seconds)
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
            case "slow the snapshots to":
                for node in nodes:
                    self._network.snapshot_seconds[node.name] = fault.number
                    self._world.after(fault.seconds, partial(self._network.snapshot_seconds.pop, node.name, 0.0))
            case "do not cut the log of":
                for node in nodes:
                    node.keep_all_until = self._world.now + fault.seconds
            case "cut the log of":
                for node in nodes:
                    node.cut_until = self._world.now + fault.seconds
            case "pile entries up at":
                for node in nodes:
                    pile_up(node, int(fault.number))
            case "hand over the leadership of":
                for node in nodes:
                    hand_over(node)
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
        self._network.snapshot_seconds.clear()
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
