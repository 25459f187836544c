"""References read off pickles: what ZODB finds in honest records, at worst ValueError in others."""

from __future__ import annotations

import io
import itertools
import pickle
import random
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest
import ZODB
from BTrees.IOBTree import IOBTree
from BTrees.OOBTree import OOBTree, OOTreeSet
from hypothesis import given
from hypothesis import strategies as st
from persistent import Persistent
from persistent.list import PersistentList
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from raftstorage.node.engine.references import TURN, references, scan
from ZODB.MappingStorage import MappingStorage
from ZODB.serialize import referencesf
from zodbpickle import pickle as zodbpickle

from tests.unit.engine.commands import p64
from tests.unit.service.fuzzing import explore


def records_of(*objects: Any) -> list[bytes]:
    """All records of a database with `objects` in its root."""
    storage = MappingStorage()
    database = ZODB.DB(storage)
    with database.transaction() as connection:
        connection.root()["objects"] = list(objects)
    found = [record.data for each in storage.iterator() for record in each]
    database.close()
    return found


class Held(Persistent):
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def a_database() -> list[bytes]:
    leaf = Held(name="leaf", blob=b"\x00" * 70_000, text="ä" * 300)
    tree = OOBTree({f"key{number}": Held(number=number, twice=[leaf, leaf]) for number in range(300)})
    ints = IOBTree({number: PersistentList([number, leaf]) for number in range(200)})
    weak = Held(weak=WeakRef(leaf), strong=leaf, mixed={"a": (leaf, None), 7: {"b": [1.5, -3, 1 << 90, True]}})
    return records_of(leaf, tree, ints, weak, PersistentMapping(a=leaf, b=tree), OOTreeSet(range(500)), Held())


def test_what_zodb_finds_in_its_own_records() -> None:
    records = a_database()
    assert len(records) > 500
    for record in records:
        assert references(record) == referencesf(record)
    assert sum(len(references(record)) for record in records) > 1000


class Pickled:
    """What a ZODB record is made of, with references of every form."""

    def __init__(self, protocol: int, pickler: Any) -> None:
        self.file = io.BytesIO()
        self.pickler = pickler(self.file, protocol)
        self.pickler.persistent_id = lambda value: value.to if isinstance(value, Reference) else None

    def record(self, *values: Any) -> bytes:
        for value in values:
            self.pickler.dump(value)
        return self.file.getvalue()


class Reference:
    def __init__(self, to: Any) -> None:
        self.to = to


oids = st.integers(0, (1 << 64) - 1).map(p64)
classes = st.sampled_from([("module", "Class"), (("module", "Class"), (1,)), Persistent, None])
targets = st.one_of(
    oids,
    st.tuples(oids, classes),
    st.tuples(oids, classes),
    oids.map(lambda oid: [oid]),
    oids.map(lambda oid: ["w", (oid,)]),
    st.tuples(oids, classes).map(lambda pair: ["m", ("other", *pair)]),
)
states = st.recursive(
    st.one_of(targets.map(Reference), oids, st.binary(max_size=300), st.text(max_size=20), st.integers(),
              st.floats(), st.none(), st.booleans(), st.just("shared" * 2)),
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner), st.tuples(inner, inner), st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inner), inner.map(lambda one: [one, one]),
    ),
    max_leaves=25,
)  # fmt: skip


@given(state=states)
def as_noload(state: Any) -> None:
    record = Pickled(3, zodbpickle.Pickler).record(("module", "Class"), state)
    assert references(record) == referencesf(record)


def test_references_of_every_form_as_noload_finds_them() -> None:
    explore(as_noload, 1000)


def test_records_of_the_first_zodbs() -> None:
    """Oids were strings, and might be texts; with the text protocol they were lines."""
    oid = b"abcd\x7f\x00\n\x01"
    old = b"(U\x06moduleU\x05Classtq\x01.}q\x02(U\x01aq\x03(U\x08%bh\x01tQU\x01bq\x04]q\x05(U\x08%bh\x01tQau."
    lines = b"N.(S'abcd\\x7f\\x00\\n\\x01'\np5\n(g5\nNtQ(g5\ntQ."
    for record in (old % (oid, oid), lines):
        assert references(record) == referencesf(record) == [oid, oid]
    assert references(b"N.Pabcdefgh\n.") == referencesf(b"N.Pabcdefgh\n.") == [b"abcdefgh"]
    assert references(old % (b"\xff" * 8, oid)) == [b"\xff" * 8, oid]  # which noload takes for no text


