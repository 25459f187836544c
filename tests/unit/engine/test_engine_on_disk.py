"""Flushes, checkpoints, states that are swapped in, and databases of an older format."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import google_crc32c
import pytest
from raftstorage.node.engine import MemoryEngine, RocksEngine, rocks
from raftstorage.node.engine.api import Z64, Checkpointed, EngineError
from raftstorage.node.engine.kv import FAMILIES, KeyValueStore, MemoryStore
from raftstorage.node.engine.layout import FORMAT
from raftstorage.node.engine.rocks import RocksStore
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import allocate, change, entry, everything, feed, in_fragments, p64

ROOT = Path(__file__).parents[3]


def opened(engine: StateMachine, directory: Path) -> KeyValueStore:
    """A store of the engine's kind in `directory`."""
    return MemoryStore.opened(directory) if isinstance(engine, MemoryEngine) else RocksStore(directory)


#: Whole commits, fragments that end in a commit and some that are cut, and large data.
LOG = [
    *in_fragments(b"A" * 16, 10, change(*range(5))),
    allocate(20),
    *in_fragments(b"B" * 16, 20, change(1, 2, base=10), change(7, size=40_000), change(3, base=10)),
    *in_fragments(b"C" * 16, 30, change(*range(30, 60)), change(8), change(9))[:2],
    *in_fragments(b"D" * 16, 30, change(1, base=20), change(8)),
]


def test_a_membership_is_kept(engine: StateMachine, tmp_path: Path) -> None:
    assert (engine.membership, engine.applied_term) == (b"", 0)
    outcome = engine.apply(Entry(3, 1, EntryKind.MEMBERSHIP, b"members"))
    assert outcome.membership == engine.membership == b"members"
    assert (engine.applied_term, engine.applied_index) == (3, 1)
    engine.apply(entry(2, b"", term=4))
    assert engine.checkpoint(tmp_path / "copy") == Checkpointed(2, 4, b"members")
    copy = StateMachine(opened(engine, tmp_path / "copy"))
    assert (copy.applied_index, copy.applied_term, copy.membership) == (2, 4, b"members")
    assert copy.durable_index == 2
    assert copy.digest() == engine.digest()
    copy.close()


def test_a_checkpoint_is_the_state_at_that_moment(engine: StateMachine, tmp_path: Path) -> None:
    """Taken after every entry, copied file by file, opened elsewhere, and gone on with."""
    digests: list[bytes] = []
    for index, command in enumerate(LOG, 1):
        engine.apply(entry(index, command, term=7))
        if index % 2:
            engine.flush()
        digests.append(engine.digest())
        assert engine.checkpoint(tmp_path / f"at {index}") == Checkpointed(index, 7, b"")
        assert engine.durable_index == index
    for index, digest in enumerate(digests, 1):
        shutil.copytree(tmp_path / f"at {index}", tmp_path / f"copy {index}")
        copy = StateMachine(opened(engine, tmp_path / f"copy {index}"))
        assert (copy.applied_index, copy.applied_term, copy.digest()) == (index, 7, digest)
        for later, command in enumerate(LOG[index:], index + 1):
            copy.apply(entry(later, command, term=7))
        assert copy.digest() == digests[-1]
        copy.close()


def test_a_checkpoint_does_not_change_with_its_origin(tmp_path: Path) -> None:
    """They share files."""
    engine = RocksEngine(tmp_path / "db")
    feed(engine, *LOG[:3])
    engine.flush()
    engine.checkpoint(tmp_path / "copy")
    shared = [path.name for path in (tmp_path / "copy").glob("*.sst") if path.stat().st_nlink > 1]
    assert shared
    digest = engine.digest()
    feed(engine, *LOG[3:])
    engine.flush()
    engine._store._db.compact_range(None, None)  # type: ignore[attr-defined]
    engine.close()
    shutil.rmtree(tmp_path / "db")
    copy = RocksEngine(tmp_path / "copy")
    assert copy.digest() == digest
    copy.close()


def test_a_checkpoint_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RocksEngine(tmp_path / "db")
    feed(engine, *LOG)
    synced = set()
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    engine.checkpoint(tmp_path / "copy")
    engine.close()
    copy = (tmp_path / "copy").resolve()
    assert synced >= {copy.parent, copy, *copy.iterdir()}


