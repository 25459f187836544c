"""The same promises as in test_commit_properties when transactions come in parts: large ones and whole ones mixed,
looked at in slices between everything else that happens, and their runs of entries cut by elections anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from raftstorage.node import examination, works
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.proto import storage_pb2 as pb

from tests.unit.pieces import gathered, pieces, put_together
from tests.unit.service.fuzzing import Reply, explore
from tests.unit.transactions.test_commit_properties import CommitMachine, specs, who


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that three objects take several slices, and make a transaction wide."""
    monkeypatch.setattr(examination, "SLICE", 1)
    monkeypatch.setattr(works, "WIDE", 2)
    yield


class LargeCommitMachine(CommitMachine):
    engine = MemoryEngine

    @initialize(shapes=st.lists(st.lists(st.integers(1, 2), max_size=3), min_size=1, max_size=5))
    def shape(self, shapes: list[list[int]]) -> None:
        """How many records go into which part: in turn, for each request; none: it comes whole."""
        self.shapes = shapes
        self.turn = 0

    def hand_in(self, call: Any, reply: Reply, body: bytes) -> None:
        self.turn += 1
        shape = self.shapes[self.turn % len(self.shapes)]
        bodies, rest = pieces(pb.Transaction.FromString(body), shape, cut=3)
        if not bodies:
            super().hand_in(call, reply, body)
            return
        parts = gathered(reply.txn.identity, bodies, rest)
        call(reply.owner, reply.txn.identity, pb.Transaction.FromString(rest), rest, self.now, reply, parts)

    def body_of(self, command: pb.Command) -> bytes:
        """Of a large one: the entries before it in the log hold it."""
        count = command.commit.fragments
        if not count:
            return super().body_of(command)
        run = [pb.Command.FromString(data) for _term, data in self.committed[-1 - count : -1]]
        assert [each.fragment.number for each in run] == list(range(count))
        return put_together([*(each.fragment.transaction for each in run), command.commit.transaction])

    @rule(number=who, count=st.sampled_from([1, 1, 2, 9]))
    def look_on(self, number: int, count: int) -> None:
        """As a service does, in turns of its loop."""
        coordinator = self.nodes[number].coordinator
        for _ in range(count):
            coordinator.advance(self.now)

    @rule(
        several=st.lists(specs, min_size=3, max_size=5), steps=st.lists(st.integers(0, 3), min_size=5, max_size=5)
    )
    def look_while_others_commit(self, several: list[Any], steps: list[int]) -> None:
        """All at the leader: votes that are looked at in slices, and commits that are applied in between."""
        self.commit_and_apply(9)
        leader = self.nodes.index(self.leader)
        for (_at, writes, checks, _given, then, _to), count in zip(several, steps, strict=False):
            self.transact(8, writes, checks, None, "commit" if then == "commit" else "vote", 8)
            self.look_on(leader, count)
            if count == 0:
                self.commit_and_apply(9)
        self.look_on(leader, 20)
        for txn in [each for each in self.txns.values() if each.state == "voted" and each.voted_at is self.leader]:
            self._ask(txn, self.leader, "finish", 1)
        self.commit_and_apply(9)


def test_large_commits_over_leaders_that_come_and_go() -> None:
    explore(LargeCommitMachine, 400, steps=50)
