"""Whether two databases hold the same: transaction by transaction, record by record, blob by blob."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ZODB.blob import is_blob_record
from ZODB.POSException import POSKeyError

from .places import OpenBlob, Place, last_records

_BLOCK = 1 << 20


@dataclass(slots=True)
class Counts:
    """What was seen. `bytes`: of records; `blobs` are not in it."""

    transactions: int = 0
    records: int = 0
    bytes: int = 0
    blobs: int = 0


class Different(Exception):
    """Says what differs, and where."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two things that are compared. `fewer`: whether it may hold less than the other one, as of a tid (it
    was packed up to there, or only what was current was copied)."""

    name: str
    transactions: Iterator[Any]
    open_blob: OpenBlob | None
    fewer: Callable[[bytes], bool]


def side(place: Place, transactions: Iterator[Any], *, current_only: bool = False) -> Side:
    packed = place.packed
    return Side(place.name, transactions, place.open_blob, lambda tid: current_only or tid <= packed)


def compare(left: Side, right: Side, progress: Callable[[int], object] | None = None) -> Counts:
    """Reads both to their ends; `progress(bytes)` after each transaction. Different says where they part.

    Blobs are compared when both sides have blob support.
    """
    counts = Counts()
    one: Any = next(left.transactions, None)
    other: Any = next(right.transactions, None)
    while one is not None or other is not None:
        if one is None or (other is not None and other.tid < one.tid):
            _must_be_allowed(left, other.tid, right)
            other = next(right.transactions, None)
        elif other is None or one.tid < other.tid:
            _must_be_allowed(right, one.tid, left)
            one = next(left.transactions, None)
        else:
            before = counts.bytes
            _compare_transactions(left, one, right, other, counts)
            if progress is not None:
                progress(counts.bytes - before)
            one, other = next(left.transactions, None), next(right.transactions, None)
    return counts


def _must_be_allowed(lacking: Side, tid: bytes, having: Side) -> None:
    if not lacking.fewer(tid):
        raise Different(f"{having.name} has transaction {tid.hex()}, {lacking.name} has not")


def _compare_transactions(left: Side, one: Any, right: Side, other: Any, counts: Counts) -> None:
    tid: bytes = one.tid
    for what, mine, theirs in zip(("user", "description", "extension"), _about(one), _about(other), strict=True):
        if mine != theirs:
            raise Different(
                f"transaction {tid.hex()} has another {what} in {right.name}: {theirs!r}, not {mine!r}"
            )
    mine, theirs = last_records(one), last_records(other)
    for lacking, records, more, having in ((right, theirs, mine, left), (left, mine, theirs, right)):
        missing = next((oid for oid in more if oid not in records), None)
        if missing is not None and not (lacking.fewer(tid) or _is_packed(other if lacking is right else one)):
            raise Different(
                f"transaction {tid.hex()} has object {missing.hex()} in {having.name}, not in {lacking.name}"
            )
    for oid, record in theirs.items():
        if oid in mine:
            if mine[oid].data != record.data:
                raise Different(f"object {oid.hex()} of transaction {tid.hex()} differs in {right.name}")
            counts.blobs += _compare_blobs(left, right, mine[oid], tid)
            counts.records += 1
            counts.bytes += len(record.data or b"")
    counts.transactions += 1


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


def _is_packed(transaction: Any) -> bool:
    return as_bytes(transaction.status) == b"p"


def _compare_blobs(left: Side, right: Side, record: Any, tid: bytes) -> int:
    """How many blobs: none or one."""
    if left.open_blob is None or right.open_blob is None or not is_blob_record(record.data):
        return 0
    mine, theirs = _open(left.open_blob, record.oid, tid), _open(right.open_blob, record.oid, tid)
    if mine is None and theirs is None:
        return 0
    if mine is None or theirs is None:
        lacking = left if mine is None else right
        (mine or theirs).close()
        raise Different(f"the blob of object {record.oid.hex()} of {tid.hex()} is missing in {lacking.name}")
    with mine, theirs:
        while True:
            data = mine.read(_BLOCK)
            if data != theirs.read(_BLOCK):
                raise Different(f"the blob of object {record.oid.hex()} of {tid.hex()} differs in {right.name}")
            if not data:
                return 1


def _open(open_blob: OpenBlob, oid: bytes, tid: bytes) -> Any:
    try:
        return open_blob(oid, tid)
    except POSKeyError:
        return None
