"""What a client sends is checked here, once, before anything is done with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import google_crc32c
from google.protobuf.message import DecodeError
from raftstorage.node.admission import Amount
from raftstorage.node.failures import failure
from raftstorage.node.parts import History
from raftstorage.node.tids import LAST_GIVEN
from raftstorage.proto import BLOB_CHUNK_BYTES, HISTORY_LEVEL, PART_BYTES, PART_OBJECTS
from raftstorage.proto import storage_pb2 as pb
from raftstorage.proto.versions import Range, agreed, named, spoken

#: Longest user, description and extension.
TEXT_BYTES = 64 << 10
MAX_HISTORY = 10_000
#: Objects that are asked for at once, and those that come with them.
MAX_MANY = 1000
MAX_FOLLOW = 10_000
MAX_OIDS = 10_000
MAX_CHECKS = 1_000_000
MAX_BATCH = 1024
#: Of a blob, in one answer.
MAX_BLOB_READ = 1 << 20

_HEX_ID = re.compile(r"[0-9a-fA-F]{32}")


CALLS = Amount(1024, 16 << 20)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one session may ask for, and how much may wait to be sent to it. Bytes and milliseconds as named.

    `calls`: requests of one session that are under way; `sessions`: how many of them there may be.
    Of large transactions that come in parts, before their vote or commit: `session_part_bytes` (0: twice the
    largest one) for each session, `part_bytes` (0: four times) for all. `held_bytes` (0: four times): of all that
    is voted for, waits or is proposed. `max_blob_bytes`: of one blob; 0: as many as it likes. `slice_objects`: of
    one transaction that are compared with the database in a turn of the loop; 0: what takes some milliseconds.
    """

    max_record_bytes: int = 64 << 20
    max_transaction_bytes: int = 256 << 20
    lease_ms: int = 30_000
    queue_items: int = 100_000
    queue_bytes: int = 64 << 20
    waiting_votes: int = 10_000
    calls: Amount = CALLS
    sessions: int = 10_000
    session_part_bytes: int = 0
    part_bytes: int = 0
    held_bytes: int = 0
    max_blob_bytes: int = 0
    slice_objects: int = 0


def invalid(message: str, oid: bytes = b"") -> pb.Failure:
    return failure(pb.INVALID, message, oid)


def check_request(request: pb.Request) -> pb.Failure | None:
    """Fields of every call but the Transaction in it, which `parse_transaction` is for."""
    if request.id == 0:
        return invalid("a request's id must be above 0")
    match request.WhichOneof("call"):
        case "load_before":
            load = request.load_before
            return _tids(load.at_least) or _eight("oid", load.oid) or _eight("before", load.before)
        case "load_serial":
            serial = request.load_serial
            return _tids(serial.at_least) or _eight("oid", serial.oid) or _eight("serial", serial.serial)
        case "history":
            history = request.history
            if not 1 <= history.size <= MAX_HISTORY:
                return invalid(f"size {history.size} is not between 1 and {MAX_HISTORY}")
            return _tids(history.at_least) or _eight("oid", history.oid)
        case "load_many":
            many = request.load_many
            if not 1 <= len(many.oids) <= MAX_MANY or many.follow > MAX_FOLLOW:
                return invalid(f"1 to {MAX_MANY} oids and {MAX_FOLLOW} records can be had at once")
            if any(len(oid) != 8 for oid in many.oids):
                return invalid("each oid must have 8 bytes")
            return _tids(many.at_least) or _eight("before", many.before)
        case "current_records":
            current = request.current_records
            if len(current.start) not in (0, 8):
                return invalid("start must be an oid, or empty")
            return _tids(current.before, current.at_least)
        case "transaction_log":
            heads = request.transaction_log
            if not 1 <= heads.count <= MAX_HISTORY:
                return invalid(f"count {heads.count} is not between 1 and {MAX_HISTORY}")
            return _tids(heads.before, heads.at_least)
        case "read_transactions":
            page = request.read_transactions
            return _tids(page.start, page.stop, page.at_least)
        case "allocate_oids":
            count = request.allocate_oids.count
            return None if 1 <= count <= MAX_OIDS else invalid(f"count {count} is not between 1 and {MAX_OIDS}")
        case "vote":
            return _identity(request.vote.transaction_id)
        case "commit":
            return _identity(request.commit.transaction_id)
        case "finish":
            return _identity(request.finish.transaction_id)
        case "abort":
            return _identity(request.abort.transaction_id)
        case "part":
            return _identity(request.part.transaction_id)
        case "hello":
            return invalid("a Hello is the first request of a stream and no other")
        case "blob_chunk":
            return _blob_chunk(request.blob_chunk)
        case "load_blob":
            blob = request.load_blob
            if blob.max_bytes > MAX_BLOB_READ:
                return invalid(f"max_bytes {blob.max_bytes} is not between 0 and {MAX_BLOB_READ}")
            return _tids(blob.at_least) or _eight("oid", blob.oid) or _eight("serial", blob.serial)
        case "pack":
            pack = request.pack
            if len(pack.pack_id) != 16:
                return invalid(f"a pack's id must have 16 bytes, not {len(pack.pack_id)}")
            return _eight("tid", pack.tid) if any(pack.tid) else invalid("a pack needs a tid")
        case "read_barrier" | "size" | "pack_progress":
            return None
    return invalid("a call that this node does not know")


