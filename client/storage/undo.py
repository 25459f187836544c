"""Undoing transactions: what was before them is stored again, on top of what there is now.

What FileStorage does, and what it refuses, is done and refused here: see `_transactionalUndoRecord` there.
"""

from __future__ import annotations

import binascii
import contextlib
from base64 import decodebytes, encodebytes
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from persistent.TimeStamp import TimeStamp
from raftstorage.proto import storage_pb2 as pb
from ZODB import POSException
from ZODB._compat import loads
from ZODB.blob import is_blob_record
from ZODB.ConflictResolution import ConflictResolvingStorage

from ..cluster import Call, Cluster
from ..cluster.bodies import Record
from .errors import as_zodb
from .reading import Found, Reader, after

if TYPE_CHECKING:
    from .tpc import Begun

Z64 = b"\0" * 8
#: Transactions asked for at once.
PAGE = 1000
Description = dict[str, Any]


class Undoing:
    """IStorageUndoable, for a storage with `cluster` and the methods of a ClientStorage."""

    cluster: Cluster
    _begun: Callable[[Any], Begun]
    _want_writable: Callable[[], None]
    _want_history: Callable[[], None]
    lastTransaction: Callable[[], bytes]  # noqa: N815

    def supportsUndo(self) -> bool:  # noqa: N802
        return True

    def undo(self, transaction_id: bytes, transaction: Any) -> tuple[None, list[bytes]]:
        """Takes back one more transaction in `transaction`, between its begin and its vote: (None, changed oids).

        `transaction_id`: the `id` of `undoLog` or `undoInfo`, or a tid. Several transactions may be undone in one,
        each on top of those before it. Where an object was changed since, conflict resolution may keep the later
        change. UndoError says why it cannot be done, and nothing is changed then; tpc_vote may still raise
        ConflictError when others change the same objects meanwhile.
        """
        self._want_writable()
        self._want_history()
        begun = self._begun(transaction)
        return None, begun.undo(_tid(transaction_id))

    def undoLog(  # noqa: N802
        self,
        first: int = 0,
        last: int = -20,
        filter: Callable[[Description], object] | None = None,  # noqa: A002
    ) -> list[Description]:
        """Descriptions of the transactions that can be undone, newest first, of those that `filter` lets through
        the ones from number `first` up to but without `last`; a negative `last` is how many.

        Each has `id`, `time` (seconds), `user_name`, `description` (bytes) and what is in the extension.
        """
        if last < 0:
            last = first - last
        found: list[Description] = []
        number = 0
        if last <= first:
            return found
        for description in self._undoable(last if filter is None else PAGE):
            if filter is None or filter(description):
                if number >= first:
                    found.append(description)
                number += 1
                if number >= last:
                    break
        return found

    def undoInfo(  # noqa: N802
        self, first: int = 0, last: int = -20, specification: Mapping[str, Any] | None = None
    ) -> list[Description]:
        """As undoLog, of the transactions whose descriptions have all that is in `specification`."""
        if not specification:
            return self.undoLog(first, last)
        wanted = dict(specification)

        def fits(description: Description) -> bool:
            return all(description.get(key) == value for key, value in wanted.items())

        return self.undoLog(first, last, fits)

    def _undoable(self, wanted: int) -> Iterator[Description]:
        last = self.lastTransaction()
        before = after(last)
        while before:
            count = max(1, min(wanted, PAGE))
            call = Call("transaction_log", pb.TransactionLog(before=before, count=count, at_least=last))
            with as_zodb():
                page = self.cluster.read(call, last).heads
            for head in page.transactions:
                if head.tid <= page.packed or head.status == b"p":
                    return
                if head.status in (b"", b" "):
                    yield _describe(head)
            before = page.before


def _describe(head: pb.CommittedTransaction) -> Description:
    extension: Description = {}
    if head.extension:
        with contextlib.suppress(Exception):  # of an application, perhaps with classes that are not here
            extension = dict(loads(head.extension))
    return {
        "id": encodebytes(head.tid).rstrip(),
        "time": TimeStamp(head.tid).timeTime(),
        "user_name": head.user,
        "description": head.description,
        **extension,
    }


