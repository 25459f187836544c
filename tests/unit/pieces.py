"""Transactions in pieces, for tests of either end of the wire."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raftstorage.node.parts import Parts
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb


def put_together(bodies: list[bytes]) -> bytes:
    """The Transaction that came in `bodies`, in one. AssertionError when a record's data is not complete."""
    whole = pb.Transaction()
    goes_on = False
    for transaction in map(pb.Transaction.FromString, bodies):
        for record in transaction.records:
            if goes_on:
                assert record.oid == whole.records[-1].oid and not record.base_serial
                whole.records[-1].data += record.data
            else:
                whole.records.add().CopyFrom(record)
            goes_on = record.more
            whole.records[-1].more = False
        del transaction.records[:]
        whole.MergeFrom(transaction)
    assert not goes_on
    return whole.SerializeToString()


def pieces(transaction: pb.Transaction, sizes: Iterable[int], cut: int = 1 << 30) -> tuple[list[bytes], bytes]:
    """Parts of so many records each while there are any, and the rest. A record above `cut` bytes of data is
    spread over parts of its own."""
    rest = pb.Transaction()
    rest.CopyFrom(transaction)
    records = list(rest.records)
    del rest.records[:]
    found: list[bytes] = []
    for size in sizes:
        some, records = records[:size], records[size:]
        if len(some) == 1 and len(some[0].data) > cut:
            found += stretches(some[0], cut)
        elif some:
            found.append(pb.Transaction(records=some).SerializeToString())
    rest.records.extend(records)
    return found, rest.SerializeToString()


def stretches(record: pb.NewRecord, cut: int) -> list[bytes]:
    """One record in several parts."""
    found = []
    for begin in range(0, len(record.data), cut):
        data = record.data[begin : begin + cut]
        more = begin + cut < len(record.data)
        piece = pb.NewRecord(oid=record.oid, data=data, more=more)
        if not begin:
            piece.base_serial, piece.data_tid = record.base_serial, record.data_tid
        found.append(pb.Transaction(records=[piece]).SerializeToString())
    return found


def gathered(identity: bytes, bodies: Sequence[bytes], rest: bytes) -> Parts:
    """As a node has them when the Vote or Commit came."""
    parts = Parts(identity, 1 << 30)
    for body in bodies:
        assert parts.add(pb.Transaction.FromString(body), body) is None
    assert parts.complete(pb.Transaction.FromString(rest), len(rest), HISTORY_LEVEL) is None
    return parts
