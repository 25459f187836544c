"""`Failure` messages: every reason with the gRPC status code it belongs to."""

from __future__ import annotations

from collections.abc import Iterable

from raftstorage.node.engine.api import Applied, Conflict, Engine
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
    pb.PACKED: 10,
    pb.NO_UPLOAD: 9,
    pb.UNDO_REFUSED: 10,
    pb.UNSUPPORTED: 12,
}


#: Records that a vote's conflicts bring along when the transaction is a large one, in bytes.
CONFLICT_BYTES = 4 << 20


def failure(reason: pb.Reason, message: str, oid: bytes = b"") -> pb.Failure:
    return pb.Failure(code=CODES[reason], reason=reason, message=message, oid=oid)


def failed(reason: pb.Reason, message: str, oid: bytes = b"") -> pb.Event:
    """An Event (without id) that carries a failure."""
    return pb.Event(failure=failure(reason, message, oid))


def busy(message: str, oid: bytes = b"", *, retry_after_ms: int = 100) -> pb.Failure:
    """Too much is held already; the client is told when to ask again."""
    answer = failure(pb.BUSY, message, oid)
    answer.retry_after_ms = retry_after_ms
    return answer


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


def conflict_failures(conflicts: Iterable[Conflict], engine: Engine, max_bytes: int) -> list[pb.Failure]:
    """All, for a client to resolve; with `max_bytes` of records those that fit and the first: the others are told
    when it asks again."""
    failures: list[pb.Failure] = []
    size = 0
    for conflict in conflicts:
        answer = conflict_failure(conflict, engine)
        size += len(answer.data)
        if max_bytes and failures and size > max_bytes:
            break
        failures.append(answer)
    return failures


def lost() -> pb.Event:
    return failed(pb.LEADERSHIP_LOST, "leadership was lost; ask again with the same transaction id")


def not_leader() -> pb.Event:
    return failed(pb.NOT_LEADER, "this node does not lead")


def stale(tid: bytes, last: bytes) -> pb.Event:
    """A given tid that is not above the last one."""
    return failed(pb.STALE_TID, f"tid {tid.hex()} is not above {last.hex()}")


def no_upload(oid: bytes) -> pb.Event:
    return failed(pb.NO_UPLOAD, "the object's blob was not uploaded, or not whole; send it again", oid)


def outcome_event(tid: bytes, outcome: Applied, engine: Engine) -> pb.Event:
    """What a commit is answered when it was applied; `tid`: that it came with, or nothing."""
    if outcome.tid is not None:
        return pb.Event(committed=pb.Committed(tid=outcome.tid))
    if outcome.conflicts:
        return pb.Event(failure=conflict_failure(outcome.conflicts[0], engine))
    if outcome.missing:
        return no_upload(outcome.missing)
    if tid and tid <= engine.last_tid:
        return stale(tid, engine.last_tid)
    return failed(pb.INVALID, outcome.refused or "refused")


def is_final(conflict: Conflict) -> bool:
    """Whether no later state can be without it: serials only rise.

    A serial below the expected one shows that this node lags: it was deposed and does not know yet. An earlier
    attempt of the same commit may be committed elsewhere then, so that only the log may refuse it.
    """
    return conflict.serial > conflict.expected
