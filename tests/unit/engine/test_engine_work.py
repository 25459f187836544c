"""How much work one call does: bounded, however large the transaction and long the history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from raftstorage.node.engine import layout
from raftstorage.node.engine.api import Z64, Position
from raftstorage.node.engine.fragments import FRAGMENT_BYTES, FRAGMENT_ITEMS, split
from raftstorage.node.engine.kv import Change, MemoryStore
from raftstorage.node.engine.reading import CHANGED_BYTES, HISTORY_BYTES, HISTORY_ITEMS, PAGE_ITEMS
from raftstorage.node.engine.state import StateMachine
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import change, entry, everything, feed, in_fragments, p64

A, B = b"A" * 16, b"B" * 16


class CountingStore(MemoryStore):
    """Counts what is read, looked for and written, and the bytes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.changed = self.bytes = 0

    def counted(self) -> tuple[int, int, int]:
        """(reads, changes, bytes) since the last call."""
        found = self.asked, self.changed, self.bytes
        self.asked = self.changed = self.bytes = 0
        return found

    def get(self, family: str, key: bytes) -> bytes | None:
        value = super().get(family, key)
        self.asked += 1
        self.bytes += len(value or b"")
        return value

    def at_or_before(self, family: str, key: bytes) -> bytes | None:
        self.asked += 1
        return super().at_or_before(family, key)

    def scan(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, value in super().scan(family, start):
            self.asked += 1
            self.bytes += len(value)
            yield key, value

    def scan_back(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, value in super().scan_back(family, start):
            self.asked += 1
            self.bytes += len(value)
            yield key, value

    def write(self, changes: Sequence[Change]) -> None:
        super().write(changes)
        self.changed += len(changes)
        self.bytes += sum(len(key) + len(value or b"") for _family, key, value in changes)


def counting() -> tuple[StateMachine, CountingStore]:
    store = CountingStore()
    return StateMachine(store), store


def test_no_entry_of_a_large_transaction_takes_long() -> None:
    """Many small records, a few large ones, many checks; then the same again, dropped and removed."""
    engine, store = counting()
    large = change(*range(20_000), size=250, checks=tuple(range(30_000, 33_000)))
    for oid in range(20_000, 20_004):
        large.records.add(oid=p64(oid), data=bytes(2 << 20))
    commands = in_fragments(A, 10, *split(large), pb.Transaction())
    assert len(commands) > 60
    for number, command in enumerate(commands, 1):
        assert len(command) < FRAGMENT_BYTES + 100 * FRAGMENT_ITEMS
        store.counted()
        outcome = engine.apply(entry(number, command))
        asked, changed, size = store.counted()
        assert asked <= FRAGMENT_ITEMS + 5
        assert changed <= FRAGMENT_ITEMS + 10
        assert size <= 2 * FRAGMENT_BYTES
    assert outcome.tid == p64(10)
    assert (asked, changed < 10, size < 1000) == (1, True, True), "the last entry touches no record"
    for record in large.records:
        record.base_serial = p64(10)
    feed(engine, *in_fragments(B, 20, *split(large), pb.Transaction())[:-1])
    feed(engine, b"")
    entries = 0
    while engine._dropped:
        store.counted()
        feed(engine, b"")
        asked, changed, size = store.counted()
        assert max(asked, changed) <= layout.PAGE_OIDS + 50
        assert size <= FRAGMENT_BYTES
        entries += 1
    assert entries > 20
    assert everything(engine)[0].ByteSize() > 8 << 20


def test_pages_of_one_large_transaction_take_no_longer_towards_its_end() -> None:
    engine, store = counting()
    large = change(*range(10_000), size=100)
    large.records[5000].data = bytes(300_000)
    feed(engine, *in_fragments(A, 10, *split(large), change(10_000)), *in_fragments(B, 20, change(1, base=10)))
    at: Position | None = Position(Z64)
    calls = 0
    while at is not None:
        tid, skip = at
        store.counted()
        page, at = engine.transactions(tid, None, 50_000, skip)
        asked, _changed, size = store.counted()
        assert asked <= PAGE_ITEMS + 10
        assert size <= 50_000 + 300_000 + 9000
        calls += 1
    assert calls > 20
    assert [each.tid for each in page] == [p64(10), p64(20)]
    assert [len(each.records) for each in everything(engine, 10_000)] == [10_001, 1]


def test_a_history_reads_no_data_and_stops_in_between() -> None:
    engine, store = counting()
    tids = range(10, 10 + 3 * HISTORY_ITEMS, 2)
    for last, tid in zip([0, *tids], tids, strict=False):
        feed(engine, *in_fragments(p64(tid) * 2, tid, change(1, base=last, size=100_000)))
    found: list[pb.Revision] = []
    more, before = True, b"\xff" * 8
    calls = 0
    while more:
        store.counted()
        revisions, more = engine.history(p64(1), 10_000, before)
        asked, _changed, size = store.counted()
        assert asked <= 2 * HISTORY_ITEMS + 2
        assert size < 2 * HISTORY_BYTES
        found += revisions
        before = revisions[-1].tid
        calls += 1
    assert calls == 2
    assert [each.tid for each in found] == [p64(tid) for tid in reversed(tids)]
    assert {each.size for each in found} == {100_000}


def test_a_history_of_long_texts_stops_in_between() -> None:
    engine, _store = counting()
    tids = range(1, 41)
    for tid in tids:
        feed(engine, *in_fragments(p64(tid) * 2, tid, change(1, base=tid - 1), user=bytes(60_000)))
    first, more = engine.history(p64(1), 40)
    assert (10 < len(first) < 30, more) == (True, True)
    rest, more = engine.history(p64(1), 40, first[-1].tid)
    rest += engine.history(p64(1), 40, rest[-1].tid)[0] if more else []
    assert [each.tid for each in first + rest] == [p64(tid) for tid in reversed(tids)]


def test_changes_of_many_objects_come_some_at_a_time() -> None:
    engine, store = counting()
    for tid in range(1, 31):
        feed(engine, *in_fragments(p64(tid) * 2, tid, change(*range(tid * 10_000, tid * 10_000 + 5000))))
    feed(engine, *in_fragments(A, 40, *split(change(*range(900_000, 905_000))), pb.Transaction()))
    seen: list[bytes] = []
    after, calls = Z64, 0
    while after < engine.last_tid:
        store.counted()
        page = engine.changed_since(after, 256)
        asked, _changed, size = store.counted()
        assert (asked <= 32, size < 2 * CHANGED_BYTES) == (True, True)
        for tid, oids in page:
            assert len(oids) == 5000
            seen.append(tid)
        after = seen[-1]
        calls += 1
    assert seen == [*map(p64, range(1, 31)), p64(40)]
    assert calls > 1


def test_removal_gets_past_an_object_that_is_more_than_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1000)
    engine, _store = counting()
    for tid, base in ((10, 0), (20, 10), (30, 20)):
        feed(engine, *in_fragments(b"%016d" % tid, tid, change(1, base=base, size=100_000)))
    pack = pb.PackCommand(pack_id=b"P" * 16, tid=p64(30))
    feed(engine, pb.Command(pack=pack).SerializeToString())
    steps = 1
    while engine.pack_step(1):
        steps += 1
        assert steps < 20
    assert engine.pack_state().removed_records == 2
    assert len(list(engine._store.scan("data", b""))) == 100
