"""Reading many objects as of one point, and transactions, for what stores them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from raftstorage.proto import storage_pb2 as pb

from ..cluster import Call, Cluster
from ..cluster.errors import RequestRefused
from .errors import as_zodb

#: What LoadMany takes.
MANY = 1000
LONGEST_HISTORY = 10_000


def after(tid: bytes) -> bytes:
    """The next tid."""
    return (int.from_bytes(tid) + 1).to_bytes(8)


class Found(NamedTuple):
    """A revision. `data` is None when it is a deletion, or when there is none: then `serial` is empty."""

    data: bytes | None
    serial: bytes


NOTHING = Found(None, b"")


class Reader:
    """Reads what is committed up to `point`, from any replica that has it. Raises ZODB's errors."""

    def __init__(self, cluster: Cluster, point: bytes) -> None:
        self._cluster = cluster
        self._point = point
        self.end = after(point)

    def packed(self) -> bytes:
        """The tid of the newest pack; empty: there was none."""
        with as_zodb():
            return self._cluster.read(Call("size", pb.Size()), self._point, leader_first=True).size.packed

    def transaction(self, tid: bytes) -> pb.CommittedTransaction | None:
        call = Call(
            "read_transactions", pb.ReadTransactions(start=tid, stop=tid, max_bytes=1, at_least=self._point)
        )
        with as_zodb():
            found = self._cluster.read(call, self._point).transactions.transactions
        return found[0] if found else None

    def before(self, oids: Iterable[bytes], tid: bytes) -> dict[bytes, Found]:
        """The newest revision below `tid` of each, deletions included."""
        found: dict[bytes, Found] = {}
        left = list(oids)
        while len(left) > 1:
            some, rest = left[:MANY], left[MANY:]
            found.update(self._many(some, tid))
            missing = [oid for oid in some if oid not in found]
            if len(missing) == len(some):
                found.update((oid, self._one(oid, tid)) for oid in missing)
                missing = []
            left = missing + rest  # of these more may fit into an answer
        found.update((oid, self._one(oid, tid)) for oid in left)
        return found

    def _many(self, oids: Sequence[bytes], tid: bytes) -> dict[bytes, Found]:
        call = Call("load_many", pb.LoadMany(oids=oids, before=tid, at_least=self._point))
        with as_zodb():
            records = self._cluster.read(call, self._point).records.records
        return {one.oid: Found(one.record.data, one.record.serial) for one in records if one.record.serial}

    def _one(self, oid: bytes, tid: bytes) -> Found:
        call = Call("load_before", pb.LoadBefore(oid=oid, before=tid, at_least=self._point))
        try:
            with as_zodb(oid, but={pb.NO_SUCH_OBJECT, pb.PACKED}):
                record = self._cluster.read(call, self._point).record
        except RequestRefused as refused:
            if refused.reason == pb.PACKED:  # all that can be read again begins above `tid`
                return NOTHING
            return Found(None, self._deletion(oid, tid))
        return Found(record.data, record.serial) if record.serial else NOTHING

    def has_blob(self, oid: bytes, serial: bytes) -> bool:
        call = Call("load_blob", pb.LoadBlob(oid=oid, serial=serial, max_bytes=1, at_least=self._point))
        try:
            with as_zodb(oid, but={pb.NO_SUCH_OBJECT}):
                self._cluster.read(call, self._point)
        except RequestRefused:
            return False
        return True

    def _deletion(self, oid: bytes, tid: bytes) -> bytes:
        """The tid of the deletion that is the newest revision below `tid`; empty: the object was never there."""
        size = 1
        while True:
            call = Call("history", pb.History(oid=oid, size=size, at_least=self._point))
            try:
                with as_zodb(oid, but={pb.NO_SUCH_OBJECT}):
                    revisions = self._cluster.read(call, self._point).history.revisions
            except RequestRefused:
                return b""
            for revision in revisions:
                if revision.tid < tid:
                    return revision.tid
            if len(revisions) < size or size == LONGEST_HISTORY:
                return b""
            size = min(LONGEST_HISTORY, size * 100)
