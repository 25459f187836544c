"""Reading on behind blocks that the disk has damaged: what is lost is named, all the rest is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftstorage.node.engine import RocksEngine
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.batches import batches
from raftstorage.node.engine.kv import MemoryStore
from raftstorage.node.engine.rocks import RocksStore
from raftstorage.node.engine.state import RETENTION, StateMachine

from tests.unit.engine.commands import change, feed, in_fragments, p64

OBJECTS = 3000


def fill(engine: StateMachine) -> StateMachine:
    for start in range(0, OBJECTS, 100):
        made = change(*range(start, start + 100), size=300)
        feed(engine, *in_fragments(b"%016d" % start, start + 10, made))
    return engine


def verify(engine: StateMachine) -> tuple[int, bytes, list[str]]:
    """Records read, digest, problems."""
    found = engine.verification(engine.last_tid, False)
    while found.step():
        pass
    return found.records, found.digest, found.problems


class BlockStore(MemoryStore):
    """Blocks of records, `bad` ones among them: a scan that comes to one of its keys, or begins there, fails."""

    bad: tuple[tuple[bytes, bytes], ...] = ()

    def scan(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        bad = self.bad if family == "records" else ()
        if any(first <= start <= last for first, last in bad):
            raise EngineError("a bad block")
        for key, value in super().scan(family, start):
            if any(first <= key <= last for first, last in bad):
                raise EngineError("a bad block")
            yield key, value


def key(number: int) -> bytes:
    return p64(number * number * 1000) + p64(number)


def read_all(lost: set[int], items: int) -> tuple[list[bytes], int, list[str]]:
    store = BlockStore()
    store.write([("records", key(number), b"value") for number in range(100)])
    store.bad = tuple((key(number), key(number)) for number in lost)
    told: list[str] = []
    found: list[bytes] = []
    gaps = 0
    for batch in batches(store, "records", b"", items, 1 << 20, told.append):
        gaps += batch is None
        assert len(batch or ()) <= items
        found += [at for at, _ in batch or ()]
    return found, gaps, told


ITEMS = st.sampled_from([1, 7, 50])


@given(st.integers(0, 99), st.integers(0, 20), ITEMS)
def test_all_but_the_damage_is_read(first: int, count: int, items: int) -> None:
    lost = set(range(first, min(first + count, 100)))
    found, gaps, told = read_all(lost, items)
    assert found == [key(number) for number in range(100) if number not in lost]
    assert gaps == len(told) == (count > 0)


@given(st.sets(st.integers(0, 99), min_size=1, max_size=40), ITEMS)
def test_much_damage_hides_only_what_is_between(lost: set[int], items: int) -> None:
    found, gaps, told = read_all(lost, items)
    assert found == sorted(set(found))
    assert not set(found) & set(map(key, lost))
    outside = {key(number) for number in range(100) if not min(lost) <= number <= max(lost)}
    assert outside <= set(found)
    assert gaps == len(told) > 0


def test_damage_up_to_the_end_is_no_end_of_it() -> None:
    store = BlockStore()
    store.write([("records", p64(1) + p64(1), b"value"), ("records", p64(2) + p64(2), b"value")])
    store.bad = ((p64(2) + p64(2), b"\xff" * 16),)
    told: list[str] = []
    found = [pair for batch in batches(store, "records", b"", 9, 1 << 20, told.append) for pair in batch or ()]
    assert found == [(p64(1) + p64(1), b"value")]
    assert told == [
        f"records cannot be read behind object {p64(1).hex()} of transaction {p64(1).hex()}: a bad block"
    ]


def test_each_lost_record_is_named() -> None:
    store = BlockStore()
    engine = fill(StateMachine(store, RETENTION))
    last = p64(OBJECTS - 100 + 10)
    assert verify(engine)[2] == []
    store.bad = ((p64(120) + p64(110), p64(122) + p64(110)),)
    records, digest, problems = verify(engine)
    assert (records, digest) == (OBJECTS - 3, b"")
    (problem,) = problems  # they can be got one by one: only scans fail here
    assert problem.startswith(
        f"records cannot be read behind object {p64(119).hex()} of transaction {p64(110).hex()}"
    )
    store.bad = ()
    store.write([("records", p64(number) + last, None) for number in (2990, 2999)])
    assert verify(engine)[2] == [
        f"object {p64(number).hex()} of transaction {last.hex()} is missing" for number in (2990, 2999)
    ]


@pytest.mark.parametrize("part", [4, 3, 2])
def test_a_flipped_byte_in_a_file_of_rocksdbs(tmp_path: Path, part: int) -> None:
    engine = fill(RocksEngine(tmp_path / "db"))
    expected, digest, problems = verify(engine)
    assert (expected, problems) == (OBJECTS, [])
    engine.flush()
    engine.close()
    table = max((tmp_path / "db").glob("*.sst"), key=lambda file: file.stat().st_size)
    raw = bytearray(table.read_bytes())
    raw[len(raw) // part] ^= 1
    table.write_bytes(raw)

    store = RocksStore(tmp_path / "db")
    lost = []
    for number in range(OBJECTS):
        try:
            assert store.get("records", p64(number) + p64(number // 100 * 100 + 10)) is not None
        except EngineError:
            lost.append(number)
    store.close()
    engine = RocksEngine(tmp_path / "db")
    try:
        records, found, problems = verify(engine)
    finally:
        engine.close()
    assert found != digest
    assert found == b""
    assert records == OBJECTS - len(lost)
    assert len(lost) in range(1, 100), "the byte is not in a block of records"
    named = [problem.partition(":")[0] for problem in problems if problem.startswith("object ")]
    assert named == [
        f"object {p64(number).hex()} of transaction {p64(number // 100 * 100 + 10).hex()}" for number in lost
    ]
