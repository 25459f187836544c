"""Garbage, found by following references beside commits that go on."""

from __future__ import annotations

import random
from unittest import mock

import pytest
from raftstorage.node import garbage
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.engine.references import references
from raftstorage.node.garbage import Marks
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import p64
from tests.unit.node import packing_node
from tests.unit.node.packing_node import TWO, Node, leading, record


@pytest.fixture
def node() -> Node:
    return leading()


# ---- marks ---------------------------------------------------------------------------------------------------


def test_marks_are_a_set_that_gives_each_once() -> None:
    numbers = random.Random(3)
    some = [numbers.choice([numbers.randrange(5000), numbers.randrange(1 << 64)]) for _ in range(3000)]
    marks = Marks()
    taken = []
    for number in some:
        marks.add(p64(number))
        assert p64(number) in marks
        if numbers.random() < 0.3:
            taken.append(marks.take())
    while (oid := marks.take()) is not None:
        taken.append(oid)
    assert len(taken) == len(set(taken)) == marks.visited
    assert set(taken) == {p64(number) for number in some}
    assert all((p64(number) in marks) == (number in some) for number in range(6000))


# ---- what is collected ---------------------------------------------------------------------------------------


def test_what_cannot_be_reached_is_collected(node: Node) -> None:
    node.write({0: [1, 2], 1: [3], 2: [], 3: [1], 4: [5], 5: [4, 1], 6: []})
    assert node.pack() is None
    node.apply()
    assert (node.replies[0].pack.phase, node.replies[0].pack.tid) == ("marking", node.engine.last_tid)
    node.finish()
    assert node.objects() == {0, 1, 2, 3}
    state = node.packer.state()
    assert (state.phase, state.removed_objects, state.removed_records, state.problem) == ("done", 3, 3, "")
    assert state.removed_bytes == sum(len(record(*refs)) for refs in ([5], [4, 1], []))
    assert len(list(node.engine._store.scan("records", b""))) == 4


def test_without_collecting_nothing_is_looked_for(node: Node) -> None:
    node.write({0: [1], 1: [], 9: []})
    node.write({1: []})
    node.pack(collect=False)
    node.apply()
    node.finish()
    assert node.objects() == {0, 1, 9}
    assert (node.packer.state().removed_records, node.packer.state().removed_objects) == (1, 0)


def test_what_was_reachable_only_before_the_pack_is_garbage(node: Node) -> None:
    node.write({0: [1], 1: [2], 2: []})
    node.write({0: []})
    node.pack()
    node.finish()
    assert node.objects() == {0}


def test_what_is_newer_than_the_pack_stays_with_all_it_refers_to(node: Node) -> None:
    tid = node.write({0: [1], 1: [], 5: [6], 6: [7], 7: [], 8: []})
    node.write({5: [6]})  # nothing refers to it, but it is newer
    node.pack(tid=tid)
    node.finish()
    assert node.objects() == {0, 1, 5, 6, 7}


def test_the_state_that_was_packed_to_keeps_what_it_refers_to(node: Node) -> None:
    """Whoever reads as of the pack, or undoes what came after it, needs it."""
    tid = node.write({0: [1], 1: [2], 2: []})
    node.write({0: []})
    node.pack(tid=tid)
    node.finish()
    assert node.objects() == {0, 1, 2}


def test_a_deleted_object_leads_nowhere(node: Node) -> None:
    node.write({0: [1], 1: [2], 2: []})
    node.delete(1)
    node.pack()
    node.finish()
    assert node.objects() == {0}
    assert node.packer.state().removed_objects == 1


@pytest.mark.parametrize("pieces", [0, 1], ids=["whole", "in fragments"])
@pytest.mark.parametrize("applied", [True, False], ids=["applied", "in flight"])
def test_what_commits_refer_to_meanwhile_is_kept(node: Node, pieces: int, applied: bool) -> None:
    node.write({0: [1], 1: [], 5: [6], 6: [], 7: [], 8: [9], 9: []})
    node.pack()
    node.apply()
    while node.packer.state().done < 2:
        assert node.packer.step()
    assert not node.log
    node.write({1: [5]}, pieces, apply=applied)
    while node.packer.step():
        pass
    node.finish()
    assert node.objects() == {0, 1, 5, 6}


def test_commits_in_flight_when_it_begins_count(node: Node) -> None:
    node.write({0: [1], 1: [], 5: [6], 6: [], 7: []})
    node.pack()
    node.write({1: [5]}, apply=False)
    node.apply(1)  # the pack
    while node.packer.step():
        pass
    assert node.log
    node.finish()
    assert node.objects() == {0, 1, 5, 6}


def test_many_commits_in_flight_are_read_later(node: Node) -> None:
    node.write({0: [1], 1: [], 5: [6], 6: [], 7: []})
    node.pack()
    node.apply()
    with mock.patch.object(garbage, "MOST_PENDING", 100):
        for _ in range(3):
            node.write({1: [5]}, apply=False)
            node.write({1: [5]}, apply=False)
        assert len(node.packer._collector._pending) < 3  # type: ignore[union-attr]
        node.finish()
    assert node.objects() == {0, 1, 5, 6}


def test_what_is_garbage_is_named_in_pieces_that_rise(node: Node) -> None:
    node.write({0: []})
    for base in range(0, 2000, 500):
        node.write({oid: [] for oid in range(base + 1, base + 501)})
    node.pack()
    node.apply()
    entries = []
    while node.packer.work:
        node.packer.step()
        entries += node.log
        node.apply()
    commands = [pb.Command.FromString(entry.data).collect for entry in entries]
    assert [command.last for command in commands] == [False] * (len(commands) - 1) + [True]
    assert all(len(command.oids) <= 8000 for command in commands)
    assert b"".join(command.oids for command in commands) == b"".join(p64(oid) for oid in range(1, 2001))
    assert node.objects() == {0}