def test_a_folder_that_is_there_is_no_place_for_a_checkpoint(engine: StateMachine, tmp_path: Path) -> None:
    feed(engine, *LOG)
    (tmp_path / "copy").mkdir()
    digest = engine.digest()
    with pytest.raises((EngineError, FileExistsError)):
        engine.checkpoint(tmp_path / "copy")
    assert engine.digest() == digest


def test_a_state_is_swapped_in(engine: StateMachine, tmp_path: Path) -> None:
    feed(engine, *LOG)
    engine.checkpoint(tmp_path / "copy")
    other = MemoryEngine() if isinstance(engine, MemoryEngine) else RocksEngine(tmp_path / "behind")
    other.apply(Entry(2, 1, EntryKind.MEMBERSHIP, b"old"))
    store = other._store
    assert other.adopt(opened(engine, tmp_path / "copy")) is store
    store.close()
    for name in ("applied_index", "applied_term", "membership", "last_tid"):
        assert getattr(other, name) == getattr(engine, name)
    assert other.durable_index == engine.applied_index
    assert everything(other) == everything(engine)
    assert feed(other, allocate(1), b"") == feed(engine, allocate(1), b"")
    assert other.digest() == engine.digest()
    other.close()


def test_a_state_that_cannot_be_read_is_not_swapped_in(engine: StateMachine) -> None:
    feed(engine, *LOG)
    digest, size = engine.digest(), engine.approximate_size()[1]
    damaged = MemoryStore()
    damaged.write([("meta", b"state", b"nonsense")])
    with pytest.raises(EngineError, match="checksum"):
        engine.adopt(damaged)
    assert (engine.digest(), engine.approximate_size()[1]) == (digest, size)
    assert engine.applied_index == len(LOG)
    feed(engine, allocate(1))


def test_a_flush_counts_what_was_applied_before_it(tmp_path: Path) -> None:
    """Not what comes while it runs, and nothing for a store that was given away meanwhile."""
    engine = RocksEngine(tmp_path / "db")
    store = engine._store
    began, go_on = threading.Event(), threading.Event()

    def slow(flush: Callable[[], None]) -> Callable[[], None]:
        def flushing() -> None:
            began.set()
            assert go_on.wait(60)
            flush()

        return flushing

    store.flush = slow(store.flush)  # type: ignore[method-assign]
    for meanwhile in ("apply", "adopt"):
        began.clear()
        go_on.clear()
        feed(engine, b"", b"")
        thread = threading.Thread(target=engine.flush)
        thread.start()
        assert began.wait(60)
        if meanwhile == "apply":
            feed(engine, b"", b"", b"")
        else:
            engine.adopt(MemoryStore())
        assert engine.durable_index == 0
        go_on.set()
        thread.join()
        if meanwhile == "apply":
            assert (engine.durable_index, engine.applied_index) == (2, 5)
            engine.checkpoint(tmp_path / "copy")
            assert engine.durable_index == 5
            engine._durable_index = 0  # so that the next round can show what it does
    assert engine.durable_index == 0
    store.close()


