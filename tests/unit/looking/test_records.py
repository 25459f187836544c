"""What a record is made of, told without importing anything; and names of oids, tids and times."""

from __future__ import annotations

import os
import pickle
import sys
import zlib
from binascii import hexlify
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from persistent.wref import WeakRef
from raftstorage.ops.looking.log import jsonable, printable
from raftstorage.ops.looking.names import parse_moment, parse_oid, parse_tid, time_of
from raftstorage.ops.looking.records import MOST_BYTES, Reference, plain, summarize
from ZODB.MappingStorage import MappingStorage
from ZODB.serialize import referencesf
from ZODB.utils import load_current, p64


class Arguments(Persistent):
    """Its record tells the class with arguments."""

    def __new__(cls, *args: object) -> Any:
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[int]:
        return (1,)


@pytest.fixture
def connection() -> Any:
    other = ZODB.DB(MappingStorage(), database_name="other", databases=(databases := {}))
    db = ZODB.DB(MappingStorage(), database_name="main", databases=databases)
    connection = db.open()
    yield connection
    transaction.abort()
    connection.close()
    other.close()
    db.close()


def stored(connection: Any, found: Any) -> bytes:
    data: bytes = load_current(connection.db().storage, found._p_oid)[0]
    return data


def test_classes_and_references_of_every_form(connection: Any) -> None:
    there = connection.get_connection("other")
    foreign = PersistentMapping()
    there.add(foreign)
    there.root()["x"] = foreign
    root = connection.root()
    root["tree"], root["arguments"], root["weak"] = OOBTree(a=1), Arguments(), WeakRef(root)
    root["foreign"] = foreign
    transaction.commit()
    data = stored(connection, root)
    found = summarize(data)
    assert found.problem == ""
    assert found.class_name == "persistent.mapping.PersistentMapping"
    own = [each for each in found.references if not each.weak and not each.database]
    assert [bytes.fromhex(each.oid) for each in own] == referencesf(data)
    assert "BTrees.OOBTree.OOBTree" in {each.class_name for each in own}
    assert Reference(root._p_oid.hex(), weak=True) in found.references
    assert Reference(foreign._p_oid.hex(), "persistent.mapping.PersistentMapping", "other") in found.references
    assert summarize(stored(connection, root["tree"])).class_name == "BTrees.OOBTree.OOBTree"
    assert summarize(stored(connection, root["arguments"])).class_name == f"{__name__}.Arguments"


def test_nothing_is_imported_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "never_imported.py").write_text("raise SystemExit('imported')")

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    for data in (
        pickle.dumps(Evil()) + pickle.dumps({"x": Evil()}),
        b"cnever_imported\nThing\n." + pickle.dumps(Evil()),
        b"cnever_imported\nThing\n)R." + pickle.dumps({}),
    ):
        found = summarize(data)
        assert isinstance(found.class_name, str)
        with pytest.raises(ValueError, match="not a pickle of plain values"):
            plain(data)
    assert summarize(b"cnever_imported\nThing\n." + pickle.dumps({})).class_name == "never_imported.Thing"
    assert not (tmp_path / "ran").exists()
    assert "never_imported" not in sys.modules


def test_wrapped_records_are_looked_into() -> None:
    data = pickle.dumps(PersistentMapping) + pickle.dumps({})
    for wrapped in (b".z" + zlib.compress(data), b".h" + hexlify(data)):
        assert summarize(wrapped).class_name == "persistent.mapping.PersistentMapping"
        assert summarize(wrapped).problem == ""
    assert "more than" in summarize(b".z" + zlib.compress(bytes(MOST_BYTES + 1))).problem


@pytest.mark.parametrize(
    "data", [b"", b".", b".z", b".hx", b"\x80\x03", b"\xff" * 100, b"x\x9c compressed", pickle.dumps(1)]
)
def test_what_is_no_record_is_said_to_be_none(data: bytes) -> None:
    assert summarize(data).problem.startswith("not a ZODB record, or not whole: ")


def test_extensions_of_plain_values_are_told() -> None:
    values = {"path": "/a", "n": 1, "list": [1, (2, None)], b"bytes": b"x"}
    assert jsonable(plain(pickle.dumps(values))) == {"path": "/a", "n": 1, "list": [1, [2, None]], "b'bytes'": "x"}


def test_nothing_that_is_printed_drives_a_terminal() -> None:
    assert (
        printable("größer \x1b[31mred\x07") == "größer \N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"
    )


def test_names() -> None:
    assert parse_oid("0x1f") == parse_oid("31") == parse_oid("000000000000001f") == p64(31)
    assert parse_tid("0x040D3FB1234DEE99") == bytes.fromhex("040d3fb1234dee99")
    for wrong in ("", "x", "0x", "-1", "1.5", "12345678901234567890123", "0x11111111111111111"):
        with pytest.raises(ValueError, match="not an oid"):
            parse_oid(wrong)
    for wrong in ("", "31", "040d3fb1234dee9", "040d3fb1234dee99 040d3fb1234dee99"):
        with pytest.raises(ValueError, match="not a tid"):
            parse_tid(wrong)


def test_moments() -> None:
    assert time_of(parse_moment("2026-11-25T07:30:15.250")) == "2026-11-25T07:30:15.250Z"
    assert parse_moment("2026-11-25T07:30:15+01:00") == parse_moment("2026-11-25T06:30:15Z")
    assert parse_moment("2026-11-25") == parse_moment("2026-11-25T00:00:00Z")
    assert parse_moment("040d3fb1234dee99") == bytes.fromhex("040d3fb1234dee99")
    with pytest.raises(ValueError, match="not a time"):
        parse_moment("yesterday")
