"""A cluster of cores in one thread: memory logs, a bag of messages, writes that end when the test says so.

Everything is deterministic. Raft's guarantees (paper, figure 3) are checked all along: `Violation` if one breaks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.types import (
    Config,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    Output,
    Persist,
    RandomSource,
    ReadState,
    Role,
)


class Violation(AssertionError):
    """One of Raft's guarantees was broken."""


class Timeouts:
    """The core's random source: the shortest timeout for node 1, one tick more for each next node."""

    def __init__(self, node: int) -> None:
        self.node = node

    def randrange(self, start: int, stop: int) -> int:
        return start + (self.node - 1) % (stop - start)


class MemoryLog:
    """A LogReader with what a disk would hold."""

    def __init__(self, entries: Iterable[Entry] = (), hard_state: HardState | None = None) -> None:
        self._entries = list(entries)
        self.hard_state = hard_state or HardState()

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        if hard_state is not None:
            self.hard_state = hard_state
        if entries:
            first = entries[0].index
            if first > len(self._entries) + 1:
                raise Violation(f"a write leaves a gap before {first}")
            self._entries[first - 1 :] = entries

    def first_index(self) -> int:
        return 1

    def last_index(self) -> int:
        return len(self._entries)

    def term(self, index: int) -> int:
        if index == 0:
            return 0
        if not 1 <= index <= len(self._entries):
            raise IndexError(index)
        return self._entries[index - 1].term

    def matches(self, index: int, term: int) -> bool:
        return index <= len(self._entries) and self.term(index) == term

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        if not 1 <= low < high <= len(self._entries) + 1:
            raise IndexError((low, high))
        found: list[Entry] = []
        size = 0
        for entry in self._entries[low - 1 : high - 1]:
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return found


class Node:
    """A core with its disk. `applied` is what its state machine has seen, kept over a crash."""

    def __init__(self, config: Config, log: MemoryLog, random: RandomSource) -> None:
        self.config = config
        self.disk = log
        self.random = random
        self.applied: list[Entry] = []
        self.writes: deque[Persist] = deque()
        self.reads: list[ReadState] = []
        self.reads_lost: list[int] = []
        self.up = True
        self.core = RaftCore(config, log, log.hard_state, 0, random)

    def log(self) -> list[Entry]:
        """The whole log, durable or not."""
        return list(self.core.log.entries(1, self.core.last_index + 1, 1 << 40, 1 << 40))


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
        voters, learners = frozenset(voters), frozenset(learners)
        for node in sorted(voters | learners):
            config = Config(node, voters, learners, **options)
            self.nodes[node] = Node(config, (logs or {}).get(node) or MemoryLog(), random(node))
        # What was seen, for the checks.
        self.leaders: dict[int, int] = {}  # term -> node
        self.committed: list[Entry] = []
        self.committed_in: list[int] = []  # term of who first knew it committed
        self.asked: dict[int, int] = {}  # read request -> what was committed when it was asked

    def __getitem__(self, node: int) -> RaftCore:
        return self.nodes[node].core

    # ---- what a test does ----------------------------------------------------------------------------

    def tick(self, node: int, count: int = 1) -> None:
        for _ in range(count):
            self[node].tick()
            self.pump(node)

    def time_out(self, node: int) -> None:
        """Ticks a node until it asks for pre-votes."""
        for _ in range(3 * self.nodes[node].config.election_ticks):
            self.tick(node)
            if self[node].role is not Role.FOLLOWER:
                return
        raise AssertionError(f"node {node} does not campaign")

    def propose(self, node: int, *data: bytes) -> int:
        index = self[node].propose(data)
        self.pump(node)
        return index

    def read(self, node: int, request: int) -> None:
        self.asked[request] = len(self.committed)
        self[node].read_index(request)
        self.pump(node)

    def transfer(self, node: int, to: int = 0) -> None:
        self[node].transfer_leader(to)
        self.pump(node)

    def step(self, message: Message) -> None:
        """Hands a message over as if it had arrived just now."""
        node = self.nodes[message.to_node]
        if node.up:
            node.core.step(message)
            self.pump(message.to_node)

    def write(self, node: int, count: int = 1) -> None:
        """The oldest `count` writes of a node become durable."""
        it = self.nodes[node]
        for _ in range(min(count, len(it.writes))):
            persist = it.writes.popleft()
            it.disk.write(persist.hard_state, persist.entries)
            self.trace(f"{node} durable #{persist.ticket}")
            it.core.persisted(persist.ticket)
            self._send(persist.then_send)
        self.pump(node)

    def crash(self, node: int) -> None:
        """What was not written is gone, and so is what only a core remembers."""
        self.nodes[node].up = False
        self.nodes[node].writes.clear()

    def restart(self, node: int, applied: int | None = None) -> None:
        """`applied`: how much the state machine remembers; all by default."""
        it = self.nodes[node]
        if applied is not None:
            del it.applied[applied:]
        it.core = RaftCore(it.config, it.disk, it.disk.hard_state, len(it.applied), it.random)
        it.up = True
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

    # ---- effects and checks --------------------------------------------------------------------------

    def pump(self, node: int) -> None:
        it = self.nodes[node]
        while it.core.has_output():
            output = it.core.take_output()
            if output == Output():
                raise Violation("has_output() promised an output")
            self._take(node, it, output)
        if it.core.take_output() != Output():
            raise Violation("has_output() denied an output")
        self._check_leader(node, it.core)

    def _take(self, node: int, it: Node, output: Output) -> None:
        if output.role is not None:
            leader = output.role.leader or "none"
            self.trace(f"{node} is {output.role.role.value} in term {output.role.term}, leader {leader}")
        self._send(output.send)
        for persist in output.persist:
            self.trace(f"{node} writes {show_persist(persist)}")
            it.writes.append(persist)
        for entry in output.apply:
            self.trace(f"{node} applies {show_entry(entry)}")
            self._check_apply(node, it, entry)
        for read in output.reads:
            self.trace(f"{node} may read {read.request} at {read.index}")
            if read.index < self.asked[read.request]:
                raise Violation(f"read {read.request} is stale: {read.index} < {self.asked[read.request]}")
        for request in output.reads_lost:
            self.trace(f"{node} lost read {request}")
        it.reads += output.reads
        it.reads_lost += output.reads_lost

    def _send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.entries:
                assert len(message.entries) <= self.nodes[message.from_node].config.max_message_entries
            self.flying.append(message)

    def _check_apply(self, node: int, it: Node, entry: Entry) -> None:
        if entry.index != len(it.applied) + 1:
            raise Violation(f"node {node} applies {entry.index} after {len(it.applied)}")
        if it.disk.last_index() < entry.index or it.disk.term(entry.index) != entry.term:
            raise Violation(f"node {node} applies {entry.index}, which is not on its disk")
        it.applied.append(entry)
        if entry.index <= len(self.committed):
            if self.committed[entry.index - 1] != entry:
                raise Violation(f"state machine safety: two entries at {entry.index}")
        else:
            self.committed.append(entry)
            self.committed_in.append(it.core.term)
            holders = [
                other
                for other in self.nodes.values()
                if other.config.node_id in it.config.voters
                and other.disk.last_index() >= entry.index
                and other.disk.term(entry.index) == entry.term
            ]
            if 2 * len(holders) <= len(it.config.voters):
                raise Violation(f"entry {entry.index} is applied but on {len(holders)} disks only")

    def _check_leader(self, node: int, core: RaftCore) -> None:
        if core.role is not Role.LEADER:
            return
        known = self.leaders.setdefault(core.term, node)
        if known != node:
            raise Violation(f"election safety: {known} and {node} lead in term {core.term}")
        for entry, term in zip(self.committed, self.committed_in, strict=True):
            if term < core.term and not core.log.matches(entry.index, entry.term):
                raise Violation(f"leader completeness: {node} lacks {entry.index} in term {core.term}")

    def check_logs(self) -> None:
        """Log matching: equal index and term means equal logs up to there."""
        logs = [it.log() for it in self.nodes.values() if it.up]
        for position, one in enumerate(logs):
            for other in logs[position + 1 :]:
                agree = False
                for a, b in zip(reversed(one[: len(other)]), reversed(other[: len(one)]), strict=True):
                    agree = agree or a.term == b.term
                    if agree and a != b:
                        raise Violation(f"log matching: {a} and {b} under a common entry")


