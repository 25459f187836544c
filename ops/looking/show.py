"""`raftstorage show`: one object with its history, or one transaction with its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftstorage.ops.errors import CommandError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from ZODB.POSException import POSKeyError

from .log import extension, text
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


def show(found: dict[str, Any], console: Console) -> None:
    """Prints what `look` found."""
    if "records" in found:
        _show_transaction(found, console)
    else:
        _show_object(found, console)


def _show_transaction(found: dict[str, Any], console: Console) -> None:
    console.print(f"transaction {found['tid']}  {found['time']}", highlight=False)
    for name in ("user", "description", "extension"):
        if found[name]:
            console.print(f"{name}: {found[name]}", markup=False, highlight=False)
    table = _table("oid", "class", "size", "references", "")
    for each in found["records"]:
        notes = [
            *(["deleted"] if each.get("deleted") else []),
            *([f"as of {each['same_as']}"] if "same_as" in each else []),
            *([f"blob of {each['blob_size']:,} bytes"] if "blob_size" in each else []),
            *([each["problem"]] if "problem" in each else []),
        ]
        table.add_row(
            each["oid"],
            escape(each.get("class", "")),
            f"{each['size']:,}" if "size" in each else "",
            str(each.get("references", "")),
            escape(", ".join(notes)),
        )
    console.print(table)


def _show_object(found: dict[str, Any], console: Console) -> None:
    if found.get("deleted"):
        console.print(f"object {found['oid']} is deleted", highlight=False)
    else:
        console.print(f"object {found['oid']}  {found['class']}", markup=False, highlight=False)
        following = f", then changed by {found['next']}" if found["next"] else ""
        console.print(f"{found['size']:,} bytes since {found['tid']}  {found['time']}{following}", highlight=False)
        if "problem" in found:
            console.print(found["problem"], markup=False, highlight=False)
        for each in found["references"]:
            database = f" in database {each['database']}" if "database" in each else ""
            weak = ", weak" if each.get("weak") else ""
            console.print(
                f"  -> {each['oid']}  {each.get('class', '')}{database}{weak}", markup=False, highlight=False
            )
    table = _table("tid", "time", "user", "size", "description")
    for each in found["history"]:
        table.add_row(
            each["tid"], each["time"], escape(each["user"]), f"{each['size']:,}", escape(each["description"])
        )
    console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("size", "references") else "left")
    return table
