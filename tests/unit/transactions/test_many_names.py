"""Transactions that name very many objects: what holds the names grows, and is let go, a little at a time."""

from __future__ import annotations

import sys

import pytest
from raftstorage.node import works
from raftstorage.node.engine.api import Z64
from raftstorage.node.parts import Serials

from tests.unit.transactions.test_large_transactions import NOW, A, B, Node, change, oid, reserved


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.mark.parametrize("committed", [True, False])
def test_the_names_of_very_many_objects_are_freed_in_pieces(
    node: Node, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    monkeypatch.setattr(works, "MANY", 50)
    node.vote(A, change(*range(100, 200), checks=range(300, 330)))
    node.turn()
    if committed:
        node.finish(A)
        node.apply()
    else:
        node.coordinator.abort(A, NOW)
    assert 5 < node.turn() < 100, "all at once, or never"
    again = node.vote(B, change(*range(100, 200), base=node.engine.last_tid if committed else Z64))
    node.turn()
    assert reserved(again)


def test_what_holds_very_many_names_grows_a_little_at_a_time() -> None:
    """No thousand of names makes more than a few of its dictionaries grow."""
    serials = Serials()
    sizes = [sys.getsizeof(shard) for shard in serials._shards]
    most = 0
    for start in range(0, 300_000, 1000):
        for number in range(start, start + 1000):
            assert serials.add(oid(number), Z64)
        now = [sys.getsizeof(shard) for shard in serials._shards]
        if start >= 50_000:  # small ones grow in no time
            most = max(most, sum(before != after for before, after in zip(sizes, now, strict=True)))
        sizes = now
    assert 1 <= most <= 3
    assert len(serials) == 300_000 and oid(77_777) in serials and oid(300_000) not in serials
    assert serials[oid(5)] == Z64 and not serials.add(oid(5), Z64)
    assert sorted(serials) == [oid(number) for number in range(300_000)]
