"""What is in a record, read off its pickles without importing the class or anything else."""

from __future__ import annotations

import io
import pickle
import zlib
from binascii import unhexlify
from dataclasses import dataclass, field
from typing import Any

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
        looker = _Looker(io.BytesIO(data), found.references)  # one for both pickles, which share a memo
        found.class_name = _name_of(looker.load())
        looker.load()
    except Exception as error:  # whatever bytes can do to an unpickler; it is told
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


def plain(pickled: bytes) -> Any:
    """What is in a pickle of plain values, as a transaction's extension; ValueError for any other."""
    try:
        return _Plain(io.BytesIO(pickled)).load()
    except Exception as error:  # as above
        raise ValueError(f"not a pickle of plain values: {error}") from None


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


class _Stub:
    """In place of any class, and of what is made with it: takes what a pickle may do to it, and does nothing."""

    path = ""

    def __new__(cls, *args: object, **options: object) -> _Stub:
        return super().__new__(cls)

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


class _Looker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, references: list[Reference]) -> None:
        super().__init__(file, encoding="latin-1")
        self._references = references

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        return type("_Stub", (_Stub,), {"path": f"{module}.{name}"})

    def persistent_load(self, reference: Any) -> Any:
        self._references.append(_reference(reference))
        return _Stub()


def _bytes_of(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 write bytes: `_codecs.encode(text, "latin1")`."""
    return text.encode("latin-1")


_SAFE: dict[tuple[str, str], Any] = {("_codecs", "encode"): _bytes_of, ("zodbpickle", "binary"): bytes}


def _reference(found: Any) -> Reference:
    """See `ZODB.serialize` for the forms. ValueError for another."""
    match found:
        case bytes() | str():
            return Reference(_hex(found))
        case (bytes() | str() as oid, kind) if isinstance(found, tuple):
            return Reference(_hex(oid), _name_of(kind))
        case [bytes() | str() as oid]:  # weak, as ZODB wrote it long ago
            return Reference(_hex(oid), weak=True)
        case ["w", (oid,)]:
            return Reference(_hex(oid), weak=True)
        case ["w", (oid, database)]:
            return Reference(_hex(oid), "", str(database), weak=True)
        case ["n", (database, oid)]:
            return Reference(_hex(oid), "", str(database))
        case ["m", (database, oid, kind)]:
            return Reference(_hex(oid), _name_of(kind), str(database))
    raise ValueError("a reference of no known form")


def _hex(oid: bytes | str) -> str:
    raw = oid.encode("latin-1") if isinstance(oid, str) else bytes(oid)
    if len(raw) != 8:
        raise ValueError("a reference to what is no oid")
    return raw.hex()


def _name_of(kind: Any) -> str:
    """Of a class as records tell it: itself, (it, arguments), or ((module, name), arguments)."""
    match kind:
        case (str() as module, str() as name):
            return f"{module}.{name}"
        case (inner, _):
            return _name_of(inner)
    path = getattr(kind, "path", "")
    return str(path) or "?"