def check_hello(request: pb.Request) -> pb.Failure | None:
    """The first request: its form, not yet whether it fits this node."""
    if request.WhichOneof("call") != "hello":
        return invalid("the first request of a stream must be a Hello")
    if request.id == 0:
        return invalid("a request's id must be above 0")
    if not _HEX_ID.fullmatch(request.hello.client_id):
        return invalid("client_id must be 32 hexadecimal digits")
    if request.hello.cluster_id and not _HEX_ID.fullmatch(request.hello.cluster_id):
        return invalid("cluster_id must be empty or 32 hexadecimal digits")
    return _tids(request.hello.after_tid)


def fits(hello: pb.Hello, cluster_id: str, speaks: Range) -> pb.Failure | None:
    """Why a client with this Hello cannot be served by a node of `cluster_id` that speaks `speaks`."""
    theirs = spoken(hello.protocol_version, hello.min_protocol_version)
    if agreed(speaks, theirs) is None:
        text = f"this node speaks protocol {named(speaks)}, not {named(theirs)}"
        return failure(pb.PROTOCOL_MISMATCH, text)
    if hello.cluster_id not in ("", cluster_id):
        return failure(pb.WRONG_CLUSTER, f"this node belongs to cluster {cluster_id}, not to {hello.cluster_id}")
    return None


def parse_transaction(body: bytes, limits: SessionLimits, level: int) -> pb.Transaction | pb.Failure:
    """The Transaction in `body`, or why it is refused. `level`: the cluster's feature level."""
    if len(body) > limits.max_transaction_bytes:
        return failure(
            pb.TOO_LARGE, f"the transaction has {len(body)} bytes; {limits.max_transaction_bytes} are allowed"
        )
    try:
        transaction = pb.Transaction.FromString(body)
    except DecodeError:
        return invalid("the transaction is not a serialized Transaction")
    if any(record.more for record in transaction.records):
        return invalid("only a part's last record may go on in the next one")
    problem = _check_transaction(transaction, limits)
    if problem is None and not transaction.tid:
        history = History()
        for record in transaction.records:
            history.note(record)
        problem = history.problem(level)
    return problem or transaction


def parse_part(body: bytes, limits: SessionLimits) -> pb.Transaction | pb.Failure:
    """The Transaction in a Part's `body`, or why it is refused, whatever the others hold."""
    try:
        parsed = pb.Transaction.FromString(body)
    except DecodeError:
        return invalid("the part is not a serialized Transaction")
    objects = len(parsed.records) + len(parsed.checks)
    if any(field.name not in ("records", "checks") for field, _ in parsed.ListFields()) or not objects:
        return invalid("a part must hold records or checks, and nothing else")
    if objects > PART_OBJECTS or (len(body) > PART_BYTES and objects > 1):
        return invalid(f"a part of {objects} objects in {len(body)} bytes: it holds more than it may")
    if any(record.more for record in parsed.records[:-1]):
        return invalid("only a part's last record may go on in the next one")
    return _check_transaction(parsed, limits) or parsed


