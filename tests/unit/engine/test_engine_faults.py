"""The engine against hostile commands, damaged files and the rules that only show in the long run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftstorage.node.engine import MemoryEngine, RocksEngine
from raftstorage.node.engine.api import Z64, EngineError, Position, Revision
from raftstorage.node.engine.kv import FAMILIES, Change, MemoryStore
from raftstorage.node.engine.rocks import RocksStore
from raftstorage.node.engine.state import StateMachine
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import allocate, feed

LAST = b"\xff" * 8


def p64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def commit(tid: bytes, fill: Callable[[pb.Transaction], object], identity: bytes = b"") -> bytes:
    """A serialized commit of what `fill` puts into a Transaction."""
    transaction = pb.Transaction()
    fill(transaction)
    command = pb.CommitCommand(
        transaction_id=identity or tid.rjust(16, b"i"), tid=tid, transaction=transaction.SerializeToString()
    )
    return pb.Command(commit=command).SerializeToString()


def store(tid: int, oid: int, base: int = 0, data: bytes = b"data", identity: bytes = b"") -> bytes:
    return commit(
        p64(tid), lambda each: each.records.add(oid=p64(oid), base_serial=p64(base), data=data), identity
    )


def logical(engine: StateMachine) -> dict[str, list[tuple[bytes, bytes]]]:
    """All that is stored but the applied index."""
    return {family: list(engine._store.scan(family, b"")) for family in FAMILIES if family != "meta"}


@pytest.mark.parametrize(
    ("fill", "why"),
    [
        (lambda each: each.records.add(oid=b"1234567"), "an oid has 8 bytes"),
        (lambda each: each.records.add(oid=b"123456789"), "an oid has 8 bytes"),
        (lambda each: each.records.add(oid=b""), "an oid has 8 bytes"),
        (lambda each: each.checks.add(oid=b"short"), "an oid has 8 bytes"),
        (lambda each: each.records.add(oid=p64(1), base_serial=b"1"), "a serial has 8 bytes"),
        (lambda each: each.records.add(oid=p64(1), data_tid=b"x" * 9), "a serial has 8 bytes"),
        (lambda each: each.checks.add(oid=p64(1), serial=b"1"), "a serial has 8 bytes"),
        (lambda each: each.records.add(oid=LAST), "not given out"),
        (lambda each: each.records.add(oid=p64(1 << 63)), "not given out"),
        (lambda each: each.MergeFrom(pb.Transaction(status=b"xx")), "a status has one byte"),
        (lambda each: each.MergeFrom(pb.Transaction(tid=p64(51))), "bad tid"),
    ],
)
def test_malformed_transactions_are_refused(
    engine: StateMachine, fill: Callable[[pb.Transaction], object], why: str
) -> None:
    feed(engine, store(10, 1))
    before = logical(engine)
    (outcome,) = feed(engine, commit(p64(50), fill))
    assert why in outcome.refused
    assert (outcome.tid, outcome.index) == (None, 2)
    assert logical(engine) == before


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=60), st.binary(max_size=16), st.binary(max_size=8))
def test_no_bytes_stop_an_engine(command: bytes, transaction: bytes, identity: bytes, tid: bytes) -> None:
    engine = MemoryEngine()
    half = pb.CommitCommand(transaction_id=identity, tid=tid, transaction=transaction)
    feed(engine, command, pb.Command(commit=half).SerializeToString(), store(10, 1, identity=b"x" * 16))
    assert engine.applied_index == 3


def test_nobody_can_take_the_last_oid_or_tid_from_the_others(engine: StateMachine) -> None:
    def restore(tid: bytes, oid: int) -> bytes:
        def fill(transaction: pb.Transaction) -> None:
            transaction.tid = tid
            transaction.records.add(oid=p64(oid), data=b"x")

        return commit(tid, fill)

    highest = (1 << 63) - 1
    refused, fits = feed(engine, restore(LAST, 1), restore(p64(highest), highest))
    assert "too large" in refused.refused
    assert fits.tid == p64(highest)
    given_out, later = feed(engine, allocate(5), store(highest + 1, highest + 1))
    assert given_out.first_oid == p64(highest + 1)
    assert later.tid == p64(highest + 1)


def test_when_oids_run_out_the_engine_says_so(engine: StateMachine) -> None:
    engine._next_oid = (1 << 64) - 10
    refused, last, none = feed(engine, allocate(10), allocate(9), allocate(1))
    assert refused.refused == none.refused == "no oids are left"
    assert last.first_oid == p64((1 << 64) - 10)


def test_a_check_and_a_store_in_one_transaction_report_all_conflicts(engine: StateMachine) -> None:
    feed(engine, store(10, 1), store(20, 2))

    def fill(transaction: pb.Transaction) -> None:
        transaction.records.add(oid=p64(1), base_serial=p64(9))
        transaction.records.add(oid=p64(3))
        transaction.checks.add(oid=p64(2), serial=p64(19))
        transaction.checks.add(oid=p64(7))

    asked = pb.Transaction()
    fill(asked)
    (outcome,) = feed(engine, commit(p64(30), fill))
    assert [(each.oid, each.reading) for each in outcome.conflicts] == [(p64(1), False), (p64(2), True)]
    assert list(outcome.conflicts) == engine.conflicts(asked)


def test_checks_apply_to_a_restored_transaction_too(engine: StateMachine) -> None:
    def fill(transaction: pb.Transaction) -> None:
        transaction.tid = p64(20)
        transaction.records.add(oid=p64(1), base_serial=p64(5), data=b"b")
        transaction.checks.add(oid=p64(1), serial=p64(9))

    feed(engine, store(10, 1))
    (outcome,) = feed(engine, commit(p64(20), fill))
    assert [each.reading for each in outcome.conflicts] == [True]


def test_keys_of_other_lengths_find_nothing(engine: StateMachine) -> None:
    feed(engine, store(10, 1))
    key = p64(1) + p64(10)
    for oid, tid in ((key[:7], key[7:]), (key[:9], key[9:]), (b"", key)):
        with pytest.raises(KeyError):
            engine.load_serial(oid, tid)
        with pytest.raises(KeyError):
            engine.load_before(oid, tid)


def test_a_page_keeps_to_its_size_but_holds_at_least_one(engine: StateMachine) -> None:
    feed(engine, store(10, 1, data=bytes(100)), store(20, 2, data=bytes(5000)), store(30, 3, data=bytes(100)))
    page, more = engine.transactions(Z64, None, 1000)
    assert ([each.tid for each in page], more) == ([p64(10)], Position(p64(20)))
    page, more = engine.transactions(p64(11), None, 1000)
    assert ([each.tid for each in page], more) == ([p64(20)], Position(p64(30)))
    page, more = engine.transactions(p64(21), None, 1000)
    assert ([each.tid for each in page], more) == ([p64(30)], None)


def test_a_transaction_without_its_record_is_damage(engine: StateMachine) -> None:
    feed(engine, store(10, 1))
    engine._store.write([("records", p64(1) + p64(10), None)])
    with pytest.raises(EngineError, match="missing"):
        engine.transactions(Z64, None, 1000)


def test_contents_without_an_applied_index_are_refused(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    feed(engine, store(10, 1))
    engine._store.write([("meta", b"state", None)])
    engine.flush()
    engine.close()
    for _ in range(2):  # the first refusal lets the folder go
        with pytest.raises(EngineError, match="no record of what was applied"):
            RocksEngine(tmp_path / "db")


def test_a_second_process_cannot_open_the_folder(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    with pytest.raises(EngineError, match="cannot open"):
        RocksEngine(tmp_path / "db")
    engine.close()


def test_a_damaged_table_never_answers_wrongly(tmp_path: Path) -> None:
    """Each byte of the table file in turn: an EngineError at opening or reading, or the right answer."""
    engine = RocksEngine(tmp_path / "db")
    data = os.urandom(300)
    feed(engine, store(10, 1, data=data))
    engine.flush()
    engine.close()
    (table,) = (tmp_path / "db").glob("*.sst")
    whole = table.read_bytes()
    noticed = 0
    for offset in range(0, len(whole), max(1, len(whole) // 40)):
        table.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        try:
            engine = RocksEngine(tmp_path / "db")
        except EngineError:
            noticed += 1
            continue
        try:
            assert engine.load_before(p64(1), p64(11)) == Revision(data, p64(10), None)
        except EngineError:
            noticed += 1
        finally:
            engine.close()
    assert noticed > 10


def test_a_file_that_is_gone_is_noticed(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    feed(engine, store(10, 1))
    engine.flush()
    engine.close()
    for table in (tmp_path / "db").glob("*.sst"):
        table.unlink()
    with pytest.raises(EngineError):
        RocksEngine(tmp_path / "db").load_before(p64(1), p64(11))


def test_what_was_flushed_is_there_after_reopening(tmp_path: Path) -> None:
    memory, rocks = MemoryEngine(), RocksEngine(tmp_path / "db")
    log = [allocate(3), *(store(tid, tid % 7, max(0, tid - 7), os.urandom(tid)) for tid in range(1, 200))]
    assert feed(memory, *log[:100]) == feed(rocks, *log[:100])
    rocks.flush()
    rocks.close()
    rocks = RocksEngine(tmp_path / "db")
    assert (rocks.applied_index, rocks.last_tid) == (memory.applied_index, memory.last_tid)
    assert feed(memory, *log[100:]) == feed(rocks, *log[100:])
    assert memory.digest() == rocks.digest()
    rocks.close()


UNFLUSHED = """
import os, sys
from pathlib import Path
from raftstorage.node.engine import RocksEngine
from raftstorage.node.raft.types import Entry, EntryKind
engine = RocksEngine(Path(sys.argv[1]))
for index in range(1, 30):
    engine.apply(Entry(1, index, EntryKind.NOOP))