def _tid(transaction_id: bytes) -> bytes:
    """From a transaction's id, or the tid itself. UndoError."""
    if len(transaction_id) == 8:
        return transaction_id
    try:
        tid = decodebytes(transaction_id)
    except (binascii.Error, TypeError):
        tid = b""
    if len(tid) != 8:
        raise POSException.UndoError("Invalid transaction id")
    return tid


class _Now(NamedTuple):
    """An object as it will be if nothing more is done to it."""

    base: bytes  # the newest serial that is committed
    data: bytes | None  # None: there is no such object
    tid: bytes | None  # whose revision this is; None: of the transaction that is being made
    repeats: bytes = b""  # then, the tid whose data it has


class Undo:
    """One transaction and what it takes to take it back.

    `pending`: what the transaction that undoes it changes already. `storage`: resolves conflicts.
    """

    def __init__(
        self,
        reader: Reader,
        tid: bytes,
        pending: Mapping[bytes, Record],
        storage: ConflictResolvingStorage,
    ) -> None:
        self._reader = reader
        self._tid = tid
        self._pending = pending
        self._storage = storage

    def records(self) -> list[Record]:
        """What to store. UndoError."""
        undone = self._transaction()
        oids = [record.oid for record in undone]
        earlier = self._reader.before(oids, self._tid)
        current = self._reader.before([oid for oid in oids if oid not in self._pending], self._reader.end)
        made: list[Record] = []
        failures: list[tuple[bytes, Exception]] = []
        for record in undone:
            pending = self._pending.get(record.oid)
            if pending is None:
                found = current[record.oid]
                now = _Now(found.serial, found.data, found.serial)
            else:
                data = None if pending.no_data else pending.data
                now = _Now(pending.base_serial, data, None, pending.data_tid)
            try:
                made.append(self._record(record, earlier[record.oid], now))
            except POSException.UndoError as error:
                failures.append((record.oid, error))
        if failures:
            raise POSException.MultipleUndoErrors(failures)
        return made

    def _transaction(self) -> list[pb.StoredRecord]:
        transaction = self._reader.transaction(self._tid)
        if transaction is None:
            raise POSException.UndoError("Invalid transaction id")
        if self._tid <= self._reader.packed() or transaction.status not in (b"", b" "):
            raise POSException.UndoError("non-undoable transaction")
        return list(transaction.records)

    def _record(self, undone: pb.StoredRecord, earlier: Found, now: _Now) -> Record:
        oid = undone.oid
        was = None if undone.no_data else undone.data
        same = now.tid == self._tid or (was is not None and now.data == was)
        if not same and (was is None or now.data is None):
            if now.data is not None or not self._repeats(oid, now):
                raise POSException.UndoError("_loadBack() failed", oid)
            same = True
        if not earlier.serial:
            if not same:
                raise POSException.UndoError(
                    "Can't undo an add transaction followed by conflicting transactions.", oid
                )
            return Record(oid, now.base, no_data=True)
        if same:
            if earlier.data is None:
                return Record(oid, now.base, no_data=True, data_tid=earlier.serial)
            blob = self._blob(oid, earlier.serial, earlier.data)
            return Record(oid, now.base, earlier.data, data_tid=earlier.serial, blob=blob)
        if earlier.data is None or now.data is None:
            raise POSException.UndoError("_loadBack() failed", oid)
        try:
            data = self._storage.tryToResolveConflict(oid, now.base, self._tid, earlier.data, now.data)
        except POSException.ConflictError:
            raise POSException.UndoError("Some data were modified by a later transaction", oid) from None
        return Record(oid, now.base, data)

    def _repeats(self, oid: bytes, now: _Now) -> bool:
        """Whether a deletion is there because the one that is to be undone was: by being undone twice."""
        repeats = now.repeats
        if now.tid:
            transaction = self._reader.transaction(now.tid)
            records = () if transaction is None else transaction.records
            repeats = next((record.data_tid for record in records if record.oid == oid), b"")
        return repeats == self._tid

    def _blob(self, oid: bytes, serial: bytes, data: bytes) -> pb.Blob | None:
        """What names the blob of a revision, which may lack one: a copy of a database can be made without them."""
        if is_blob_record(self._storage._crs_untransform_record_data(data)) and self._reader.has_blob(oid, serial):
            return pb.Blob(same_as=serial)
        return None
