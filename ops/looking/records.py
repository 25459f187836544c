"""What is in a record, read off its pickles without importing the class or anything else."""

from __future__ import annotations

import zlib
from binascii import unhexlify
from dataclasses import dataclass, field
from typing import Any

from .pickles import Global, Reader

#: What becomes larger when it is unwrapped is not looked at: a few kilobytes can be made to look like gigabytes.
MOST_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Reference:
    """To an object. `class_name` is what the record says, empty when it says none; `database` empty: the same."""

    oid: str
    class_name: str = ""
    database: str = ""
    weak: bool = False


@dataclass(slots=True)
class RecordSummary:
    """`problem`: why the rest is not known."""

    class_name: str = "?"
    references: list[Reference] = field(default_factory=list)
    problem: str = ""


def summarize(data: bytes) -> RecordSummary:
    """Never raises for what is in `data`."""
    found = RecordSummary()
    try:
        data = _unwrap(data)
        reader = Reader(data, lambda reference: found.references.append(_reference(reference)))
        found.class_name = _name_of(reader.load())
        reader.load()
    except (ValueError, zlib.error) as error:
        found.problem = f"not a ZODB record, or not whole: {type(error).__name__}: {error}"
    return found


def _unwrap(data: bytes) -> bytes:
    """What zc.zlibstorage or ZODB's HexStorage made a record of."""
    if data.startswith(b".z"):
        machine = zlib.decompressobj()
        inside = machine.decompress(data[2:], MOST_BYTES)
        if machine.unconsumed_tail:
            raise ValueError(f"compressed, and more than {MOST_BYTES} bytes")
        return inside
    return unhexlify(data[2:]) if data.startswith(b".h") else data


def _reference(found: Any) -> Reference:
    """See `ZODB.serialize` for the forms. ValueError for another."""
    match found:
        case bytes() | str():
            return Reference(_hex(found))
        case (oid, kind) if isinstance(found, tuple):
            return Reference(_hex(oid), _name_of(kind))
        case ["w", (oid,)] | [oid]:  # the latter as ZODB wrote it long ago
            return Reference(_hex(oid), weak=True)
        case ["w", (oid, str() as database)]:
            return Reference(_hex(oid), "", database, weak=True)
        case ["n", (str() as database, oid)]:
            return Reference(_hex(oid), "", database)
        case ["m", (str() as database, oid, kind)]:
            return Reference(_hex(oid), _name_of(kind), database)
    raise ValueError("a reference of no known form")


def _hex(oid: Any) -> str:
    raw = oid.encode("latin-1") if isinstance(oid, str) else oid
    if not isinstance(raw, bytes) or len(raw) != 8:
        raise ValueError("a reference to what is no oid")
    return raw.hex()


def _name_of(kind: Any) -> str:
    """Of a class as records tell it: itself, (it, arguments), or ((module, name), arguments)."""
    match kind:
        case Global():
            return kind.path
        case (Global() as named, _):
            return named.path
        case (str() as module, str() as name) | ((str() as module, str() as name), _):
            return f"{module}.{name}"
    return "?"