os.kill(os.getpid(), 9)
"""


def test_a_log_replayed_after_a_crash_ends_in_the_same_state(tmp_path: Path) -> None:
    """Nothing was flushed: what the crash takes is a whole tail, and the log brings it back."""
    done = subprocess.run([sys.executable, "-c", UNFLUSHED, str(tmp_path / "db")], check=False, timeout=60)
    assert done.returncode == -9
    engine = RocksEngine(tmp_path / "db")
    assert engine.applied_index == 0
    assert logical(engine) == logical(MemoryEngine())
    engine.close()


@pytest.mark.parametrize("kind", ["memory", "rocks"])
def test_transaction_ids_expire_by_log_index_alone(kind: str, tmp_path: Path) -> None:
    engine = MemoryEngine(retention=4) if kind == "memory" else RocksEngine(tmp_path / "db", retention=4)
    names = [b"%016d" % number for number in range(6)]
    feed(engine, *(store(10 + number, number, identity=name) for number, name in enumerate(names)))
    assert [engine.transaction_tid(name) for name in names] == [None, None, *(p64(10 + n) for n in range(2, 6))]
    assert len(list(engine._store.scan("ids", b""))) == len(list(engine._store.scan("id_order", b""))) == 4
    (again,) = feed(engine, store(50, 9, identity=names[0]))  # long forgotten: a new transaction
    assert (again.tid, again.repeated) == (p64(50), False)
    feed(engine, b"", b"", b"", b"")
    assert list(engine._store.scan("ids", b"")) == []
    engine.close()


keys = st.binary(min_size=1, max_size=3)
changes = st.lists(st.tuples(st.sampled_from(FAMILIES), keys, st.one_of(st.none(), st.binary(max_size=3))))


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(changes, max_size=5), questions=st.lists(keys, min_size=1, max_size=8))
def test_both_stores_answer_alike(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Change]], questions: list[bytes]
) -> None:
    memory, rocks = MemoryStore(), RocksStore(tmp_path_factory.mktemp("store") / "db")
    for number, batch in enumerate(batches):
        memory.write(batch)
        rocks.write(batch)
        if number % 2:
            rocks.flush()
    for family in FAMILIES:
        for key in questions:
            assert memory.get(family, key) == rocks.get(family, key)
            for within in range(len(key) + 1):
                assert memory.around(family, key, within) == rocks.around(family, key, within)
            assert memory.at_or_before(family, key) == rocks.at_or_before(family, key)
            assert list(memory.scan(family, key)) == list(rocks.scan(family, key))
            assert list(memory.scan_back(family, key)) == list(rocks.scan_back(family, key))
    rocks.close()


def test_what_was_removed_beside_an_object_costs_its_readers_nothing(tmp_path: Path) -> None:
    """Else a pack made reads of an object slow whose neighbour had many revisions, until RocksDB compacted."""
    store = RocksStore(tmp_path / "db")
    mine, other = b"oid....1", b"oid....2"
    store.write([("records", mine + p64(1), b"x")])

    def seconds() -> float:
        begun = time.process_time()
        for _ in range(20):
            assert store.around("records", mine + p64(9), 8) == ((mine + p64(1), b"x"), None)
        return time.process_time() - begun

    before = min(seconds() for _ in range(5))
    store.write([("records", other + p64(tid), b"x") for tid in range(50_000)])
    store.write([("records", other + p64(tid), None) for tid in range(50_000)])
    assert min(seconds() for _ in range(5)) < 20 * before
    store.close()
