"""Which transactions can never be applied, whatever was committed before. Pure."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from raftstorage.node.engine.fragments import Staging
from raftstorage.proto import storage_pb2 as pb

#: Oids from here on can be stored only after they were given out, and no given tid may be above: a client that
#: names the last oid or tid of all must not leave none for the others.
GIVEN_OUT_ONLY = 1 << 63


class Refused(Exception):
    """Why a command is not carried out: equal on every node, so nothing of a library's wording."""


def parsed(body: bytes) -> pb.Transaction:
    """Refused when it is no Transaction."""
    try:
        return pb.Transaction.FromString(body)
    except DecodeError:
        raise Refused("malformed transaction") from None


def check_form(identity: bytes, tid: bytes, transaction: pb.Transaction, next_oid: int) -> None:
    """Refused when it cannot be applied, whatever was committed before."""
    why = _malformed(identity, tid, transaction, next_oid)
    if why:
        raise Refused(f"malformed transaction: {why}")


def _malformed(identity: bytes, tid: bytes, transaction: pb.Transaction, next_oid: int) -> str:
    oids = {record.oid for record in transaction.records}
    numbers = [int.from_bytes(oid, "big") for oid in oids]
    if len(identity) != 16:
        return "a transaction id has 16 bytes"
    if len(tid) != 8 or (transaction.tid and transaction.tid != tid):
        return "bad tid"
    if transaction.tid and int.from_bytes(transaction.tid, "big") >= GIVEN_OUT_ONLY:
        return "a given tid that is too large"
    if len(transaction.status) > 1:
        return "a status has one byte"
    if len(oids) != len(transaction.records):
        return "an oid twice"
    if any(len(oid) != 8 for oid in oids) or any(len(check.oid) != 8 for check in transaction.checks):
        return "an oid has 8 bytes"
    if numbers and max(numbers) >= max(GIVEN_OUT_ONLY, next_oid):
        return "an oid that was not given out"
    if any(record.HasField("blob") and not _fits(record) for record in transaction.records):
        return "a bad blob"
    serials = [each.base_serial for each in transaction.records]
    serials += [each.data_tid for each in transaction.records]
    serials += [each.serial for each in transaction.checks]
    if any(len(serial) not in (0, 8) for serial in serials):
        return "a serial has 8 bytes"
    return ""


def _fits(record: pb.NewRecord) -> bool:
    """Its blob: either an upload's, or an earlier revision's."""
    blob = record.blob
    whence = (len(blob.upload_id), len(blob.same_as))
    return whence in ((16, 0), (0, 8)) and not record.no_data and not record.more


def check_pieces(staging: Staging, transaction: pb.Transaction, last: bool) -> None:
    """Refused when a record's data does not go on where it must, or goes on where nothing can follow."""
    records = transaction.records
    if staging.unfinished:
        goes_on = pb.NewRecord(oid=staging.unfinished)
        if records:
            goes_on.data, goes_on.more = records[0].data, records[0].more
            if records[0].HasField("blob"):
                goes_on.blob.CopyFrom(records[0].blob)
        if not records or records[0] != goes_on:
            raise Refused("malformed transaction: a record breaks off")
    for position, record in enumerate(records, 1):
        if record.more and (last or position < len(records) or record.no_data):
            raise Refused("malformed transaction: a record goes on where it cannot")
