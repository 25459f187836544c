"""Whole transactions in tid order, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import zope.interface
from raftstorage.proto import storage_pb2 as pb
from ZODB import interfaces
from ZODB.BaseStorage import DataRecord, TransactionRecord

from ..cluster import Call, Cluster
from .errors import as_zodb

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
        self._records = [_StoredRecord(message.tid, record) for record in message.records]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._records)


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
            start = (int.from_bytes(page.transactions[-1].tid) + 1).to_bytes(8)