# ---- words -------------------------------------------------------------------------------------------


def show_entry(entry: Entry) -> str:
    data = {EntryKind.NOOP: "noop", EntryKind.MEMBERSHIP: "members"}.get(entry.kind) or entry.data.decode()
    return f"{entry.index}/{entry.term}:{data}"


def show_persist(persist: Persist) -> str:
    parts = [f"#{persist.ticket}"]
    if persist.hard_state is not None:
        parts.append(f"term {persist.hard_state.term} vote {persist.hard_state.vote or 'none'}")
    if persist.entries:
        parts.append("[" + " ".join(map(show_entry, persist.entries)) + "]")
    if persist.then_send:
        parts.append("then " + ", ".join(f"{m.type.name} to {m.to_node}" for m in persist.then_send))
    return " ".join(parts)


def show(message: Message) -> str:
    parts = [f"{message.from_node}->{message.to_node} {message.type.name} t{message.term}"]
    if message.type in (MessageType.APPEND, MessageType.VOTE, MessageType.PRE_VOTE):
        parts.append(f"after {message.log_index}/{message.log_term}")
    if message.entries:
        parts.append("[" + " ".join(map(show_entry, message.entries)) + "]")
    if message.type in (MessageType.APPEND, MessageType.HEARTBEAT):
        parts.append(f"commit {message.commit}")
    if message.reject:
        parts.append("refused")
    if message.type in (MessageType.APPEND_REPLY, MessageType.READ_INDEX_REPLY):
        parts.append(f"at {message.log_index}")
    if message.type is MessageType.APPEND_REPLY and message.reject:
        parts.append(f"hint {message.hint_index}/{message.hint_term}")
    if message.context and message.type is not MessageType.APPEND:
        parts.append(f"for {message.context}")
    if message.transfer:
        parts.append("by order")
    return " ".join(parts)
