"""Reading everything as of a transaction: the same on every replica, whatever is applied or removed meanwhile."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from binascii import hexlify
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from raftstorage.node.engine import MemoryEngine, RocksEngine
from raftstorage.node.engine.api import Interrupted, Packed, Verification
from raftstorage.node.engine.kv import MemoryStore
from raftstorage.node.engine.layout import INLINE_BYTES, seal
from raftstorage.node.engine.state import RETENTION, StateMachine
from raftstorage.node.engine.verifying import MOST_PROBLEMS, STEP_BYTES, STEP_ITEMS
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import change, feed, in_fragments, p64
from tests.unit.engine.machine import EngineMachine
from tests.unit.engine.test_engine_blobs import DATA, upload, with_blob
from tests.unit.node.packing_node import record
from tests.unit.service.fuzzing import explore


def finish(verification: Verification) -> tuple[bytes, list[str]]:
    """Its digest, and all problems."""
    while verification.step():
        pass
    return verification.digest, verification.problems


def verify(engine: StateMachine, tid: bytes | None = None, references: bool = False) -> tuple[bytes, list[str]]:
    return finish(engine.verification(engine.last_tid if tid is None else tid, references))


# ---- against the model -----------------------------------------------------------------------------------------


class VerifyingMachine(EngineMachine):
    """Two engines, which remove what was packed each in its own time; verifications go on between other things."""

    def made(self, retention: int) -> list[StateMachine]:
        self.directory = Path(tempfile.mkdtemp())
        self.under_way: list[tuple[Verification, bytes]] = []
        return [MemoryEngine(retention), RocksEngine(self.directory / "db", retention)]

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)

    @invariant()
    def all_see_the_same(self) -> None:
        found = {(digest, *problems) for digest, problems in map(verify, getattr(self, "engines", []))}
        assert all(len(each) == 1 for each in found)
        assert len(found) <= 1

    @rule(at=st.integers(0, 9))
    def verify(self, at: int) -> None:
        tids = [self.model.last, *(each.tid for each in self.model.transactions)]
        tid = tids[at % len(tids)]
        if tid < (self.model.pack.tid or b""):
            for engine in self.engines:
                with pytest.raises(Packed):
                    engine.verification(tid, False)
            return
        begun = [engine.verification(tid, False) for engine in self.engines]
        found = [verify(engine, tid) for engine in self.engines]
        assert found[0] == found[1]
        assert found[0][1] == []
        self.under_way += [(each, found[0][0]) for each in begun]

    @precondition(lambda self: getattr(self, "under_way", None))
    @rule(at=st.integers(0, 9), steps=st.integers(1, 5))
    def go_on(self, at: int, steps: int) -> None:
        verification, expected = self.under_way[at % len(self.under_way)]
        try:
            for _ in range(steps):
                if not verification.step():
                    assert (verification.digest, verification.problems) == (expected, [])
                    self.under_way.remove((verification, expected))
                    return
        except Interrupted:
            assert verification.packed != self.model.pack.tid or self.model.pack.collect
            self.under_way.remove((verification, expected))


def test_replicas_agree_whatever_they_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftstorage.node.engine.verifying.STEP_ITEMS", 2)
    explore(VerifyingMachine, 40, steps=30)


# ---- what it counts and finds ----------------------------------------------------------------------------------


def filled(engine: StateMachine) -> StateMachine:
    """A root that refers to an object of two revisions, another with data apart, a blob, and one in fragments."""
    root = pb.Transaction()
    root.records.add(oid=p64(0), data=record(1, 2, 3))
    for number in (1, 2):
        root.records.add(oid=p64(number), data=record())
    feed(engine, *in_fragments(b"%016d" % 10, 10, root))
    feed(engine, *upload(DATA))
    feed(engine, *in_fragments(b"%016d" % 20, 20, with_blob(3)))
    later = change(1, base=10, size=INLINE_BYTES)
    feed(engine, *in_fragments(b"%016d" % 30, 30, later))
    feed(engine, *in_fragments(b"%016d" % 40, 40, change(4), change(5), change(6)))
    return engine


def test_everything_is_read_and_counted(engine: StateMachine) -> None:
    filled(engine)
    verification = engine.verification(engine.last_tid, False)
    assert finish(verification)[1] == []
    assert (verification.records, verification.blobs) == (8, 1)
    assert verification.bytes_read > len(DATA) + INLINE_BYTES
    # As of an earlier transaction there is less, and another digest.
    earlier = engine.verification(p64(20), False)
    assert finish(earlier)[1] == []
    assert earlier.records == 4
    assert earlier.digest != verification.digest


def test_a_step_is_bounded(engine: StateMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(engine)
    for start in range(100, 400, 100):
        feed(engine, *in_fragments(b"%016d" % start, start, change(*range(start, start + 90))))
    reads = []
    get = type(engine._store).get
    monkeypatch.setattr(
        type(engine._store), "get", lambda self, family, key: (reads.append(key), get(self, family, key))[1]
    )
    verification = engine.verification(engine.last_tid, False)
    steps = 1
    while verification.step():
        assert len(reads) <= STEP_ITEMS + STEP_BYTES // (256 << 10) + 2
        reads.clear()
        steps += 1
    assert steps > 270 // STEP_ITEMS


@pytest.mark.parametrize("family", ["records", "data", "blobs", "transactions"])
def test_damage_is_found_and_told_where(family: str) -> None:
    store = MemoryStore()
    engine = filled(StateMachine(store, RETENTION))
    digest, _ = verify(engine)
    for key, value in list(store.scan(family, b"")):
        if family == "blobs" and len(key) == 8:
            continue
        broken = value[:-6] + bytes([value[-6] ^ 1]) + value[-5:]
        store.write([(family, key, broken)])
        found, problems = verify(engine)
        assert found == b""
        assert any("checksum" in problem for problem in problems), problems
        store.write([(family, key, value)])
    assert verify(engine) == (digest, [])


def test_what_is_sealed_but_another_thing_is_found_by_comparing() -> None:
    one, other = (filled(StateMachine(MemoryStore(), RETENTION)) for _ in range(2))
    assert verify(one) == verify(other)
    key, value = next((k, v) for k, v in other._store.scan("records", b"") if len(v) > 30)
    other._store.write([("records", key, seal(value[:-5] + bytes([value[-5] ^ 1])))])
    assert verify(other)[1] == []
    assert verify(one)[0] != verify(other)[0]


def test_a_record_that_is_gone_is_missed() -> None:
    engine = filled(StateMachine(MemoryStore(), RETENTION))
    engine._store.write([("records", p64(4) + p64(40), None)])
    assert verify(engine)[1] == ["transactions name 8 records, and 7 are there"]


def test_fragments_that_nothing_followed_are_not_there(engine: StateMachine) -> None:
    parts = [change(*range(start, start + 1000)) for start in range(100, 4100, 1000)]
    feed(engine, *in_fragments(b"%016d" % 10, 10, *parts, change(0))[:-1])
    feed(engine, *in_fragments(b"%016d" % 20, 20, change(1)))
    assert engine._store.at_or_before("records", p64(4100) + p64(0)) is not None, "they are removed already"
    verification = engine.verification(engine.last_tid, False)
    assert finish(verification)[1] == []
    assert verification.records == 1


def test_a_blob_that_is_cut_is_found() -> None:
    engine = filled(StateMachine(MemoryStore(), RETENTION))
    *_, (key, _) = ((k, v) for k, v in engine._store.scan("blobs", b"") if len(k) == 12)
    engine._store.write([("blobs", key, seal(b"short"))])
    (problem,) = verify(engine)[1]
    assert problem.startswith(f"object {p64(3).hex()} of transaction {p64(20).hex()}: blobs ")


# ---- references ------------------------------------------------------------------------------------------------


def test_references_resolve_or_are_told(engine: StateMachine) -> None:
    root = pb.Transaction()
    root.records.add(oid=p64(0), data=record(1, 2, 99))
    root.records.add(oid=p64(1), data=record(0))
    root.records.add(oid=p64(2), data=record())
    feed(engine, *in_fragments(b"%016d" % 10, 10, root))
    gone = f"object {p64(0).hex()} of transaction {p64(10).hex()} refers to {p64(99).hex()}, which is not there"
    assert verify(engine, references=True)[1] == [gone]
    assert verify(engine)[1] == []
    deleting = pb.Transaction()
    deleting.records.add(oid=p64(2), base_serial=p64(10), no_data=True)
    feed(engine, *in_fragments(b"%016d" % 20, 20, deleting))
    assert verify(engine, references=True)[1] == [gone.replace(p64(99).hex(), p64(2).hex()), gone]
    assert verify(engine, p64(10), references=True)[1] == [gone]  # it was there then
    fixed = pb.Transaction()
    fixed.records.add(oid=p64(0), base_serial=p64(10), data=record(1))
    feed(engine, *in_fragments(b"%016d" % 30, 30, fixed))
    assert verify(engine, references=True)[1] == []  # what is not current may refer to what it likes


def test_references_in_wrapped_records_are_followed(engine: StateMachine) -> None:
    root = pb.Transaction()
    root.records.add(oid=p64(0), data=b".z" + zlib.compress(record(1, 98)))
    root.records.add(oid=p64(1), data=b".h" + hexlify(record(99)))
    feed(engine, *in_fragments(b"%016d" % 10, 10, root))
    assert [problem.split()[-5][:-1] for problem in verify(engine, references=True)[1]] == [
        p64(98).hex(),
        p64(99).hex(),
    ]


def test_records_of_another_kind_are_told_once(engine: StateMachine) -> None:
    feed(engine, *in_fragments(b"%016d" % 10, 10, change(0, 1, 2)))
    (problem,) = verify(engine, references=True)[1]
    assert problem.startswith("3 current records are not ZODB's")


def test_problems_beyond_a_number_are_not_told_one_by_one(engine: StateMachine) -> None:
    many = pb.Transaction()
    many.records.add(oid=p64(0), data=record(*range(100, 100 + MOST_PROBLEMS + 50)))
    feed(engine, *in_fragments(b"%016d" % 10, 10, many))
    problems = verify(engine, references=True)[1]
    assert len(problems) == MOST_PROBLEMS + 1
    assert problems[-1] == "there is more that is wrong"


# ---- interrupted -----------------------------------------------------------------------------------------------


def test_a_pack_or_another_database_interrupts_it(engine: StateMachine, tmp_path: Path) -> None:
    filled(engine)
    verification = engine.verification(engine.last_tid, False)
    feed(engine, *in_fragments(b"%016d" % 50, 50, change(7)))
    assert finish(verification)[1] == []  # later transactions do not

    verification = engine.verification(p64(40), False)
    pack = pb.PackCommand(pack_id=b"p" * 16, tid=p64(40))
    feed(engine, pb.Command(pack=pack).SerializeToString())
    with pytest.raises(Interrupted):
        verification.step()
    with pytest.raises(Packed):
        engine.verification(p64(30), False)
    before = verify(engine)
    assert before[1] == []
    while engine.pack_step(1):
        assert verify(engine) == before
    assert verify(engine) == before

    verification = engine.verification(p64(50), False)
    other = MemoryStore()
    filled(StateMachine(other, RETENTION))
    engine.adopt(other).close()
    with pytest.raises(Interrupted):
        verification.step()