def test_a_large_record_is_read_in_steps(node: Node) -> None:
    node.write({0: range(1, 30_001), 30_000: []})
    node.pack()
    node.apply()
    steps = 0
    while node.packer.step():
        steps += 1
    assert steps > 10


@pytest.mark.parametrize("data", [b"no pickle", b"N.U\x03abcQ."])
def test_a_record_that_cannot_be_read_ends_collecting_and_nothing_else(node: Node, data: bytes) -> None:
    node.write({0: [1], 1: [], 5: []})
    node.write({1: []})
    with mock.patch.object(packing_node, "record", lambda *oids: data):
        node.write({1: []})
    node.pack()
    node.finish()
    assert node.objects() == {0, 1, 5}
    state = node.packer.state()
    assert (state.phase, state.removed_records, state.removed_objects) == ("done", 2, 0)
    assert "cannot be read" in state.problem and p64(1).hex() in state.problem
    node.write({1: []})
    node.pack(TWO)
    node.finish()
    assert (node.objects(), node.packer.state().problem) == ({0, 1}, "")


def test_a_database_without_a_root_is_all_kept(node: Node) -> None:
    node.write({1: [2], 2: []})
    node.pack()
    node.finish()
    assert node.objects() == {1, 2}
    assert "no root" in node.packer.state().problem


def test_a_new_leader_begins_anew(node: Node) -> None:
    node.write({0: [1], 1: [], 5: [], 6: []})
    node.pack()
    node.apply()
    assert node.packer.step()
    node.term += 1
    node.packer.lost_leadership()
    assert not node.packer.work and node.packer.state().phase == "marking"
    node.write({1: [5]})
    node.packer.became_ready()
    node.finish()
    assert node.objects() == {0, 1, 5}


def test_a_deposed_leader_proposes_nothing_more(node: Node) -> None:
    node.write({0: [], 5: []})
    node.pack()
    node.apply()
    node.leads = False
    while node.packer.step():
        pass
    assert not node.log and node.objects() == {0, 5}


@pytest.mark.parametrize("root", [0, 1])
def test_garbage_is_named_when_the_log_takes_something_again(node: Node, root: int) -> None:
    """Leadership was to be handed over, and was not: nobody begins anew. Without a root nothing is garbage."""
    node.write({root: [], 5: []})
    node.pack()
    node.apply()
    node.leads = False
    for _ in range(3):
        while node.packer.step():
            pass
        assert node.packer.refused and not node.log
    node.leads = True
    node.finish()
    assert not node.packer.refused and node.packer.state().phase == "done"
    assert node.objects() == ({0} if root == 0 else {1, 5})


# ---- at random -----------------------------------------------------------------------------------------------


def reachable(engine: MemoryEngine, tid: bytes, start: int = 0) -> set[int]:
    """As of `tid`."""
    found, todo = set(), [p64(start)]
    while todo:
        oid = todo.pop()
        if oid in found:
            continue
        try:
            revision = engine.load_before(oid, p64(int.from_bytes(tid, "big") + 1))
        except KeyError:
            continue
        if revision is not None and revision.data is not None:
            found.add(oid)
            todo += references(revision.data)
    return {int.from_bytes(oid, "big") for oid in found}


@pytest.mark.parametrize("seed", range(25))
def test_nothing_that_can_be_reached_is_ever_collected(seed: int) -> None:
    """Commits go on while packs do, some in fragments, some in flight for long; leaders change."""
    with mock.patch.object(garbage, "STEP", 2), mock.patch.object(garbage, "BATCH", 3):
        collect_at_random(seed)


def collect_at_random(seed: int) -> None:
    dice = random.Random(seed)
    node = leading()
    node.write({0: range(6), **{oid: [] for oid in range(1, 40)}})
    tids = [node.engine.last_tid]
    last = node.engine.last_tid
    for number in range(300):
        node.packer.step()
        if dice.random() < 0.5:
            node.apply(dice.randrange(4))
        if dice.random() < 0.3:
            # Clients may have reached some objects earlier that nothing refers to any more.
            now = reachable(node.engine, last)
            before = [
                oid for oid in node.objects() - now if not reachable(node.engine, last, oid) & node.collected
            ]
            known = sorted(now.union(before))
            written = dice.sample(known, min(len(known), dice.randrange(1, 4)))
            refs = {oid: dice.choices(known, k=dice.randrange(4)) for oid in written}
            node.write(refs, dice.randrange(2), apply=False)
        if dice.random() < 0.05:
            node.apply()
            tids.append(node.engine.last_tid)
            node.pack(b"%016d" % number, dice.choice(tids))
        if dice.random() < 0.02:
            node.packer.lost_leadership()
            node.apply()
            node.term += 1
            node.packer.became_ready()
        last, packed = node.engine.last_tid, node.engine.packed
        for tid in {last, *(tid for tid in tids if tid >= packed)} if number % 10 == 9 else ():
            for oid in reachable(node.engine, tid):
                revision = node.engine.load_before(p64(oid), p64(int.from_bytes(tid, "big") + 1))
                assert revision is not None and revision.data is not None
                for each in references(revision.data):
                    found = node.engine.load_before(each, p64(int.from_bytes(tid, "big") + 1))
                    assert found is not None and found.data is not None
    node.apply()
    node.finish()
    node.write({0: [1]})
    node.pack(b"in the end......")
    node.finish()
    assert node.objects() == reachable(node.engine, node.engine.last_tid)