def test_a_flush_of_a_store_that_was_given_away_and_closed_harms_nobody(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    store = engine._store
    feed(engine, b"")
    flush = store.flush

    def late() -> None:
        engine.adopt(MemoryStore()).close()
        flush()

    store.flush = late  # type: ignore[method-assign]
    engine.flush()
    assert engine.durable_index == 0
    with pytest.raises(EngineError):
        flush()


CRASH = """
import os, sys, threading
from pathlib import Path
from raftstorage.node.engine import RocksEngine
from raftstorage.node.raft.types import Entry, EntryKind
from tests.unit.engine.commands import entry
from tests.unit.engine.test_engine_on_disk import crash_log
engine = RocksEngine(Path(sys.argv[1]))
flushed = threading.Semaphore(0)
def keep_flushing():
    while True:
        engine.flush()
        print(engine.durable_index, flush=True)
        flushed.release()
threading.Thread(target=keep_flushing, daemon=True).start()
for index, command in enumerate(crash_log(), 1):
    if index > engine.applied_index:
        engine.apply(entry(index, command))
        while engine.durable_index < index - 60:
            flushed.acquire()
        if index == int(sys.argv[2]):
            os.kill(os.getpid(), 9)
"""


def crash_log() -> list[bytes]:
    log = []
    for number in range(1, 200):
        parts = [change(number * 10 + each, size=500) for each in range(number % 4)]
        log += in_fragments(b"%016d" % number, number, *parts, change(number * 10 + 9))
        if number % 7 == 0:
            log += in_fragments(b"%016d" % (number + 500), number + 1, change(9999), change(9998))[:1]
    return log


def test_a_crash_while_another_thread_flushes_loses_nothing_that_was_durable(tmp_path: Path) -> None:
    log = crash_log()
    states = {0: MemoryEngine().digest()}
    model = MemoryEngine()
    for index, command in enumerate(log, 1):
        model.apply(entry(index, command))
        states[index] = model.digest()
    for life in range(1, 4):
        killed_at = len(log) * life // 4
        done = subprocess.run(
            [sys.executable, "-c", CRASH, str(tmp_path / "db"), str(killed_at)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=120,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        durable = int(done.stdout.split()[-1])
        engine = RocksEngine(tmp_path / "db")
        assert killed_at - 60 <= durable <= engine.applied_index <= killed_at
        assert engine.digest() == states[engine.applied_index]
        assert engine.durable_index == engine.applied_index
        engine.close()


# ---- format 1 ------------------------------------------------------------------------------------------------


def sealed(value: bytes) -> bytes:
    return value + int(google_crc32c.value(value)).to_bytes(4, "big")


def format_1(store: KeyValueStore) -> None:
    """Two commits, as the first version wrote them: object 1 twice, object 2 with large data."""
    for index, (tid, records) in enumerate([(10, {1: b"one", 2: b"x" * 50_000}), (20, {1: b"uno"})], 1):
        info = pb.CommittedTransaction(tid=p64(tid), status=b" ", user=b"user")
        for oid, data in records.items():
            info.records.add(oid=p64(oid))
            store.write([("records", p64(oid) + p64(tid), sealed(b"\0" + Z64 + data))])
        identity = b"%016d" % tid
        store.write(
            [
                ("transactions", p64(tid), sealed(info.SerializeToString(deterministic=True))),
                ("ids", identity, sealed(p64(tid) + p64(index))),
                ("id_order", p64(index), sealed(identity)),
            ]
        )
    store.write([("meta", b"state", sealed(struct.pack(">IQ8sQQ", 1, 2, p64(20), 3, 2)))])


@pytest.mark.parametrize("kind", [MemoryStore, RocksStore])
def test_a_database_of_format_1_goes_on(kind: type, tmp_path: Path) -> None:
    store = MemoryStore() if kind is MemoryStore else RocksStore(tmp_path / "db")
    format_1(store)
    engine = StateMachine(store)
    assert (engine.applied_index, engine.applied_term, engine.membership) == (2, 0, b"")
    assert (engine.last_tid, engine.approximate_size()[1]) == (p64(20), 2)
    assert engine.load_serial(p64(2), p64(10)) == b"x" * 50_000
    assert engine.load_before(p64(1), p64(20)).data == b"one"  # type: ignore[union-attr]
    assert [each.size for each in engine.history(p64(1), 9)[0]] == [3, 3]
    assert engine.transaction_tid(b"%016d" % 20) == p64(20)
    if isinstance(store, RocksStore):
        engine.flush()
        engine.close()
        engine = RocksEngine(tmp_path / "db")
    outcomes = feed(engine, *in_fragments(b"Z" * 16, 30, change(1, base=20), change(5)), allocate(1))
    assert [outcomes[1].tid, outcomes[2].first_oid] == [p64(30), p64(6)]
    assert [len(each.records) for each in everything(engine)] == [2, 1, 2]
    assert engine.applied_term == 1
    engine.close()


def test_a_database_of_a_later_format_is_refused() -> None:
    store = MemoryStore()
    store.write([("meta", b"state", sealed(struct.pack(">I", FORMAT + 1) + bytes(50)))])
    with pytest.raises(EngineError, match=f"format {FORMAT + 1}"):
        StateMachine(store)


def test_families_keep_their_places() -> None:
    """A database tells them apart by their numbers."""
    assert FAMILIES[:7] == ("records", "transactions", "ids", "id_order", "meta", "pages", "data")
    assert FAMILIES[7:] == ("packing", "uploads", "blobs")


def test_congestion_is_what_rocksdb_says(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "db")
    assert store.congested is False
    for name in rocks._CONGESTED:
        assert store._db.property_int_value(name) == 0, f"RocksDB knows no {name}"

    class Slow:
        def property_int_value(self, name: str) -> int:
            return int(name == rocks._CONGESTED[1])

    with mock.patch.object(store, "_db", Slow()):
        assert store.congested is True
    store.close()
