"""A coordinator with an engine and a log, for the property tests of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftstorage.node.raft.types import Entry, EntryKind, NotLeader
from raftstorage.node.transactions import Coordinator
from raftstorage.node.works import CoordinatorLimits

from tests.unit.service.fuzzing import Reply

LEASE = 30.0


class Node:
    """A coordinator with its engine and a log of (term, data), which others may cut."""

    def __init__(self, world: Any, limits: CoordinatorLimits) -> None:
        self.world = world
        self.engine = world.engine()
        self.log: list[tuple[int, bytes]] = []
        self.open: list[Reply] = []
        self.term = self.begins = 0
        self.leads = self.ready = self.busy = False
        self.coordinator = Coordinator(
            self.engine,
            lambda data: self.propose([data]),
            lambda: self.term,
            lambda: world.wall,
            LEASE,
            limits,
            propose_many=self.propose,
        )

    def propose(self, data: Sequence[bytes]) -> int:
        if not self.leads or self.busy:
            raise NotLeader("no")
        self.log += [(self.term, each) for each in data]
        return len(self.log) - len(data) + 1

    def step_down(self) -> None:
        self.leads = self.ready = False
        self.coordinator.lost_leadership()
        assert not self.open, "somebody waits for what this node cannot decide any more"

    def apply(self, count: int) -> None:
        """As a driver does: the role is gone already, but the listeners hear of it after what was applied."""
        begin = self.engine.applied_index
        batch = self.world.committed[begin : begin + count]
        end = begin + len(batch)
        deposed = self.leads and self.log[begin:end] != batch
        if deposed:
            self.leads = False
        if self.log[:end] != self.world.committed[:end]:
            self.log = self.world.committed[:end]
        applied = []
        for index, (term, data) in enumerate(batch, begin + 1):
            kind = EntryKind.COMMAND if data else EntryKind.NOOP
            entry = Entry(term, index, kind, data)
            applied.append((entry, self.engine.apply(entry)))
        self.coordinator.applied(applied, self.world.now)
        if deposed:
            self.step_down()
        elif self.leads and not self.ready and end >= self.begins:
            self.ready = True
            self.coordinator.became_ready()