class _Newer(pickle._Pickler):  # type: ignore[misc, name-defined]  # the one in Python takes a persistent_id
    pass


@given(state=states, protocol=st.sampled_from([4, 5]))
def in_newer_protocols(state: Any, protocol: int) -> None:
    old = Pickled(3, zodbpickle.Pickler).record(("module", "Class"), state)
    new = Pickled(protocol, _Newer).record(("module", "Class"), state)
    assert references(new) == references(old)


def test_protocols_that_zodb_does_not_write_yet() -> None:
    explore(in_newer_protocols, 300)


@given(data=st.data())
def any_bytes(data: st.DataObject) -> None:
    record = data.draw(st.one_of(st.binary(max_size=60), st.sampled_from(_SOME)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(record)))
        record = record[:at] + data.draw(st.binary(max_size=3)) + record[at + data.draw(st.integers(0, 3)) :]
    try:
        found = references(record)
    except ValueError:
        return
    assert all(len(oid) == 8 for oid in found)


_SOME = [record for record in a_database() if len(record) < 2000][:60]


def test_any_bytes_give_references_or_a_value_error() -> None:
    explore(any_bytes, 3000)


def test_random_opcodes_by_the_hundred_thousand() -> None:
    """Most bytes are no opcode: these are."""
    random_bytes = random.Random(7)
    codes = [getattr(pickle, name) for name in pickle.__all__ if name.isupper() and name != "HIGHEST_PROTOCOL"]
    codes = [code for code in codes if isinstance(code, bytes) and len(code) == 1]
    assert len(codes) > 60
    ended = 0
    for _ in range(100_000):
        record = b"N" * random_bytes.randrange(4) + b"".join(
            random_bytes.choices(codes, k=random_bytes.randrange(1, 30))
        )
        try:
            references(record + b".N.")
        except ValueError:
            continue
        ended += 1
    assert ended > 1000


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_record_that_breaks_off(cut: int) -> None:
    record = Pickled(3, zodbpickle.Pickler).record(("module", "Class"), {"a": Reference(p64(7)), "b": [b"c" * 8]})
    with pytest.raises(ValueError, match="not a ZODB record"):
        references(record[:-cut])


def test_nothing_is_imported_or_called() -> None:
    """A pickle that would write a file, and modules that would be noticed."""
    hostile = b"cos\nsystem\n(S'echo harm > harm.txt'\ntR.cantigravity\nxkcd\n}."
    script = (
        "import sys; from raftstorage.node.engine.references import references; before = set(sys.modules)\n"
        f"assert references({hostile!r}) == []; assert set(sys.modules) == before\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in ('zodbpickle', 'ZODB', 'persistent')]"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MANY = 500_000
BOMBS = {
    # zodbpickle's noload dies of the first one, and takes 64 GiB for the third
    "a key of nested tuples": b"})" + b"\x85" * MANY + b"Ns.N.",
    "shared tuples as a key": b"})" + b"2\x86" * 200 + b"Ns.N.",
    "a memo index": b"Nr\xff\xff\xff\xff.N.",
    "an old memo index": b"Np99999999999999999999\n.N.",
    "a size": b"\x8e" + b"\xff" * 8 + b".N.",
    "a long": b"\x8b\xff\xff\xff\xff.N.",
    "marks": b"(" * MANY,
    "values": b"N" * MANY,
    "lists": b"]" * MANY,
    "copies": b"N" + b"2" * MANY,
    "a memo": b"N" + b"\x94" * MANY,
    "oids": b"U\x08aaaaaaaa" * (MANY // 10),
    "lines": b"(i" + b"\n" * MANY,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_little(name: str) -> None:
    bomb = BOMBS[name]
    tracemalloc.start()
    try:
        assert references(bomb) == []
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12 * len(bomb) + 100_000


def test_a_reference_that_is_no_oid() -> None:
    for reference in (b"N", b"U\x03abc", b"K\x01", b")", b"]\x85"):
        with pytest.raises(ValueError, match="no oid"):
            references(b"N." + reference + b"Q.")


def test_a_large_record_is_read_in_turns() -> None:
    record = Pickled(3, zodbpickle.Pickler).record(None, [Reference(p64(number)) for number in range(20_000)])
    found: list[bytes] = []
    counts = [0] + [len(found) for _ in scan(record, found)]
    assert len(counts) > 5
    assert all(after - before <= TURN for before, after in itertools.pairwise(counts))
    assert found == [p64(number) for number in range(20_000)]
