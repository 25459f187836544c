"""A cluster of cores in one thread: memory logs, a bag of messages, writes that end when the test says so.

Everything is deterministic. `raft_checks` looks at Raft's guarantees all along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.membership import Change, Membership
from raftstorage.node.raft.types import Config, Entry, Message, Output, RandomSource, Role

from tests.unit.raft.memory_log import MemoryLog, Violation
from tests.unit.raft.raft_checks import Checks
from tests.unit.raft.raft_node import Before, Node, Snapshot
from tests.unit.raft.raft_words import show, show_entry, show_membership, show_persist

__all__ = ["Cluster", "MemoryLog", "Timeouts", "Violation"]


class Timeouts:
    """The core's random source: the shortest timeout for node 1, one tick more for each next node."""

    def __init__(self, node: int) -> None:
        self.node = node

    def randrange(self, start: int, stop: int) -> int:
        return start + (self.node - 1) % (stop - start)


class Cluster:
    def __init__(
        self,
        voters: Iterable[int] = (1, 2, 3),
        learners: Iterable[int] = (),
        *,
        logs: dict[int, MemoryLog] | None = None,
        random: Callable[[int], RandomSource] = Timeouts,
        trace: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        self.trace = trace
        self.flying: list[Message] = []
        self.cuts: set[tuple[int, int]] = set()
        self.nodes: dict[int, Node] = {}
        self.checks = Checks(self.nodes)
        self._random = random
        self._options = options
        initial = Membership.initial(voters, learners)
        for node in sorted(initial.ids):
            config = Config(node, initial.voters, initial.learners, **options)
            self.nodes[node] = Node(config, (logs or {}).get(node) or MemoryLog(), random(node), initial)

    def __getitem__(self, node: int) -> RaftCore:
        return self.nodes[node].core

    @property
    def committed(self) -> list[Entry]:
        return self.checks.committed

    @property
    def leaders(self) -> dict[int, int]:
        return self.checks.leaders

    # ---- what a test does ----------------------------------------------------------------------------

    def tick(self, node: int, count: int = 1) -> None:
        for _ in range(count):
            self[node].tick()
            self.pump(node)

    def is_up(self, node: int) -> bool:
        return node in self.nodes and self.nodes[node].up

    def time_out(self, node: int) -> None:
        """Ticks a node until it asks for pre-votes."""
        for _ in range(3 * self.nodes[node].config.election_ticks):
            self.tick(node)
            if self[node].role not in (Role.FOLLOWER, Role.LEARNER):
                return
        raise AssertionError(f"node {node} does not campaign")

    def propose(self, node: int, *data: bytes) -> int:
        index = self[node].propose(data)
        self.pump(node)
        return index

    def read(self, node: int, request: int) -> None:
        self.checks.asked[request] = len(self.committed)
        self[node].read_index(request)
        self.pump(node)

    def transfer(self, node: int, to: int = 0) -> None:
        self[node].transfer_leader(to)
        self.pump(node)

    def step(self, message: Message) -> None:
        """Hands a message over as if it had arrived just now."""
        node = self.nodes.get(message.to_node)
        if node is not None and node.up:
            node.core.step(message)
            self.pump(message.to_node)

    def write(self, node: int, count: int = 1) -> None:
        """The oldest `count` writes of a node become durable."""
        it = self.nodes[node]
        for _ in range(min(count, len(it.writes))):
            persist = it.writes.popleft()
            it.disk.write(persist.hard_state, persist.entries, persist.snapshot)
            self.trace(f"{node} durable #{persist.ticket}")
            if persist.snapshot is not None:
                base = persist.snapshot.index
                it.installing = [each for each in it.installing if each.index > base]
            it.core.persisted(persist.ticket)
            self.checks.after_input(node, it)
            self._send(node, persist.then_send)
        self.pump(node)

    def crash(self, node: int) -> None:
        self.nodes[node].crash()

    def restart(self, node: int, applied: int | None = None) -> None:
        """`applied`: how much the state machine remembers; all by default, not less than the log begins behind."""
        it = self.nodes[node]
        if applied is not None:
            del it.applied[max(applied, it.disk.base[0]) :]
        it.start()
        self.pump(node)

    def cut(self, a: int, b: int, both: bool = True) -> None:
        self.cuts |= {(a, b), (b, a)} if both else {(a, b)}

    def isolate(self, node: int) -> None:
        for other in self.nodes:
            if other != node:
                self.cut(node, other)

    def heal(self) -> None:
        self.cuts.clear()

    def deliver(self, choose: Callable[[Message], bool] = lambda message: True, count: int = 1 << 30) -> int:
        """Hands over what flies now and is chosen, oldest first; not what that makes fly."""
        chosen = [message for message in self.flying if choose(message)][:count]
        for message in chosen:
            self.flying.remove(message)
            if (message.from_node, message.to_node) not in self.cuts:
                self.trace(f"  {show(message)}")
                self.step(message)
        return len(chosen)

    def drop(self, choose: Callable[[Message], bool] = lambda message: True) -> int:
        before = len(self.flying)
        self.flying = [message for message in self.flying if not choose(message)]
        return before - len(self.flying)

    def settle(
        self, choose: Callable[[Message], bool] = lambda message: True, frozen: Iterable[int] = frozenset()
    ) -> None:
        """Writes and delivers what is chosen until nothing is left to do. Nodes in `frozen` write nothing."""
        for _ in range(10_000):
            busy = False
            for node, it in self.nodes.items():
                if it.up and it.writes and node not in frozen:
                    self.write(node, len(it.writes))
                    busy = True
            if not self.deliver(choose) and not busy:
                return
        raise AssertionError("the cluster does not come to rest")

    def elect(self, node: int, choose: Callable[[Message], bool] = lambda message: True) -> None:
        """Makes a node leader of whoever it reaches. Only what is chosen is delivered."""
        for _ in range(2):  # a node that comes back learns the term from the refusals of its first pre-vote
            for other, it in self.nodes.items():
                if other != node and it.up and (other, node) not in self.cuts and it.core.role is not Role.LEADER:
                    # No vote is given while a leader is heard.
                    it.core.elapsed += it.config.election_ticks
            self.time_out(node)
            self.settle(choose)
            if self[node].role is Role.LEADER:
                return
        raise AssertionError(f"node {node} is {self[node].role}")

    # ---- members and snapshots -----------------------------------------------------------------------

    def join(self, node: int, log: MemoryLog | None = None) -> None:
        """A node with an empty directory runs; nobody knows it yet, and it knows nobody."""
        self.nodes[node] = Node(
            Config(node, **self._options), log or MemoryLog(), self._random(node), Membership()
        )

    def change(self, node: int, change: Change) -> int:
        index = self[node].propose_membership(change)
        self.pump(node)
        return index

    def compact(self, node: int, index: int | None = None) -> None:
        """Cuts what the state machine covers, up to `index` at most."""
        it = self.nodes[node]
        if it.installing:
            return
        covered = len(it.applied)
        it.disk.cut(covered if index is None else min(index, covered))

    def download(self, node: int) -> Snapshot | None:
        """What the node would fetch now from whom it was told to, if that can be reached."""
        it = self.nodes[node]
        if it.fetch is None:
            return None
        source, it_fetch, it.fetch = self.nodes[it.fetch.from_node], it.fetch, None
        away = (it_fetch.from_node, node) in self.cuts or not source.up
        return None if away or len(source.applied) < it_fetch.index else source.snapshot()

    def install(self, node: int, snapshot: Snapshot | None = None) -> bool:
        """Installs a snapshot, or the one that it was told to fetch. False: there is none, or it is stale."""
        it, snapshot = self.nodes[node], snapshot or self.download(node)
        if snapshot is None:
            return False
        taken = it.core.install_snapshot(snapshot.index, snapshot.term, snapshot.membership)
        if taken:
            self.trace(f"{node} installs {snapshot.index}/{snapshot.term}")
            before, it.applied = it.applied, list(snapshot.applied)
            it.installing.append(Before(snapshot.index, before))
            self.checks.installed(node, it, before)
        self.pump(node)
        return taken

    # ---- effects -------------------------------------------------------------------------------------

    def pump(self, node: int) -> None:
        it = self.nodes[node]
        self.checks.after_input(node, it)
        while it.core.has_output():
            output = it.core.take_output()
            if output == Output():
                raise Violation("has_output() promised an output")
            self._take(node, it, output)
        if it.core.take_output() != Output():
            raise Violation("has_output() denied an output")
        self.checks.after_input(node, it)

    def _take(self, node: int, it: Node, output: Output) -> None:
        if output.membership is not None:
            self.trace(f"{node} has members {show_membership(output.membership)}")
        if output.role is not None:
            leader = output.role.leader or "none"
            self.trace(f"{node} is {output.role.role.value} in term {output.role.term}, leader {leader}")
        self._send(node, output.send)
        for persist in output.persist:
            self.trace(f"{node} writes {show_persist(persist)}")
            it.writes.append(persist)
        for entry in output.apply:
            self.trace(f"{node} applies {show_entry(entry)}")
            self.checks.applies(node, it, entry)
        for read in output.reads:
            self.trace(f"{node} may read {read.request} at {read.index}")
            self.checks.reads(read)
        for request in output.reads_lost:
            self.trace(f"{node} lost read {request}")
        if output.fetch is not None:
            self.trace(f"{node} needs {output.fetch.index}/{output.fetch.term} from {output.fetch.from_node}")
            it.fetch = output.fetch
        it.reads += output.reads
        it.reads_lost += output.reads_lost

    def _send(self, node: int, messages: Iterable[Message]) -> None:
        for message in messages:
            self.checks.sends(self.nodes[node], message)
            self.flying.append(message)
