"""`raftstorage undo`: takes transactions back, all of them in one new transaction or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raftstorage.ops.errors import CommandError
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import ConflictError, UndoError

if TYPE_CHECKING:
    from raftstorage.client import ClientStorage


def undo(
    storage: ClientStorage, tids: Sequence[bytes], *, user: str, note: str, dry_run: bool
) -> tuple[bytes | None, list[bytes]]:
    """The new transaction's tid (None: `dry_run`), and the objects that it changes. The newest is undone first.

    CommandError says why not; nothing is changed then.
    """
    wanted = sorted(set(tids), reverse=True)
    known = [tid for tid in wanted if next(iter(storage.iterator(tid, tid)), None) is not None]
    if len(known) < len(wanted):
        missing = next(tid for tid in wanted if tid not in known)
        raise CommandError(f"there is no transaction {missing.hex()}")
    meta = TransactionMetaData(user, note or "undo " + " ".join(tid.hex() for tid in wanted))
    changed: dict[bytes, None] = {}
    storage.tpc_begin(meta)
    try:
        for tid in wanted:
            changed |= dict.fromkeys(storage.undo(tid, meta)[1])
        storage.tpc_vote(meta)
    except (UndoError, ConflictError) as error:
        storage.tpc_abort(meta)
        raise CommandError(f"nothing was undone: {error}") from None
    except BaseException:
        storage.tpc_abort(meta)
        raise
    if dry_run:
        storage.tpc_abort(meta)
        return None, list(changed)
    return storage.tpc_finish(meta), list(changed)
