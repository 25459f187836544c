"""The MVCC engine: the same tests over memory and RocksDB, and both against a dictionary."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftstorage.node.engine import MemoryEngine, RocksEngine
from raftstorage.node.engine.api import Z64, EngineError, Position, Revision
from raftstorage.node.engine.state import StateMachine
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import allocate, entry, everything, feed


def p64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def commit(
    tid: int,
    records: Sequence[tuple[int, int, bytes]],
    *,
    identity: int | None = None,
    checks: Sequence[tuple[int, int]] = (),
    restore: bool = False,
) -> bytes:
    """A serialized CommitCommand. `records`: (oid, base serial, data); `checks`: (oid, serial)."""
    transaction = pb.Transaction(user=b"user", description=b"description", extension=b"ext")
    for oid, base, data in records:
        transaction.records.add(oid=p64(oid), base_serial=p64(base), data=data)
    for oid, serial in checks:
        transaction.checks.add(oid=p64(oid), serial=p64(serial))
    if restore:
        transaction.tid = p64(tid)
    command = pb.CommitCommand(
        transaction_id=p64(tid if identity is None else identity) + Z64,
        tid=p64(tid),
        transaction=transaction.SerializeToString(),
    )
    return pb.Command(commit=command).SerializeToString()


def test_an_empty_engine(engine: StateMachine) -> None:
    assert (engine.applied_index, engine.last_tid) == (0, Z64)
    assert engine.current_serial(p64(0)) is None
    assert engine.transactions(Z64, None, 100) == ([], None)
    for question in (
        lambda: engine.load_before(p64(0), p64(9)),
        lambda: engine.load_before(p64(0), Z64),
        lambda: engine.load_serial(p64(0), p64(9)),
        lambda: engine.history(p64(0), 1),
    ):
        with pytest.raises(KeyError):
            question()


def test_revisions(engine: StateMachine) -> None:
    feed(engine, commit(10, [(1, 0, b"a"), (2, 0, b"x")]), commit(20, [(1, 10, b"b")]), b"")
    assert engine.load_before(p64(1), p64(10)) is None
    assert engine.load_before(p64(1), Z64) is None
    assert engine.load_before(p64(1), p64(11)) == Revision(b"a", p64(10), p64(20))
    assert engine.load_before(p64(1), p64(20)) == Revision(b"a", p64(10), p64(20))
    assert engine.load_before(p64(1), b"\xff" * 8) == Revision(b"b", p64(20), None)
    assert engine.load_serial(p64(1), p64(10)) == b"a"
    assert engine.current_serial(p64(2)) == p64(10)
    assert [each.tid for each in engine.history(p64(1), 5)[0]] == [p64(20), p64(10)]
    assert [each.tid for each in engine.history(p64(1), 1)[0]] == [p64(20)]
    assert (engine.applied_index, engine.last_tid) == (3, p64(20))
    assert engine.approximate_size()[1] == 2


def test_conflicts_change_nothing_but_the_index(engine: StateMachine) -> None:
    feed(engine, commit(10, [(1, 0, b"a"), (2, 0, b"a")]), commit(20, [(1, 10, b"b")]))
    outcomes = feed(
        engine,
        commit(30, [(2, 10, b"c"), (1, 10, b"stale")]),
        commit(31, [(1, 0, b"not new")]),
        commit(32, [(2, 10, b"c")], checks=[(1, 10)]),
        commit(33, [(9, 5, b"unknown")]),
    )
    assert [[(c.oid, c.serial, c.expected, c.reading) for c in each.conflicts] for each in outcomes] == [
        [(p64(1), p64(20), p64(10), False)],
        [(p64(1), p64(20), Z64, False)],
        [(p64(1), p64(20), p64(10), True)],
        [(p64(9), Z64, p64(5), False)],
    ]
    assert all(each.tid is None and each.oids == () for each in outcomes)
    assert engine.current_serial(p64(2)) == p64(10)
    assert (engine.applied_index, engine.last_tid) == (6, p64(20))


def test_a_transaction_id_commits_once(engine: StateMachine) -> None:
    feed(engine, commit(10, [(1, 0, b"a")], identity=7))
    (again,) = feed(engine, commit(30, [(1, 0, b"a")], identity=7))
    assert (again.tid, again.repeated, again.oids, again.conflicts) == (p64(10), True, (), ())
    assert engine.transaction_tid(p64(7) + Z64) == p64(10)
    assert engine.last_tid == p64(10)


def test_transaction_ids_are_forgotten_by_log_index() -> None:
    engine = MemoryEngine(retention=3)
    feed(engine, commit(10, [(1, 0, b"a")], identity=7), b"", b"")
    assert engine.transaction_tid(p64(7) + Z64) == p64(10)
    feed(engine, b"")
    assert engine.transaction_tid(p64(7) + Z64) is None


@pytest.mark.parametrize(
    "command",
    [
        b"\xff\xff garbage",
        pb.Command().SerializeToString() or b"\x1a\x00",
        commit(5, [(3, 0, b"old tid")]),
        commit(50, [(3, 0, b"twice"), (3, 0, b"twice")]),
        allocate(0),
        allocate(1 << 21),
        pb.Command(
            commit=pb.CommitCommand(transaction_id=b"short", tid=p64(60), transaction=b"")
        ).SerializeToString(),
        pb.Command(
            commit=pb.CommitCommand(transaction_id=bytes(16), tid=p64(60), transaction=b"\xff")
        ).SerializeToString(),
        pb.Command(commit=pb.CommitCommand(transaction_id=bytes(16), tid=b"tid")).SerializeToString(),
    ],
)
def test_bad_commands_are_refused_and_change_nothing(engine: StateMachine, command: bytes) -> None:
    feed(engine, commit(10, [(1, 0, b"a")]))
    before = engine.transactions(Z64, None, 1 << 20)
    (outcome,) = feed(engine, command)
    assert outcome.refused
    assert outcome.tid is None
    assert engine.transactions(Z64, None, 1 << 20) == before
    assert (engine.applied_index, engine.last_tid) == (2, p64(10))


def test_entries_are_applied_in_order(engine: StateMachine) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        engine.apply(entry(2, b""))
    engine.apply(entry(1, b""))
    with pytest.raises(ValueError, match="cannot follow"):
        engine.apply(entry(1, b""))


def test_restored_transactions_keep_their_tid_and_are_not_checked(engine: StateMachine) -> None:
    outcomes = feed(engine, commit(10, [(1, 99, b"a")], restore=True), commit(20, [(500, 0, b"b")], restore=True))
    assert [each.tid for each in outcomes] == [p64(10), p64(20)]
    (block,) = feed(engine, allocate(10))
    assert block.first_oid == p64(501)


def test_a_record_without_data(engine: StateMachine) -> None:
    gone = pb.Transaction(tid=p64(20))
    gone.records.add(oid=p64(1), no_data=True)
    command = pb.CommitCommand(transaction_id=bytes(16), tid=p64(20), transaction=gone.SerializeToString())
    feed(engine, commit(10, [(1, 0, b"a")]), pb.Command(commit=command).SerializeToString())
    assert engine.load_before(p64(1), p64(99)) == Revision(None, p64(20), None)
    with pytest.raises(KeyError):
        engine.load_serial(p64(1), p64(20))
    (_first, last), _more = engine.transactions(Z64, None, 1 << 20)
    assert last.records[0].no_data


def test_oids_are_given_out_once(engine: StateMachine) -> None:
    first, second = feed(engine, allocate(100), allocate(1))
    assert (first.first_oid, second.first_oid) == (p64(1), p64(101))


def test_pages_and_changes(engine: StateMachine) -> None:
    feed(engine, *(commit(tid, [(tid, 0, b"x" * 50)]) for tid in range(10, 20)))
    seen: list[int] = []
    at: Position | None = Position(Z64)
    while at is not None:
        page, at = engine.transactions(at.tid, p64(17), 150, at.skip)
        assert page
        seen.extend(int.from_bytes(each.tid, "big") for each in page)
        assert all(each.records[0].data == b"x" * 50 for each in page)
    assert seen == list(range(10, 18))
    assert engine.changed_since(p64(15), 2) == [(p64(16), (p64(16),)), (p64(17), (p64(17),))]
    assert engine.changed_since(p64(19), 2) == []
    assert engine.changed_since(b"\xff" * 8, 2) == []


def test_a_damaged_record_is_noticed(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    feed(engine, commit(10, [(1, 0, b"precious")]))
    key = p64(1) + p64(10)
    sealed = engine._store.get("records", key)
    assert sealed is not None
    engine._store.write([("records", key, sealed.replace(b"precious", b"previous"))])
    with pytest.raises(EngineError, match="checksum"):
        engine.load_before(p64(1), p64(11))
    engine.close()


def test_a_folder_that_rocksdb_cannot_read_is_refused(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    feed(engine, commit(10, [(1, 0, b"a")]))
    engine.flush()
    engine.close()
    for manifest in (tmp_path / "db").glob("MANIFEST-*"):
        manifest.write_bytes(b"nonsense")
    with pytest.raises(EngineError, match="cannot open"):
        RocksEngine(tmp_path / "db")


WRITER = """
import os, sys
from pathlib import Path
from raftstorage.node.engine import RocksEngine
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb
engine = RocksEngine(Path(sys.argv[1]))
for index in range(engine.applied_index + 1, engine.applied_index + 400):
    t = pb.Transaction()
    t.records.add(oid=index.to_bytes(8, "big"), data=bytes(1000))
    c = pb.CommitCommand(transaction_id=index.to_bytes(16, "big"), tid=index.to_bytes(8, "big"),
                         transaction=t.SerializeToString())
    engine.apply(Entry(1, index, EntryKind.COMMAND, pb.Command(commit=c).SerializeToString()))
    if index % 97 == 0:
        engine.flush()