def _check_transaction(transaction: pb.Transaction, limits: SessionLimits) -> pb.Failure | None:
    for name in ("user", "description", "extension"):
        if len(getattr(transaction, name)) > TEXT_BYTES:
            return invalid(f"{name} is longer than {TEXT_BYTES} bytes")
    if len(transaction.status) > 1:
        return invalid("status is longer than one byte")
    if len(transaction.checks) > MAX_CHECKS:
        return invalid(f"more than {MAX_CHECKS} checks")
    if transaction.tid and (len(transaction.tid) != 8 or not any(transaction.tid)):
        return invalid("a given tid must have 8 bytes, not all zero")
    if transaction.tid > LAST_GIVEN:
        return invalid("a given tid must not be after the year 2999")
    seen: set[bytes] = set()
    for record in transaction.records:
        oid = record.oid
        problem = _eight("oid", oid) or _tids(record.base_serial, record.data_tid)
        if problem is not None:
            return problem
        if len(record.data) > limits.max_record_bytes:
            message = f"the record has {len(record.data)} bytes; {limits.max_record_bytes} are allowed"
            return failure(pb.TOO_LARGE, message, oid)
        if oid in seen:
            return invalid("an oid is stored twice", oid)
        if record.HasField("blob") and not _fits(record):
            return invalid(
                "a blob has an upload id of 16 bytes or a serial of 8, and goes with a record's end", oid
            )
        if record.no_data and (record.data or record.more):
            return invalid("no_data comes without data", oid)
        seen.add(oid)
    seen.clear()
    for check in transaction.checks:
        problem = _eight("oid", check.oid) or _tids(check.serial)
        if problem is not None:
            return problem
        if check.oid in seen:
            return invalid("an oid is checked twice", check.oid)
        seen.add(check.oid)
    return None


def _fits(record: pb.NewRecord) -> bool:
    whence = (len(record.blob.upload_id), len(record.blob.same_as))
    return whence in ((16, 0), (0, 8)) and not record.no_data and not record.more


def check_level(records: Iterable[pb.NewRecord], level: int) -> pb.Failure | None:
    """Why records cannot be written while the members' feature level is `level`."""
    if level < HISTORY_LEVEL and any(record.HasField("blob") for record in records):
        return unsupported("blobs")
    return None


def unsupported(what: str) -> pb.Failure:
    return failure(pb.UNSUPPORTED, f"not all members of the cluster know {what} yet")


def _blob_chunk(chunk: pb.BlobChunk) -> pb.Failure | None:
    if len(chunk.upload_id) != 16:
        return invalid(f"an upload id must have 16 bytes, not {len(chunk.upload_id)}")
    if len(chunk.data) > BLOB_CHUNK_BYTES:
        return invalid(f"a chunk of {len(chunk.data)} bytes; {BLOB_CHUNK_BYTES} are allowed")
    if chunk.offset + len(chunk.data) >= 1 << 63:
        return invalid("there are no such large blobs")
    if int(google_crc32c.value(chunk.data)) != chunk.crc32c:
        return invalid("the chunk's checksum does not fit: it was damaged on its way")
    return None


def _eight(name: str, value: bytes) -> pb.Failure | None:
    return None if len(value) == 8 else invalid(f"{name} must have 8 bytes, not {len(value)}")


def _tids(*values: bytes) -> pb.Failure | None:
    """Each is empty or has 8 bytes."""
    for value in values:
        if len(value) not in (0, 8):
            return invalid(f"a tid must have 8 bytes or none, not {len(value)}")
    return None


def _identity(value: bytes) -> pb.Failure | None:
    return None if len(value) == 16 else invalid(f"a transaction id must have 16 bytes, not {len(value)}")
