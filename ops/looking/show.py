"""`raftstorage show`: one object with its history, or one transaction with its records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from raftstorage.ops.errors import CommandError
from ZODB.POSException import POSKeyError

from .log import extension, printable, text
from .names import parse_oid, parse_tid, time_of
from .records import summarize

if TYPE_CHECKING:
    from raftstorage.client import ClientStorage

Z64 = b"\0" * 8
LAST = b"\x7f" + b"\xff" * 7


def look(storage: ClientStorage, name: str, *, at: bytes | None = None, revisions: int = 20) -> dict[str, Any]:
    """What `name` is: a transaction when there is one with that tid, else an object, as of the tid `at` or now.

    Ready for `json.dumps`. CommandError when there is neither.
    """
    try:
        tid = parse_tid(name)
    except ValueError:
        tid = None
    found = None if tid is None else next(iter(storage.iterator(tid, tid)), None)
    if found is not None:
        return _transaction(storage, found)
    oid = parse_oid(name)
    try:
        return _object(storage, oid, at, revisions)
    except POSKeyError:
        what = "object" if tid is None else "transaction and no object"
        raise CommandError(f"there is no {what} {name}" + ("" if at is None else f" at {at.hex()}")) from None


def _object(storage: ClientStorage, oid: bytes, at: bytes | None, revisions: int) -> dict[str, Any]:
    history = storage.history(oid, revisions)
    before = LAST if at is None else (int.from_bytes(at) + 1).to_bytes(8)
    shown: dict[str, Any] = {"oid": oid.hex()}
    try:
        record = storage.loadBefore(oid, before)
    except POSKeyError:
        if at is not None:
            raise
        record = None
        shown["deleted"] = True
    if record is None and at is not None:
        raise POSKeyError(oid)
    if record is not None:
        data, serial, following = record
        shown |= {"tid": serial.hex(), "time": time_of(serial), "next": following.hex() if following else None}
        shown |= _summary(data)
    shown["history"] = [
        {
            "tid": each["tid"].hex(),
            "time": time_of(each["tid"]),
            "user": text(each["user_name"]),
            "description": text(each["description"]),
            "size": each["size"],
        }
        for each in history
    ]
    return shown


def _summary(data: bytes) -> dict[str, Any]:
    found = summarize(data)
    shown: dict[str, Any] = {"class": found.class_name, "size": len(data)}
    if found.problem:
        shown["problem"] = found.problem
    shown["references"] = [
        {"oid": each.oid}
        | ({"class": each.class_name} if each.class_name else {})
        | ({"database": each.database} if each.database else {})
        | ({"weak": True} if each.weak else {})
        for each in found.references
    ]
    return shown


def _transaction(storage: ClientStorage, found: Any) -> dict[str, Any]:
    records = []
    for record in found:
        shown: dict[str, Any] = {"oid": record.oid.hex()}
        if record.data is None:
            shown["deleted"] = True
        else:
            summary = _summary(record.data)
            shown |= {"class": summary["class"], "size": summary["size"], "references": len(summary["references"])}
            shown |= {"problem": summary["problem"]} if "problem" in summary else {}
        if record.data_txn:
            shown["same_as"] = record.data_txn.hex()
        if record.blob is not None:
            shown["blob_size"] = record.blob.size
        records.append(shown)
    return {
        "tid": found.tid.hex(),
        "time": time_of(found.tid),
        "status": found.status if isinstance(found.status, str) else found.status.decode(),
        "user": text(found.user),
        "description": text(found.description),
        "extension": extension(found.extension_bytes) if found.extension_bytes else None,
        "records": records,
    }


# ---- for a person ----------------------------------------------------------------------------------------------


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What `look` found, for a terminal."""
    return map(printable, _lines_of_transaction(found) if "records" in found else _lines_of_object(found))


def _lines_of_transaction(found: dict[str, Any]) -> Iterator[str]:
    yield f"transaction {found['tid']}  {found['time']}"
    for name in ("user", "description", "extension"):
        if found[name]:
            yield f"{name}: {found[name]}"
    rows = []
    for each in found["records"]:
        notes = [
            *([f"{each['references']} references"] if each.get("references") else []),
            *(["deleted"] if each.get("deleted") else []),
            *([f"as of {each['same_as']}"] if "same_as" in each else []),
            *([f"blob of {each['blob_size']:,} bytes"] if "blob_size" in each else []),
            *([each["problem"]] if "problem" in each else []),
        ]
        size = f"{each['size']:,} bytes" if "size" in each else ""
        rows.append((each["oid"], size, each.get("class", ""), ", ".join(notes)))
    yield from _columns(rows)


def _lines_of_object(found: dict[str, Any]) -> Iterator[str]:
    if found.get("deleted"):
        yield f"object {found['oid']} is deleted"
    else:
        yield f"object {found['oid']}  {found['class']}"
        following = f", then changed by {found['next']}" if found["next"] else ""
        yield f"{found['size']:,} bytes since {found['tid']}  {found['time']}{following}"
        if "problem" in found:
            yield found["problem"]
        rows = []
        for each in found["references"]:
            database = f"in database {each['database']}" if "database" in each else ""
            rows.append(("  ->", each["oid"], each.get("class", ""), database, "weak" if "weak" in each else ""))
        yield from _columns(rows)
    yield "history, newest first:"
    yield from _columns(
        [
            (f"  {each['tid']}", each["time"], f"{each['size']:,} bytes", each["user"], each["description"])
            for each in found["history"]
        ]
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
