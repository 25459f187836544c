"""Orders of packs: which are taken, refused, or done already."""

from __future__ import annotations

import pytest
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.node.tids import timestamp_tid
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import p64
from tests.unit.node.packing_node import ONE, TWO, Node, leading


@pytest.fixture
def node() -> Node:
    return leading()


def test_the_same_pack_twice_is_one(node: Node) -> None:
    node.write({0: []})
    assert node.pack() is None
    assert node.pack() is None
    node.apply()
    assert [event.pack.pack_id for event in node.replies] == [ONE, ONE]
    assert node.engine.applied_index == 2
    node.replies.clear()
    again = node.pack()
    assert again is not None and again.pack.pack_id == ONE


def test_another_pack_is_refused_while_one_runs(node: Node) -> None:
    node.write({0: [], 1: []})
    node.pack()
    refused = node.pack(TWO)
    assert refused is not None and refused.failure.reason == pb.BUSY
    node.apply()
    node.replies.clear()
    for _ in range(2):
        refused = node.pack(TWO)
        assert refused is not None and refused.failure.reason == pb.BUSY
        assert "another pack is under way" in refused.failure.message and refused.failure.retry_after_ms
        node.packer.step()
    node.finish()
    node.write({1: []})
    assert node.pack(TWO) is None


@pytest.mark.parametrize("collect", [True, False])
def test_packs_to_no_later_time_are_done_at_once(node: Node, collect: bool) -> None:
    empty = node.pack(tid=timestamp_tid(node.now))
    assert empty is not None and (empty.pack.phase, empty.pack.tid, empty.pack.pack_id) == ("done", b"", ONE)
    first = node.write({0: [], 1: []})
    last = node.write({0: []})
    early = node.pack(tid=p64(int.from_bytes(first, "big") - 1))
    assert early is not None and (early.pack.phase, early.pack.tid) == ("done", b"")
    node.pack(tid=timestamp_tid(node.now))
    node.finish()
    node.replies.clear()
    before = node.engine.digest()
    for tid in (first, last, timestamp_tid(node.now)):
        done = node.pack(TWO, tid, collect)
        assert done is not None and (done.pack.phase, done.pack.tid, done.pack.pack_id) == ("done", last, TWO)
    assert node.engine.digest() == before and not node.log


def test_garbage_may_be_looked_for_after_a_pack_that_did_not(node: Node) -> None:
    node.write({0: [], 1: []})
    node.pack(collect=False)
    node.finish()
    node.pack(TWO)
    node.finish()
    assert node.objects() == {0}


def test_a_pack_in_the_future_is_refused(node: Node) -> None:
    node.write({0: []})
    future = node.pack(tid=timestamp_tid(node.now + 61))
    assert future is not None and future.failure.reason == pb.INVALID
    assert node.pack(tid=timestamp_tid(node.now + 59)) is None
    node.finish()
    node.replies.clear()
    node._tid = int.from_bytes(timestamp_tid(node.now + 10_000), "big")
    last = node.write({0: []})  # this leader's clock is behind what was committed
    assert node.pack(TWO, last) is None


def test_who_loses_leadership_says_so(node: Node) -> None:
    node.write({0: []})
    node.pack()
    node.packer.lost_leadership()
    assert node.replies.pop().failure.reason == pb.LEADERSHIP_LOST
    node.packer.became_ready()
    node.log.clear()
    node.pack()
    node.term += 1
    node.log = [Entry(node.term, node.log[0].index, EntryKind.NOOP, b"")]
    node.apply()
    assert node.replies.pop().failure.reason == pb.LEADERSHIP_LOST
    node.leads = False
    refused = node.pack()
    assert refused is not None and refused.failure.reason == pb.NOT_LEADER
