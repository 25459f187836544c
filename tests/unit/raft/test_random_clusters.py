"""Seeded clusters of cores on a network and disks that fail; and proof that the checks notice broken cores."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from raftstorage.node.raft import leading
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.types import Config, Entry, HardState, Message, NotLeader, Persist, Role

STEPS = 4000
HEALING_ROUNDS = 3000


class Violation(AssertionError):
    """A property of Raft (paper, figure 3) does not hold."""


class MemoryLog:
    """A LogReader over what was written."""

    def __init__(self) -> None:
        self.written: list[Entry] = []

    def first_index(self) -> int:
        return 1

    def last_index(self) -> int:
        return len(self.written)

    def term(self, index: int) -> int:
        if index < 0:
            raise IndexError(index)
        return self.written[index - 1].term if index else 0

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        if low < 1 or high > len(self.written) + 1:
            raise IndexError((low, high))
        return self.written[low - 1 : high - 1]


class Cluster:
    """`size` nodes driven in a random order given by `seed`; a crash loses what was not persisted."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.message_entries = self.random.choice([1, 1024])
        self.nodes = range(1, size + 1)
        self.logs = {node: MemoryLog() for node in self.nodes}
        self.hard_states = {node: HardState() for node in self.nodes}
        self.applied: dict[int, list[Entry]] = {}
        self.queued: dict[int, list[Persist]] = {}
        self.cores: dict[int, RaftCore] = {}
        self.network: list[Message] = []
        self.leaders: dict[int, int] = {}
        self.committed: list[Entry] = []
        self.reads: dict[int, int] = {}
        for node in self.nodes:
            self.boot(node)

    def boot(self, node: int) -> None:
        config = Config(node, frozenset(self.nodes), max_message_entries=self.message_entries)
        source = random.Random(self.random.random())
        self.cores[node] = RaftCore(config, self.logs[node], self.hard_states[node], 0, source)
        self.applied[node], self.queued[node] = [], []

    def pump(self, node: int) -> None:
        """Collects all effects; checks election safety, state machine safety and the freshness of reads."""
        applying = True
        while applying:
            output = self.cores[node].take_output()
            self.network.extend(output.send)
            self.queued[node].extend(output.persist)
            for entry in output.apply:
                self.check_applied(node, entry)
            role = output.role
            leads = role is not None and role.role is Role.LEADER
            if role is not None and leads and self.leaders.setdefault(role.term, node) != node:
                raise Violation(f"two leaders in term {role.term}")
            for read in output.reads:
                if read.index < self.reads[read.request]:
                    raise Violation("a read misses what was committed before it")
            applying = bool(output.apply)

    def check_applied(self, node: int, entry: Entry) -> None:
        log = self.applied[node]
        if entry.index != len(log) + 1:
            raise Violation(f"entry {entry.index} applied after {len(log)}")
        log.append(entry)
        if entry.index <= len(self.committed):
            if self.committed[entry.index - 1] != entry:
                raise Violation(f"two entries committed at {entry.index}")
        else:
            self.committed.append(entry)

    def sync(self, node: int, count: int) -> None:
        """Makes the oldest `count` persists durable, and sends what waited for them."""
        batch, self.queued[node] = self.queued[node][:count], self.queued[node][count:]
        log = self.logs[node].written
        for persist in batch:
            if persist.entries:
                del log[persist.entries[0].index - 1 :]
                log.extend(persist.entries)
            if persist.hard_state is not None:
                self.hard_states[node] = persist.hard_state
        if batch:
            self.cores[node].persisted(batch[-1].ticket)
            for persist in batch:
                self.network.extend(persist.then_send)

    def disturb(self) -> None:
        """STEPS random events; the last quarter without faults."""
        draw = self.random
        loss = draw.choice([0, 0.05, 0.2])
        crash = draw.choice([0.003, 0.03])
        cut: set[int] = set()
        for step in range(STEPS):
            faulty = step < 0.75 * STEPS
            node, event = draw.choice(self.nodes), draw.random()
            core = self.cores[node]
            if event < 0.30:
                core.tick()
            elif event < 0.65:
                if self.network:
                    message = self.network.pop(draw.randrange(min(len(self.network), 6)))
                    node = message.to_node
                    if faulty and (draw.random() < loss or (message.from_node in cut) != (node in cut)):
                        continue
                    if faulty and draw.random() < 0.05:
                        self.network.append(message)
                    self.cores[node].step(message)
            elif event < 0.9:
                if self.queued[node]:
                    self.sync(node, draw.randrange(1, len(self.queued[node]) + 1))
            elif event < 0.96:
                if core.role is Role.LEADER and not core.transferring_to:
                    core.propose([str(step).encode()])
                else:
                    with pytest.raises(NotLeader):
                        core.propose([b"refused"])
            elif event < 0.98:
                self.reads[step] = len(self.committed)
                core.read_index(step)
            elif event < 0.984 and faulty:
                cut = set(draw.sample(list(self.nodes), draw.choice([0, 1, 1])))
            elif event < 0.987 and faulty:
                core.transfer_leader()
            if faulty and draw.random() < crash:
                self.boot(node)
            self.pump(node)

    def heal(self) -> None:
        """With nothing failing any more there must be one leader, and everybody must have everything."""
        for _ in range(HEALING_ROUNDS):
            for node in self.nodes:
                if self.random.random() < 0.1:
                    self.cores[node].tick()
                self.pump(node)
                self.sync(node, len(self.queued[node]))
                self.pump(node)
            delivered, self.network = self.network, []
            for message in delivered:
                self.cores[message.to_node].step(message)
                self.pump(message.to_node)
        leaders = [core for core in self.cores.values() if core.role is Role.LEADER]
        if len(leaders) != 1:
            raise Violation(f"{len(leaders)} leaders after healing")
        if any(len(log) != leaders[0].last_index for log in self.applied.values()):
            raise Violation("not everything was applied everywhere after healing")


