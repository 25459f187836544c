"""One run: a cluster, its clients, their work, the faults; then peace, in which all must come together again."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.reading import LAST

from tests.simulation.blobs import Ledger, jumps
from tests.simulation.breaker import Breaker
from tests.simulation.checks import Broken, check_all
from tests.simulation.choices import Objects
from tests.simulation.client import SimClient
from tests.simulation.drill import fill_disks
from tests.simulation.faults import LARGE_POINTS, MOST_CLIENTS, Fault, draw, strike_at_a_point, strike_at_removals
from tests.simulation.history import History
from tests.simulation.network import Network, Weather
from tests.simulation.node import SimNode
from tests.simulation.operator import Operator
from tests.simulation.packs import Replay, check_left
from tests.simulation.scarcity import Scarcity
from tests.simulation.shelves import Shelves
from tests.simulation.watcher import Watcher
from tests.simulation.workload import Workload
from tests.simulation.world import Violation, World
from tests.unit.engine.commands import everything

#: How long a cluster may take to serve again when all faults are over, in simulated seconds.
PEACE_SECONDS = 30.0
#: Some election timeouts.
CALM_SECONDS = 3.0
#: Of a run with faults. Those with a few kinds of them go on for longer, so that rare things come together.
SECONDS = (4.0, 10.0)
LONG_SECONDS = (5.0, 15.0)
#: Production has 1, as those runs: more to do, less to go wrong.
HEARTBEAT_TICKS = (1, 2, 3)
#: Cuts a list of some tokens into pieces, and has every second register of a transaction by itself.
LEAST_PART_BYTES = 112
PART_BYTES = (0, 0, 0, LEAST_PART_BYTES, 150, 300)


@dataclass(frozen=True)
class Plan:
    """All that a run depends on: the same plan, the same trace."""

    seed: str
    nodes: int
    clients: int
    seconds: float
    pause: float
    weather: Weather
    faults: tuple[Fault, ...]
    blobs: float = 0.0  # share of transactions
    #: Transactions with more bytes travel in parts; 0: as in production, which is never here.
    part_bytes: int = 0
    heartbeat_ticks: int = 1  # from one heartbeat to the next
    packs: float = 0.0  # likewise, of such that make garbage, or pack

    @classmethod
    def draw(cls, seed: int | str, only: Sequence[str] = ()) -> Plan:
        """`only`: names of fault kinds and scenes, all by default."""
        rng = World(str(seed)).random("plan")
        nodes = rng.choices((1, 3, 5), (1, 16, 3))[0]
        seconds = rng.uniform(*(LONG_SECONDS if only else SECONDS))
        weather = Weather()
        if rng.random() < 0.5:
            weather = Weather(
                loss=rng.choice((0.0, 0.02, 0.1, 0.3)),
                repeat=rng.choice((0.0, 0.05, 0.2)),
                delay=rng.choice(((0.0002, 0.002), (0.001, 0.02), (0.005, 0.06))),
                straggle=rng.choice((0.0, 0.01, 0.1)),
            )
        faults = draw(rng, range(1, nodes + 1), seconds, only)
        clients = rng.randrange(2, MOST_CLIENTS + 1)
        pause = rng.choice((0.01, 0.03, 0.1))
        blobs = rng.choice((0.0, 0.15, 0.6))
        packs = rng.choice((0.0, 0.1, 0.4))
        if packs and rng.random() < 0.7:
            faults += strike_at_removals(rng, seconds)
        part_bytes = World(str(seed)).random("parts").choice(PART_BYTES)
        points = World(str(seed)).random("points")
        if not only and points.random() < 0.4:
            crashes = strike_at_a_point(points, range(1, nodes + 1), seconds)
            faults += crashes
            if crashes[-1].detail in LARGE_POINTS:
                part_bytes = LEAST_PART_BYTES
        return cls(
            str(seed),
            nodes,
            clients,
            seconds,
            pause,
            weather,
            tuple(faults),
            blobs,
            part_bytes=part_bytes,
            heartbeat_ticks=1 if only else World(str(seed)).random("heartbeats").choice(HEARTBEAT_TICKS),
            packs=packs,
        )


@dataclass(frozen=True)
class Result:
    """`failure` is empty when every promise was kept."""

    failure: str
    digest: str
    lines: int
    entries: int
    acknowledged: int
    refused: int
    unknown: int
    reads: int
    struck: Counter[str]
    changes: int
    snapshots: int
    uploads: int
    blobs: int
    ended: int
    in_parts: int
    packs: int
    collected: int

    def totals(self) -> dict[str, int]:
        """What adds up over many runs."""
        return {
            "entries": self.entries,
            "acknowledged": self.acknowledged,
            "refused": self.refused,
            "unknown": self.unknown,
            "reads": self.reads,
            "membership changes": self.changes,
            "snapshots installed": self.snapshots,
            "uploads": self.uploads,
            "blobs committed": self.blobs,
            "uploads that ended although they were wanted": self.ended,
            "acknowledged in parts": self.in_parts,
            "packs": self.packs,
            "objects collected": self.collected,
        }


class Simulation:
    def __init__(self, plan: Plan, trace: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        self.world = World(plan.seed, trace)
        self.network = Network(self.world)
        self.watcher = Watcher(self.world, range(1, plan.nodes + 1))
        self.history = History()
        self.objects = Objects()
        ids = range(1, plan.nodes + 1)
        members = {node: f"n{node}:1" for node in ids}
        self.nodes = {n: self._node(n, members[n], members) for n in ids}
        self.watcher.nodes = self.nodes
        self.scarcity = Scarcity(self.world)
        addresses = list(members.values())
        self.clients = [
            SimClient(n, self.world, self.network, addresses, self.history, plan.part_bytes)
            for n in range(plan.clients)
        ]
        clocks = [fault.number for fault in plan.faults if fault.kind == "set the clock of"]
        self.ledger = Ledger(self._leads, jumps(clocks), LAST if plan.packs else b"")
        self.shelves = Shelves(collect=not plan.blobs)
        self.replay = Replay(lambda identity: self._sound()[0].engine.transaction_tid(identity))
        self.workloads = [
            Workload(self.world, c, self.objects, plan.pause, self.ledger, plan.blobs, self.shelves, plan.packs)
            for c in self.clients
        ]
        names = [client.name for client in self.clients]
        self.breaker = Breaker(self.world, self.network, self.nodes, names)
        self.operator = Operator(self.world, self.nodes, self._new_node)
        self.breaker.change_members = self.operator.change

    def _node(self, node_id: int, address: str, members: dict[int, str]) -> SimNode:
        node = SimNode(node_id, address, self.world, self.network, members, self.watcher)
        node.heartbeat_ticks = self.plan.heartbeat_ticks
        return node

    def _new_node(self, node_id: int, address: str) -> None:
        """One that the leader has let in."""
        node = self.nodes[node_id] = self._node(node_id, address, {})
        self.breaker.came(node)
        node.start()

    def run(self) -> Result:
        """Violation and Broken end in the result; anything else is a fault of the simulator."""
        logging.disable(logging.CRITICAL)
        gc.disable()  # when a forgotten task is found must not depend on how much memory was used
        failure = ""
        try:
            self._run()
        except (Violation, Broken) as violation:
            failure = f"{type(violation).__name__}: {violation}"
        finally:
            self.world.close()
            gc.enable()
            logging.disable(logging.NOTSET)
        outcomes = Counter(commit.outcome for commit in self.history.commits())
        return Result(
            failure,
            self.world.digest,
            self.world.lines,
            len(self.watcher.committed),
            outcomes["acknowledged"],
            outcomes["refused"],
            outcomes["unknown"],
            len(self.history.reads()),
            self.watcher.struck,
            self.operator.changes,
            self.watcher.snapshots,
            self.ledger.uploads,
            len(self.ledger.revisions),
            self.ledger.ended,
            sum(client.in_parts for client in self.clients),
            len(self.replay.packed),
            len(self.replay.collected),
        )

    def _run(self) -> None:
        world, plan = self.world, self.plan
        self.scarcity.begin(self.nodes)
        for node in self.nodes.values():
            node.start()
        first = self.workloads[0]
        self._until(first, first.prepare(), "the cluster does not start")
        for workload, client in zip(self.workloads, self.clients, strict=True):
            client.loop.call_soon(client.loop.create_task, workload.run())
        self.network.weather = plan.weather
        self.scarcity.strike(self.nodes, plan.seconds)
        self.breaker.plan(plan.faults)
        world.run(world.now + plan.seconds)
        world.say("-- peace")
        self.network.weather = Weather()
        self.breaker.stop()
        self.scarcity.end(self.nodes)
        for workload in self.workloads:
            workload.stopping = True
        deadline = world.now + PEACE_SECONDS
        world.run(deadline, lambda: all(workload.finished for workload in self.workloads))
        if not all(workload.finished for workload in self.workloads):
            raise Violation("a client's call never ends")
        for workload in self.workloads:
            self._until(workload, workload.probe(), "nothing can be committed or read after all faults")
        if self.scarcity.drills:
            self._come_together()
            sound = {node.id: node for node in self._sound()}
            fill_disks(world, sound, self.workloads[0], self._until)
            self._until(self.workloads[0], self.workloads[0].probe(), "there is room again, and no write is taken")
        self._come_together()
        self._check_calm()
        self.watcher.check_logs()
        self.watcher.check_equal()
        self._check_history()

    def _check_calm(self) -> None:
        """A node that was removed and does not know it deposes nobody (thesis, 4.2.3)."""
        if all(node.id in self.watcher.members.newest.ids for node in self.nodes.values() if node.up):
            return
        self.world.say("-- who was removed is still there")
        self.world.run(self.world.now + CALM_SECONDS)
        terms = {node.id: node.driver.term for node in self._sound()}
        self.world.run(self.world.now + CALM_SECONDS)
        if terms != {node.id: node.driver.term for node in self._sound()}:
            raise Violation("there are elections without a reason, while one who was removed is still there")

    def _come_together(self) -> None:
        self.world.run(self.world.now + PEACE_SECONDS, self._together)
        if not self._together():
            raise Violation("the nodes do not come to the same state after all faults")

    def _until(self, workload: Workload, work: Coroutine[None, None, None], otherwise: str) -> None:
        """Runs a client's work to its end. What it raises is raised here."""
        done: list[Violation | None] = []

        async def wrap() -> None:
            try:
                await work
            except Violation as violation:
                done.append(violation)
            else:
                done.append(None)

        loop = workload.client.loop
        loop.call_soon(loop.create_task, wrap())
        self.world.run(self.world.now + PEACE_SECONDS, lambda: bool(done))
        if not done:
            raise Violation(otherwise)
        if done[0] is not None:
            raise done[0]

    def _leads(self, address: str) -> bool:
        """In the newest term that anybody leads, and ready."""
        term, node_id = max(self.watcher.leaders.items())
        node = self.nodes[node_id]
        return node.address == address and node.up and node.driver.is_ready_leader and node.driver.term == term

    def _sound(self) -> Sequence[SimNode]:
        """Who must come together: members that can start. One that the leader has let in may never have heard."""
        members = self.watcher.members.newest.ids
        return [node for node in self.nodes.values() if not node.lost and node.id in members]

    def _together(self) -> bool:
        for member in self.watcher.members.newest.members:
            if member.node_id not in self.nodes:
                self._new_node(
                    member.node_id, member.address
                )  # whoever was to start it lost its leader before it heard that it may
        nodes = self._sound()
        if self.watcher.members.newest.is_joint or not all(node.up for node in nodes):
            return False
        last = {node.wal.last_index() for node in nodes}
        applied = {node.engine.applied_index for node in nodes}
        removing = any(node.engine.pack_state().phase not in ("", "done") for node in nodes)
        return len(last) == 1 and last == applied and not removing

    def _check_history(self) -> None:
        replay = self.replay
        replay.run(self.watcher.committed)
        try:
            for node in self._sound():
                transactions = everything(node.engine)
                check_left(replay, node.name, transactions)
                self.ledger.check(node.engine, transactions)
        except EngineError as error:
            raise Violation(f"the database cannot be read: {error}") from error
        if not self.history.packed <= replay.packed:
            raise Violation("a read was refused for a pack that there never was")
        objects = self.objects
        check_all(
            self.history,
            replay.truth,
            accounts=objects.accounts,
            total=objects.total,
            lists=objects.lists,
            collected=frozenset(replay.collected),
            gone=frozenset({each.tid for each in replay.truth} - {each.tid for each in replay.left()}),
        )
