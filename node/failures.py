"""`Failure` messages: every reason with the gRPC status code it belongs to."""

from __future__ import annotations

from raftstorage.node.engine.api import Conflict, Engine
from raftstorage.proto import storage_pb2 as pb

#: gRPC status code numbers, as the comments at `Reason` in storage.proto have them.
CODES: dict[int, int] = {
    pb.PROTOCOL_MISMATCH: 12,
    pb.WRONG_CLUSTER: 9,
    pb.INVALID: 3,
    pb.TOO_LARGE: 3,
    pb.NOT_LEADER: 9,
    pb.LAGGING: 14,
    pb.NO_SUCH_OBJECT: 5,
    pb.CONFLICT: 10,
    pb.READ_CONFLICT: 10,
    pb.UNKNOWN_VOTE: 5,
    pb.LEASE_EXPIRED: 9,
    pb.READ_ONLY: 7,
    pb.BUSY: 8,
    pb.LEADERSHIP_LOST: 14,
    pb.STALE_TID: 9,
    pb.INTERNAL: 13,
    pb.STOPPING: 14,
    pb.STORAGE_FULL: 8,
}


def failure(reason: pb.Reason, message: str, oid: bytes = b"") -> pb.Failure:
    return pb.Failure(code=CODES[reason], reason=reason, message=message, oid=oid)


def failed(reason: pb.Reason, message: str, oid: bytes = b"") -> pb.Event:
    """An Event (without id) that carries a failure."""
    return pb.Event(failure=failure(reason, message, oid))


def conflict_failure(conflict: Conflict, engine: Engine) -> pb.Failure:
    """A CONFLICT with the committed record, for resolving it in the client, or a READ_CONFLICT."""
    reason = pb.READ_CONFLICT if conflict.reading else pb.CONFLICT
    answer = failure(reason, "the object has another serial than the transaction was based on", conflict.oid)
    answer.serial = conflict.serial
    answer.expected_serial = conflict.expected
    if not conflict.reading:
        try:
            answer.data = engine.load_serial(conflict.oid, conflict.serial)
        except KeyError:
            answer.data = b""  # it was deleted, or never existed: there is nothing to resolve with
    return answer


def lost() -> pb.Event:
    return failed(pb.LEADERSHIP_LOST, "leadership was lost; ask again with the same transaction id")


def not_leader() -> pb.Event:
    return failed(pb.NOT_LEADER, "this node does not lead")
