"""`raftstorage undo`: takes transactions back, all of them in one new transaction or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raftstorage.ops.errors import CommandError
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import ConflictError, MultipleUndoErrors, POSKeyError, UndoError

from .log import printable
from .records import summarize

if TYPE_CHECKING:
    from raftstorage.client import ClientStorage

LAST = b"\x7f" + b"\xff" * 7
#: Objects, or reasons, that are told to a person one by one.
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an object: it is "changed", "removed" or "restored". `class_name`: of what there is then, or
    of what is removed."""

    oid: bytes
    effect: str
    class_name: str


@dataclass(frozen=True, slots=True)
class Undone:
    """`tid`: of the new transaction; None: there is none, but `changes` say what it would do."""

    tid: bytes | None
    oids: list[bytes]
    changes: list[Change] = field(default_factory=list)


def undo(storage: ClientStorage, tids: Sequence[bytes], *, user: str, note: str, dry_run: bool) -> Undone:
    """The newest is undone first. CommandError says why not; nothing is changed then."""
    wanted = sorted(set(tids), reverse=True)
    for tid in wanted:
        if next(iter(storage.iterator(tid, tid)), None) is None:
            raise CommandError(f"there is no transaction {tid.hex()}")
    meta = TransactionMetaData(user, note or "undo " + " ".join(tid.hex() for tid in wanted))
    undone: dict[bytes, bytes] = {}  # by oid, the oldest of the transactions
    storage.tpc_begin(meta)
    try:
        for tid in wanted:
            undone |= dict.fromkeys(_undo_one(storage, tid, meta), tid)
        storage.tpc_vote(meta)
        changes = _changes(storage, undone) if dry_run else []
    except ConflictError as error:
        storage.tpc_abort(meta)
        raise CommandError(f"nothing was undone, others were faster, try again: {error}") from None
    except BaseException:
        storage.tpc_abort(meta)
        raise
    if dry_run:
        storage.tpc_abort(meta)
        return Undone(None, list(undone), changes)
    return Undone(storage.tpc_finish(meta), list(undone))


def _undo_one(storage: ClientStorage, tid: bytes, meta: TransactionMetaData) -> list[bytes]:
    try:
        return storage.undo(tid, meta)[1]
    except UndoError as error:
        reasons = list(_reasons(error))
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise CommandError(
            f"nothing was undone, transaction {tid.hex()} cannot be: {'; '.join(reasons[:SHOWN])}{more}"
        ) from None


def _reasons(error: UndoError) -> Iterator[str]:
    """Of each object, for a person."""
    if isinstance(error, MultipleUndoErrors):
        for oid, each in error._errs:
            yield f"object {oid.hex()}: {getattr(each, '_reason', each)}"
    else:
        yield str(error._reason)


def _changes(storage: ClientStorage, undone: Mapping[bytes, bytes]) -> list[Change]:
    found = []
    for oid, tid in undone.items():
        earlier, current = _data(storage, oid, tid), _data(storage, oid, LAST)
        effect = "removed" if earlier is None else "restored" if current is None else "changed"
        data = current if earlier is None else earlier
        found.append(Change(oid, effect, "?" if data is None else summarize(data).class_name))
    return found


def _data(storage: ClientStorage, oid: bytes, before: bytes) -> bytes | None:
    """None: there was no such object then."""
    try:
        found = storage.loadBefore(oid, before)
    except POSKeyError:
        return None
    return None if found is None else found[0]


def as_json(undone: Undone) -> dict[str, Any]:
    """Ready for `json.dumps`."""
    effects = {each.oid: {"effect": each.effect, "class": each.class_name} for each in undone.changes}
    return {
        "tid": undone.tid.hex() if undone.tid is not None else None,
        "objects": [{"oid": oid.hex(), **effects.get(oid, {})} for oid in undone.oids],
    }


def lines(undone: Undone) -> Iterator[str]:
    """For a person."""
    if undone.tid is not None:
        yield f"undone by {undone.tid.hex()}: {len(undone.oids)} objects changed"
        return
    yield f"can be undone: {len(undone.oids)} objects would change"
    for each in undone.changes[:SHOWN]:
        yield printable(f"  {each.oid.hex()}  {each.effect:8}  {each.class_name}")
    if len(undone.changes) > SHOWN:
        yield f"  and {len(undone.changes) - SHOWN} more"