os.kill(os.getpid(), 9)
"""


def test_a_crash_keeps_data_and_applied_index_together(tmp_path: Path) -> None:
    applied = 0
    for _ in range(3):
        subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "db")], check=False)
        engine = RocksEngine(tmp_path / "db")
        assert engine.applied_index > applied, "nothing was flushed: this proves nothing"
        applied = engine.applied_index
        assert [int.from_bytes(each.tid, "big") for each in everything(engine)] == list(range(1, applied + 1))
        assert engine.last_tid == p64(applied)
        assert all(engine.transaction_tid(index.to_bytes(16, "big")) for index in range(1, applied + 1))
        engine.close()


LOG = [
    commit(10, [(1, 0, b"a"), (7, 0, b"b")]),
    commit(20, [(1, 10, b"c")], checks=[(7, 10)]),
    commit(30, [(1, 10, b"stale")]),
    allocate(7),
    commit(40, [(8, 0, b"d")]),
    b"",
]


def test_replicas_agree_to_the_byte(tmp_path: Path) -> None:
    memory, rocks = MemoryEngine(), RocksEngine(tmp_path / "db")
    assert feed(memory, *LOG) == feed(rocks, *LOG)
    assert memory.digest() == rocks.digest()
    digest = rocks.digest()
    rocks.close()
    program = f"""
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.raft.types import Entry, EntryKind
engine = MemoryEngine()
for index, command in enumerate({LOG!r}, 1):
    engine.apply(Entry(1, index, EntryKind.COMMAND if command else EntryKind.NOOP, command))
