"""Orders of packs, and garbage found by following references, beside commits that go on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from unittest import mock

import pytest
from raftstorage.node import garbage
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.engine.api import Z64
from raftstorage.node.engine.references import references
from raftstorage.node.garbage import Marks
from raftstorage.node.packing import Packer
from raftstorage.node.raft.types import Entry, EntryKind, NotLeader
from raftstorage.node.tids import timestamp_tid
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import p64, run

ONE, TWO = b"1" * 16, b"2" * 16


def record(*oids: int, size: int = 0) -> bytes:
    """A ZODB record that refers to `oids`."""
    refs = b"".join(b"C\x08" + p64(oid) + b"Q" for oid in oids)
    return b"\x80\x03cmodule\nClass\nq\x00.\x80\x03]q\x01(C%c" % size + b"x" * size + refs + b"e."


class Node:
    """An engine behind a log: entries wait in it until `apply`."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.log: list[Entry] = []
        self.term = 1
        self.leads = True
        self.collected: set[int] = set()  # named in the log as garbage
        self.replies: list[pb.Event] = []
        self.packer = Packer(self.engine, self.propose, lambda: self.term, lambda: self.last_index)
        self.now = 1_700_000_000.0
        self._tid = 100

    @property
    def last_index(self) -> int:
        return self.engine.applied_index + len(self.log)

    def propose(self, data: bytes) -> int:
        return self.propose_many([data])

    def propose_many(self, data: Sequence[bytes]) -> int:
        if not self.leads:
            raise NotLeader("no")
        first = self.last_index + 1
        self.log += [Entry(self.term, first + at, EntryKind.COMMAND, each) for at, each in enumerate(data)]
        self.packer.proposed(first, data)
        for each in data:
            garbage = pb.Command.FromString(each).collect.oids
            self.collected |= {int.from_bytes(garbage[at : at + 8], "big") for at in range(0, len(garbage), 8)}
        return first

    def apply(self, most: int = 1 << 30) -> None:
        some, self.log = self.log[:most], self.log[most:]
        for entry in some:
            self.packer.applied([(entry, self.engine.apply(entry))])

    def write(self, objects: dict[int, Iterable[int]], pieces: int = 0, apply: bool = True) -> bytes:
        """Proposes a transaction; an object refers to those it is mapped to. Returns its tid."""
        self._tid += 1
        tid = p64(self._tid)
        transaction = pb.Transaction()
        for oid, refs in objects.items():
            base = self.engine.current_serial(p64(oid)) or Z64
            transaction.records.add(oid=p64(oid), base_serial=base, data=record(*refs))
        body = transaction.SerializeToString()
        self.propose_many(run(tid * 2, tid, [body] if pieces else [], b"" if pieces else body))
        if apply:
            self.apply()
        return tid

    def delete(self, *oids: int) -> None:
        self._tid += 1
        tid, transaction = p64(self._tid), pb.Transaction()
        for oid in oids:
            base = self.engine.current_serial(p64(oid)) or Z64
            transaction.records.add(oid=p64(oid), base_serial=base, no_data=True)
        self.propose_many(run(tid * 2, tid, [], transaction.SerializeToString()))
        self.apply()

    def pack(self, name: bytes = ONE, tid: bytes | None = None, collect: bool = True) -> pb.Event | None:
        """The answer, if it came at once."""
        asked = pb.Pack(pack_id=name, tid=tid or self.engine.last_tid, collect=collect)
        self.packer.pack(asked, self.now, self.replies.append)
        return self.replies.pop() if self.replies else None

    def finish(self) -> None:
        """Steps and applies until nothing is left to do."""
        for _ in range(10_000):
            if not self.packer.step():
                if not self.log:
                    break
                self.apply()
        assert not self.packer.work and not self.log

    def objects(self) -> set[int]:
        """Those that can be read."""
        found, start = set(), b""
        while True:
            page, start = self.engine.current_page(start, b"", 1 << 20)
            found |= {int.from_bytes(each.oid, "big") for each in page}
            if not start:
                return found


@pytest.fixture
def node() -> Node:
    made = Node()
    made.packer.became_ready()
    return made


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
    with mock.patch(f"{__name__}.record", lambda *oids: data):
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


# ---- orders --------------------------------------------------------------------------------------------------


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
    node = Node()
    node.packer.became_ready()
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