def run(seed: int) -> int:
    """Runs one seed to its end; returns how many entries were committed. Violation."""
    cluster = Cluster(seed, random.Random(seed).choice([1, 3, 3, 5]))
    cluster.disturb()
    cluster.heal()
    return len(cluster.committed)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_clusters_keep_rafts_properties(first: int) -> None:
    committed = [run(seed) for seed in range(first, first + 10)]
    assert sum(committed) > 20 * len(committed), "too little was committed for this to prove anything"


def answer_before_the_disk(patch: pytest.MonkeyPatch) -> None:
    """What must wait for a sync is sent at once."""
    say = RaftCore.say
    patch.setattr(RaftCore, "say", lambda core, kind, to, *, durable=False, **rest: say(core, kind, to, **rest))


def read_without_asking(patch: pytest.MonkeyPatch) -> None:
    """A leader answers reads without proof that it still leads."""

    def answer(core: RaftCore) -> None:
        for node, request in core.reads.waiting:
            core.answer_read(node, request, core.commit_index)
        core.reads.waiting = []

    patch.setattr(leading, "start_read_round", answer)


def count_half_as_majority(patch: pytest.MonkeyPatch) -> None:
    """One vote too few is enough."""
    patch.setattr("raftstorage.node.raft.quorum.majority", lambda voters: max(1, len(voters) // 2))


def vote_for_anybody(patch: pytest.MonkeyPatch) -> None:
    """A candidate's log is not looked at."""
    last_term = property(lambda log: 0)
    patch.setattr("raftstorage.node.raft.log.RaftLog.last_term", last_term)


@pytest.mark.parametrize(
    "mutation",
    [
        answer_before_the_disk,
        read_without_asking,
        count_half_as_majority,
        vote_for_anybody,
    ],
)
def test_a_broken_core_is_noticed(
    mutation: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation(monkeypatch)
    for seed in range(150):
        try:
            run(seed)
        except Exception:  # a Violation, or an invariant of the core's own
            return
    pytest.fail(f"{mutation.__name__} was not noticed in 150 seeds")