print(engine.digest().hex())
"""
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == digest.hex()


def test_the_digest_sees_a_difference() -> None:
    engines: list[Callable[[], list[bytes]]] = [lambda: LOG, lambda: [*LOG[:4], commit(40, [(8, 0, b"D")]), b""]]
    digests = set()
    for log in engines:
        engine = MemoryEngine()
        feed(engine, *log())
        digests.add(engine.digest())
    assert len(digests) == 2


operations = st.lists(
    st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), st.booleans()), max_size=25
)


@settings(max_examples=60, deadline=None)
@given(operations)
def test_the_engine_does_what_a_dictionary_does(history: list[tuple[list[int], bool]]) -> None:
    """Each step writes some oids, from current serials or from stale ones; every past snapshot stays readable."""
    engine = MemoryEngine()
    model: dict[int, list[tuple[int, bytes]]] = {}
    for step, (oids, stale) in enumerate(history, 1):
        tid = step * 10
        base = {oid: model[oid][-1][0] if oid in model else 0 for oid in oids}
        if stale:
            base[oids[0]] += 1
        (outcome,) = feed(engine, commit(tid, [(oid, base[oid], b"%d" % tid) for oid in oids]))
        assert (outcome.tid is None) == stale
        if not stale:
            for oid in oids:
                model.setdefault(oid, []).append((tid, b"%d" % tid))
        for oid, revisions in model.items():
            for before in range(0, tid + 20, 10):
                older = [each for each in revisions if each[0] < before]
                found = engine.load_before(p64(oid), p64(before))
                if not older:
                    assert found is None
                    continue
                following = revisions[len(older)][0] if len(older) < len(revisions) else None
                expected = None if following is None else p64(following)
                assert found == Revision(older[-1][1], p64(older[-1][0]), expected)
