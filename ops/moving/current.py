"""Only what is current: the history of a database without what later transactions replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any

from BTrees.QQBTree import QQBTree

from .places import last_records


class CurrentRevisions:
    """Where each object's newest revision is. 16 bytes of memory and a little more for each object."""

    def __init__(self, transactions: Iterable[Any], progress: Callable[[Any], object]) -> None:
        """Reads all of it once, up to the tid as of which things are to be current."""
        self._tids = QQBTree()
        for transaction in transactions:
            tid = int.from_bytes(transaction.tid)
            for record in transaction:
                self._tids[int.from_bytes(record.oid)] = tid
            progress(transaction)

    def of(self, transactions: Iterable[Any], *, deletions: bool = False) -> Iterator[Any]:
        """Each of the same transactions with its records that are current, and without the others; one that has
        none is left out. `deletions`: that an object was deleted is a record, too."""
        for transaction in transactions:
            only = _Current(transaction, self._tids, deletions)
            if any(True for _ in only):
                yield only


class _Current:
    def __init__(self, transaction: Any, tids: Any, deletions: bool) -> None:
        self._transaction = transaction
        self._tids = tids
        self._deletions = deletions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def __iter__(self) -> Iterator[Any]:
        tid = int.from_bytes(self._transaction.tid)
        for record in last_records(self._transaction).values():
            if record.data is None and not self._deletions:
                continue
            if self._tids.get(int.from_bytes(record.oid)) == tid:
                record = copy(record)
                record.data_txn = None  # what it repeats is not there any more
                yield record
