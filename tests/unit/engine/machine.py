"""A machine that holds engines against the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.engine.api import Z64, Applied, Packed, Position, add_page
from raftstorage.node.engine.state import MAX_ALLOCATION, RETENTION, StateMachine
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.blob_model import blob_commands, check_blobs
from tests.unit.engine.commands import entry, p64
from tests.unit.engine.model import HALF, LAST, OIDS, Kept, Model, commands, mangled, u64

counts = st.sampled_from([0, 1, 3, 4096, MAX_ALLOCATION, MAX_ALLOCATION + 1, 2 * HALF - 1])


def allocate(count: int) -> bytes:
    return pb.Command(allocate=pb.AllocateCommand(count=count)).SerializeToString()


STARTS = st.sampled_from([b"", *map(p64, OIDS), LAST])
NAMES = st.sampled_from([b"%015d" % number + b"p" for number in range(3)] + [b"short"])


def answer(call: Callable[[bytes, bytes], object], oid: bytes, tid: bytes) -> object:
    """What it returns, or the class of what it raises."""
    try:
        return call(oid, tid)
    except (KeyError, Packed) as error:
        return type(error), getattr(error, "packed", b"")


class EngineMachine(RuleBasedStateMachine):
    """`engines`: those that must all do what the model does."""

    engines: list[StateMachine]

    def made(self, retention: int) -> list[StateMachine]:
        return [MemoryEngine(retention)]

    @initialize(retention=st.sampled_from([3, 8, RETENTION]))
    def begin(self, retention: int) -> None:
        self.model = Model(retention)
        self.engines = self.made(retention)

    def feed(self, data: bytes) -> None:
        kind, expected = self.model.apply(data)
        event(kind)
        self.expect(data, kind, expected)

    def expect(self, data: bytes, kind: str, expected: Applied) -> None:
        for engine in self.engines:
            outcome = engine.apply(entry(self.model.index, data))
            assert bool(outcome.refused) == bool(expected.refused), (kind, outcome)
            # Of several reasons to refuse fragments it is the first one that is told.
            names = set(Applied.__slots__) - {"refused", *(["missing"] if kind == "malformed" else [])}
            known, wanted = [{name: getattr(each, name) for name in names} for each in (outcome, expected)]
            assert known == wanted
            with pytest.raises(ValueError, match="cannot follow"):
                engine.apply(entry(self.model.index, data))

    @rule(data=st.data(), count=st.integers(1, 6))
    def commit(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.feed(data.draw(commands(self.model)))

    @rule(data=st.data(), count=st.integers(1, 4))
    def upload(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.feed(data.draw(blob_commands(self.model)))

    @rule(data=st.data())
    def meaningless(self, data: st.DataObject) -> None:
        self.feed(data.draw(st.one_of(st.binary(max_size=60), mangled(data.draw(commands(self.model))))))

    @rule(count=counts)
    def allocate(self, count: int) -> None:
        self.feed(allocate(count))

    @rule(at=st.integers(0, 9), by=st.sampled_from([0, 0, 0, -1, 1, HALF]), collect=st.booleans(), name=NAMES)
    def pack(self, at: int, by: int, collect: bool, name: bytes) -> None:
        tids = [self.model.last, self.model.pack.tid or Z64, *(each.tid for each in self.model.transactions)]
        tid = p64(max(0, min(u64(tids[at % len(tids)]) + by, 2 * HALF - 1)))
        pack = pb.PackCommand(pack_id=name, tid=tid, collect=collect)
        self.feed(pb.Command(pack=pack).SerializeToString())

    @rule(
        oids=st.lists(st.sampled_from(OIDS), unique=True).map(sorted),
        name=st.one_of(st.none(), st.none(), st.none(), NAMES),
        flaw=st.sampled_from([b""] * 9 + [b"1", bytes(16)]),
        last=st.booleans(),
    )
    def collect(self, oids: list[int], name: bytes | None, flaw: bytes, last: bool) -> None:
        garbage = b"".join(map(p64, oids)) + flaw
        name = self.model.pack.pack_id if name is None else name
        self.feed(pb.Command(collect=pb.CollectCommand(pack_id=name, oids=garbage, last=last)).SerializeToString())

    @rule(data=st.data(), budget=st.sampled_from([1, 2, 3, 10, 1000]), steps=st.sampled_from([1, 1, 2, 5, 1000]))
    def remove(self, data: st.DataObject, budget: int, steps: int) -> None:
        """On one of the engines: how far another one is makes no difference."""
        engine = data.draw(st.sampled_from(self.engines))
        state = engine.pack_state()
        more = state.phase == "removing"
        for _ in range(steps):
            assert engine.pack_step(budget) <= more
            more = engine.pack_state().phase == "removing"
        if steps == 1000:
            assert not more

    @rule(data=st.data())
    def ask_for_conflicts(self, data: st.DataObject) -> None:
        command = pb.Command.FromString(data.draw(commands(self.model)))
        try:
            transaction = pb.Transaction.FromString(command.commit.transaction)
        except DecodeError:
            return
        if self.model.well_formed(command.commit, transaction):
            for engine in self.engines:
                assert engine.conflicts(transaction) == self.model.conflicts(transaction)

    @rule(start=st.integers(-1, 9), stop=st.integers(-1, 9), size=st.sampled_from([0, 1, 60, 150, 1 << 20]))
    def page(self, start: int, stop: int, size: int) -> None:
        every = self.model.seen_transactions()
        tids = [Z64, *(each.tid for each in self.model.transactions), LAST]
        low, high = tids[start % len(tids)], None if stop < 0 else tids[stop % len(tids)]
        expected = [each for each in every if low <= each.tid and (high is None or each.tid <= high)]
        for engine in self.engines:
            got: list[pb.CommittedTransaction] = []
            at: Position | None = Position(low)
            while at is not None:
                tid, skip = at
                page, at = engine.transactions(tid, high, size, skip)
                assert len(page) <= 1 or sum(len(r.data) for each in page for r in each.records) <= size
                add_page(got, page, skip)
            assert got == expected

    @rule(after=st.integers(-1, 9), limit=st.integers(0, 9))
    def changed_since(self, after: int, limit: int) -> None:
        tids = [Z64, *(each.tid for each in self.model.transactions), LAST]
        tid = tids[after % len(tids)]
        every, seen = [
            [(each.tid, tuple(r.oid for r in each.records)) for each in some if each.tid > tid]
            for some in (self.model.transactions, self.model.seen_transactions())
        ]
        for engine in self.engines:
            found = engine.changed_since(tid, limit)
            assert [each for each in every if each in found] == found
            assert len(found) == min(limit, len(engine.changed_since(tid, 1000)))
            newest = [each for each in every if each[0] <= self.model.pack.tid][-1:]
            assert limit < 9 or len(found) == 9 or all(each in found for each in newest)
            if limit == 9:
                assert {each[0] for each in found} >= {each[0] for each in seen[:limit]} or len(found) == 9

    @rule(before=st.integers(-1, 9), count=st.integers(1, 9))
    def transaction_log(self, before: int, count: int) -> None:
        tids = [LAST, *(each.tid for each in self.model.transactions), Z64, b""]
        at = tids[before % len(tids)]
        expected = [each for each in reversed(self.model.seen_transactions()) if each.tid < (at or LAST)]
        for each in expected:
            del each.records[:]
        for engine in self.engines:
            got, more = engine.transaction_log(at, count)
            assert (got, len(got) == count or not more) == (expected[:count], True)
            while more:
                page, more = engine.transaction_log(more, count)
                got += page
            assert got == expected

    @rule(
        start=st.sampled_from([b"", *map(p64, OIDS), LAST]),
        size=st.sampled_from([1, 60, 1000]),
        at=st.integers(-1, 9),
    )
    def current_records(self, start: bytes, size: int, at: int) -> None:
        tids = [b"", *(each.tid for each in self.model.transactions), LAST]
        before = tids[at % len(tids)]
        for engine in self.engines:
            if before and before <= self.model.pack.tid:
                with pytest.raises(Packed):
                    engine.current_page(start, before, size)
                continue
            got, more = engine.current_page(start, before, size)
            while more:
                page, more = engine.current_page(more, before, size)
                assert len(page) <= 1 or sum(len(each.record.data) for each in page) <= size
                got += page
            expected = []
            for oid in [oid for oid in sorted(self.model.revisions) if oid >= start]:
                found = self.model.load_before(oid, before or LAST) if self.model.seen(oid) else None
                if found is not None and found.data is not None:
                    record = pb.Record(data=found.data, serial=found.serial, next_serial=found.next_serial or b"")
                    expected.append(pb.FoundRecord(oid=oid, record=record))
            assert got == expected

    @rule(start=STARTS, budget=st.integers(1, 9))
    def unchanged(self, start: bytes, budget: int) -> None:
        current = {oid: self.model.seen(oid)[-1:] for oid in sorted(self.model.revisions) if oid >= start}
        for engine in self.engines:
            got, more = engine.unchanged(start, budget)
            while more:
                page, more = engine.unchanged(more, budget)
                got += page
            assert got == [oid for oid, last in current.items() if last and last[0].serial <= self.model.pack.tid]

    @invariant()
    def reads_answer_as_the_model(self) -> None:
        for engine in getattr(self, "engines", []):
            self.check(engine, self.model)
        assert len({engine.digest() for engine in getattr(self, "engines", [])}) <= 1

    def check(self, engine: StateMachine, model: Model) -> None:
        assert (engine.applied_index, engine.last_tid) == (model.index, model.last)
        assert (engine.pack, engine.packed) == (model.pack, model.pack.tid)
        if engine.pack_state().phase in ("", "done"):
            assert engine.approximate_size()[1] == sum(model.seen(oid) != [] for oid in model.revisions)
        for number in range(13):
            identity = b"%016d" % number
            assert engine.transaction_tid(identity) == model.ids.get(identity, (None,))[0]
        check_blobs(engine, model)
        infos = {each.tid: each for each in model.transactions}
        for oid in map(p64, OIDS):
            self.check_object(engine, oid, model.seen(oid), infos)
            self.check_loads(engine, oid)

    def check_loads(self, engine: StateMachine, oid: bytes) -> None:
        every = [each.serial for each in self.model.revisions.get(oid, [])]
        tids = [LAST, Z64, self.model.pack.tid or p64(1), *every, *(p64(u64(serial) + 1) for serial in every)]
        for tid in [*tids, p64(u64(self.model.pack.tid) + 1)]:
            assert answer(engine.load_before, oid, tid) == answer(self.model.load_before, oid, tid)
        for serial in set(every) - {each.serial for each in self.model.seen(oid)}:
            with pytest.raises(KeyError):
                engine.load_serial(oid, serial)

    def check_object(self, engine: StateMachine, oid: bytes, revisions: Sequence[Kept], infos: Any) -> None:
        if not revisions:
            assert engine.current_serial(oid) is None
            with pytest.raises(KeyError):
                engine.history(oid, 1)
            return
        serials = [each.serial for each in revisions]
        assert engine.current_serial(oid) == serials[-1]
        for each in revisions:
            if each.data is None:
                with pytest.raises(KeyError):
                    engine.load_serial(oid, each.serial)
            else:
                assert engine.load_serial(oid, each.serial) == each.data
        before = p64(u64(serials[-1]) - 1)
        if before not in serials:
            with pytest.raises(KeyError):
                engine.load_serial(oid, before)
        expected = [
            pb.Revision(
                tid=each.serial,
                user=infos[each.serial].user,
                description=infos[each.serial].description,
                extension=infos[each.serial].extension,
                size=len(each.data or b""),
                no_data=each.data is None,
            )
            for each in reversed(revisions)
        ]
        for size in (1, len(revisions), 10_000):
            assert engine.history(oid, size) == (expected[:size], len(expected) > size)

    def teardown(self) -> None:
        for engine in getattr(self, "engines", []):
            engine.close()
