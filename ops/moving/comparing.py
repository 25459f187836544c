"""Whether two databases hold the same: transaction by transaction, record by record, blob by blob."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ZODB.blob import is_blob_record
from ZODB.POSException import POSKeyError

from .packed import Different, Missing
from .places import OpenBlob, Place, last_records

_BLOCK = 1 << 20


@dataclass(slots=True)
class Counts:
    """What was seen. `bytes`: of records; `blobs` are not in it. `blobs_unseen`: one of the two gives no blobs."""

    transactions: int = 0
    records: int = 0
    bytes: int = 0
    blobs: int = 0
    blobs_unseen: int = 0


@dataclass(frozen=True, slots=True)
class Side:
    """One of two places that are compared, from one tid to another. `partial`: it holds only what was current when
    it was copied, and may lack anything."""

    place: Place
    transactions: Iterator[Any]
    partial: bool = False


def compare(left: Side, right: Side, progress: Callable[[int], object] | None = None) -> Counts:
    """Reads both to their ends; `progress(bytes)` after each transaction. Different says where they part.

    What a pack took from one of them is no difference. Blobs are compared when both sides have blob support.
    """
    return _Comparison(left, right).run(progress or (lambda count: None))


class _Comparison:
    def __init__(self, left: Side, right: Side) -> None:
        self._left = left
        self._right = right
        self._counts = Counts()
        self._missing_left = Missing(left.place, right.place.name)
        self._missing_right = Missing(right.place, left.place.name)
        self._metadata = left.place.keeps_history and right.place.keeps_history

    def run(self, progress: Callable[[int], object]) -> Counts:
        left, right, counts = self._left, self._right, self._counts
        one: Any = next(left.transactions, None)
        other: Any = next(right.transactions, None)
        while one is not None or other is not None:
            if one is None or (other is not None and other.tid < one.tid):
                self._lacks_transaction(left, self._missing_left, other, right)
                other = next(right.transactions, None)
            elif other is None or one.tid < other.tid:
                self._lacks_transaction(right, self._missing_right, one, left)
                one = next(left.transactions, None)
            else:
                before = counts.bytes
                self._compare_transactions(one, other)
                progress(counts.bytes - before)
                one, other = next(left.transactions, None), next(right.transactions, None)
        self._missing_left.judge()
        self._missing_right.judge()
        return counts

    def _lacks_transaction(self, lacking: Side, missing: Missing, transaction: Any, having: Side) -> None:
        if lacking.partial:
            return
        tid = transaction.tid
        text = f"{having.place.name} has transaction {tid.hex()}, {lacking.place.name} has not"
        missing.note_transaction(tid, text)
        for record in last_records(transaction).values():
            missing.note(tid, record, text)

    def _compare_transactions(self, one: Any, other: Any) -> None:
        left, right, counts = self._left, self._right, self._counts
        tid: bytes = one.tid
        if self._metadata:
            for what, mine, theirs in zip(_ABOUT, _about(one), _about(other), strict=True):
                if mine != theirs:
                    raise Different(
                        f"transaction {tid.hex()} has another {what} in {right.place.name}: "
                        f"{theirs!r}, not {mine!r}"
                    )
        mine, theirs = last_records(one), last_records(other)
        self._lacks_records(tid, right, self._missing_right, theirs, mine, left)
        self._lacks_records(tid, left, self._missing_left, mine, theirs, right)
        for oid, record in theirs.items():
            if oid in mine:
                if mine[oid].data != record.data:
                    raise Different(f"object {oid.hex()} of transaction {tid.hex()} differs in {right.place.name}")
                self._missing_left.found(tid, oid)
                self._missing_right.found(tid, oid)
                self._compare_blobs(mine[oid], tid)
                counts.records += 1
                counts.bytes += len(record.data or b"")
        counts.transactions += 1

    def _lacks_records(
        self,
        tid: bytes,
        lacking: Side,
        missing: Missing,
        there: dict[bytes, Any],
        more: dict[bytes, Any],
        having: Side,
    ) -> None:
        if lacking.partial:
            return
        for oid, record in more.items():
            if oid not in there:
                missing.note(
                    tid,
                    record,
                    f"transaction {tid.hex()} has object {oid.hex()} in {having.place.name}, "
                    f"not in {lacking.place.name}",
                )

    def _compare_blobs(self, record: Any, tid: bytes) -> None:
        if not is_blob_record(record.data):
            return
        left, right = self._left.place, self._right.place
        if left.open_blob is None or right.open_blob is None:
            self._counts.blobs_unseen += 1
            return
        mine, theirs = _open(left.open_blob, record.oid, tid), _open(right.open_blob, record.oid, tid)
        if mine is None and theirs is None:
            return
        name = f"the blob of object {record.oid.hex()} of transaction {tid.hex()}"
        if mine is None or theirs is None:
            (mine or theirs).close()
            raise Different(f"{name} is missing in {(left if mine is None else right).name}")
        with mine, theirs:
            while True:
                data = mine.read(_BLOCK)
                if data != theirs.read(_BLOCK):
                    raise Different(f"{name} differs in {right.name}")
                if not data:
                    break
        self._counts.blobs += 1


_ABOUT = ("user", "description", "extension")


def _about(transaction: Any) -> tuple[bytes, bytes, object]:
    return as_bytes(transaction.user), as_bytes(transaction.description), extension_of(transaction)


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def extension_of(transaction: Any) -> object:
    """The extension's bytes; of a storage that gives a dictionary only, these bytes as they would be pickled."""
    try:
        return bytes(transaction.extension_bytes)
    except AttributeError:
        extension = transaction.extension
        return bytes(pickle.dumps(extension, 3)) if extension else b""


def _open(open_blob: OpenBlob, oid: bytes, tid: bytes) -> Any:
    try:
        return open_blob(oid, tid)
    except POSKeyError:
        return None
