"""Whole transactions in tid order, and current records in oid order, a page at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import zope.interface
from raftstorage.proto import storage_pb2 as pb
from ZODB import interfaces
from ZODB.BaseStorage import DataRecord, TransactionRecord

from ..cluster import Call, Cluster
from ..cluster.errors import RequestRefused
from .errors import as_zodb
from .reading import after

PAGE_BYTES = 4 << 20


class _StoredRecord(DataRecord):  # type: ignore[misc]
    """`blob`: size and crc32c of the record's blob, or None."""

    def __init__(self, tid: bytes, record: pb.StoredRecord) -> None:
        super().__init__(record.oid, tid, None if record.no_data else record.data, record.data_tid or None)
        self.blob = record.blob if record.HasField("blob") else None


@zope.interface.implementer(interfaces.IStorageTransactionInformation)
class CommittedTransaction(TransactionRecord):  # type: ignore[misc]
    """One transaction; its records may be iterated over again and again. The extension's bytes are verbatim."""

    def __init__(self, message: pb.CommittedTransaction) -> None:
        super().__init__(
            message.tid,
            message.status.decode("latin-1") or " ",
            message.user,
            message.description,
            message.extension,
        )
        self._records = message.records

    def __iter__(self) -> Iterator[Any]:
        """New objects each time: HexStorage changes what it gets."""
        return (_StoredRecord(self.tid, record) for record in self._records)


class TransactionIterator:
    """What was committed when it was made: `start` to `stop`, both inclusive. Consumed once."""

    def __init__(self, cluster: Cluster, start: bytes | None, stop: bytes) -> None:
        self._transactions = self._read(cluster, start or b"\0" * 8, stop)

    def __iter__(self) -> Iterator[CommittedTransaction]:
        return self

    def __next__(self) -> CommittedTransaction:
        return next(self._transactions)

    @staticmethod
    def _read(cluster: Cluster, start: bytes, stop: bytes) -> Iterator[CommittedTransaction]:
        while start <= stop:
            call = Call(
                "read_transactions",
                pb.ReadTransactions(start=start, stop=stop, max_bytes=PAGE_BYTES, at_least=stop),
            )
            with as_zodb():
                page = cluster.read(call, stop).transactions
            for transaction in page.transactions:
                yield CommittedTransaction(transaction)
            if not page.more or not page.transactions:
                return
            start = after(page.transactions[-1].tid)


class _Page(NamedTuple):
    """Current records from `start` on, as of what is below `before`."""

    start: bytes
    before: bytes
    records: Sequence[pb.FoundRecord]
    next: bytes


class Iterating:
    """For a storage with `cluster` and the methods of a ClientStorage."""

    cluster: Cluster
    lastTransaction: Callable[[], bytes]  # noqa: N815
    _page: _Page | None = None  # where record_iternext was last: replaced, never changed

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> TransactionIterator:
        """Transactions from tid `start` to `stop`, both inclusive, of those that are there now."""
        last = self.lastTransaction()
        return TransactionIterator(self.cluster, start, last if stop is None else min(stop, last))

    def record_iternext(self, next: bytes | None = None) -> tuple[bytes, bytes, bytes, bytes | None]:  # noqa: A002
        """One current record after the other, by oid: (oid, tid, data, next), where `next`, to be passed back, is
        None at the end. ValueError when there is none.

        What is seen is as it was when the iteration began, unless the database was packed behind that meanwhile:
        then it is what is current. `next` may also be an oid to begin with.
        """
        token = next or b""
        start, before = token[:8], token[8:] or after(self.lastTransaction())
        page = self._page
        if page is None or page.before != before or not page.start <= start <= page.records[-1].oid:
            page = self._fetch_page(start, before)
        if not page.records:
            raise ValueError("the storage has no records from there on")
        index = bisect_left(page.records, start, key=lambda record: record.oid)
        found = page.records[index]
        if index + 1 == len(page.records) and page.next:  # where perhaps nothing is left
            page = self._fetch_page(page.next, page.before)
            index = -1
        self._page = page if page.records else None
        following = page.records[index + 1].oid + page.before if index + 1 < len(page.records) else None
        return found.oid, found.record.serial, found.record.data, following

    def _fetch_page(self, start: bytes, before: bytes) -> _Page:
        last = self.cluster.feed.last
        while True:
            call = Call(
                "current_records",
                pb.CurrentRecords(start=start, before=before, max_bytes=PAGE_BYTES, at_least=last),
            )
            try:
                with as_zodb(but={pb.PACKED}):
                    found = self.cluster.read(call, last).current
            except RequestRefused as refused:
                before = after(max(last, refused.failure.serial))
                continue
            if found.records or not found.next:
                return _Page(start, before, found.records, found.next)
            start = found.next  # it looked at so many that are gone

    def lastInvalidations(self, count: int) -> list[tuple[bytes, list[bytes]]]:  # noqa: N802
        """(tid, oids) of the newest `count` transactions, newest first: for a ZEO server that begins to serve."""
        last = self.lastTransaction()
        call = Call("transaction_log", pb.TransactionLog(count=max(1, min(count, 10_000)), at_least=last))
        with as_zodb():
            heads = self.cluster.read(call, last).heads.transactions
        if not heads or count < 1:
            return []
        found = [(each.tid, [record.oid for record in each]) for each in self.iterator(heads[-1].tid)]
        return found[::-1][:count]
