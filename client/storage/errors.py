"""The cluster layer's errors as ZODB's users know them. Each is also a ZODB.POSException.StorageError."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from raftstorage.proto import storage_pb2 as pb
from zc.lockfile import LockError
from ZODB import POSException

from ..cluster import errors as cluster
from ..cluster.bodies import Body


class ClientDisconnected(cluster.ClientDisconnected, POSException.StorageError):  # type: ignore[misc]
    __doc__ = cluster.ClientDisconnected.__doc__


class StorageBusy(cluster.StorageBusy, ClientDisconnected):
    __doc__ = cluster.StorageBusy.__doc__


class StorageFull(cluster.StorageFull, POSException.StorageSystemError):  # type: ignore[misc]
    __doc__ = cluster.StorageFull.__doc__


class CommitOutcomeUnknown(cluster.CommitOutcomeUnknown, POSException.StorageError):  # type: ignore[misc]
    __doc__ = cluster.CommitOutcomeUnknown.__doc__


class ProtocolMismatch(cluster.ProtocolMismatch, POSException.StorageError):  # type: ignore[misc]
    __doc__ = cluster.ProtocolMismatch.__doc__


class WrongCluster(cluster.WrongCluster, POSException.StorageError):  # type: ignore[misc]
    __doc__ = cluster.WrongCluster.__doc__


class LeaseExpired(cluster.LeaseExpired, POSException.StorageTransactionError):  # type: ignore[misc]
    __doc__ = cluster.LeaseExpired.__doc__


class RecordTooLarge(cluster.RecordTooLarge, POSException.TransactionTooLargeError):  # type: ignore[misc]
    __doc__ = cluster.RecordTooLarge.__doc__


class UploadExpired(cluster.UploadExpired, POSException.StorageTransactionError):  # type: ignore[misc]
    __doc__ = cluster.UploadExpired.__doc__


class BlobDamaged(cluster.BlobDamaged, POSException.StorageSystemError):  # type: ignore[misc]
    __doc__ = cluster.BlobDamaged.__doc__


class BlobDirectoryFull(cluster.BlobDirectoryFull, POSException.StorageSystemError):  # type: ignore[misc]
    __doc__ = cluster.BlobDirectoryFull.__doc__


class EmbeddedError(cluster.EmbeddedError, POSException.StorageSystemError):  # type: ignore[misc]
    __doc__ = cluster.EmbeddedError.__doc__


class DirectoryInUse(cluster.DirectoryInUse, EmbeddedError, LockError):  # type: ignore[misc]
    """Another process has the directory of an `embedded:` storage. A LockError, as FileStorage raises it."""


class PackedAway(POSException.ReadConflictError, POSException.POSKeyError):  # type: ignore[misc]
    """A revision that was packed away, of an object that is gone by now.

    A POSKeyError, as every storage raises it, and a TransientError: a transaction that reads an old snapshot while
    the database is packed finds what it needs when it is run again.
    """


class InvalidRequest(POSException.StorageError, ValueError):  # type: ignore[misc]
    """An argument that no storage can take, as an oid of 7 bytes; nothing was changed."""


def conflict(failure: pb.Failure, data: bytes | None = None) -> Exception:
    """The ConflictError or ReadConflictError of a failure; `data`: the record that was refused."""
    serials = (failure.serial or b"\0" * 8, failure.expected_serial or b"\0" * 8)
    if failure.reason == pb.READ_CONFLICT:
        return POSException.ReadConflictError(oid=failure.oid, serials=serials)  # type: ignore[no-any-return]
    return POSException.ConflictError(oid=failure.oid, serials=serials, data=data or None)  # type: ignore[no-any-return]


def refusal(failure: pb.Failure) -> Exception:
    """What a failure is called in ZODB."""
    text = failure.message or pb.Reason.Name(failure.reason)
    match failure.reason:
        case pb.NO_SUCH_OBJECT:
            return POSException.POSKeyError(failure.oid)  # type: ignore[no-any-return]
        case pb.CONFLICT | pb.READ_CONFLICT:
            return conflict(failure)
        case pb.PACKED:
            return POSException.ReadConflictError(text, oid=failure.oid or None)  # type: ignore[no-any-return]
        case pb.UNDO_REFUSED:
            return POSException.UndoError(text, failure.oid or None)  # type: ignore[no-any-return]
        case pb.UNSUPPORTED:
            return POSException.Unsupported(text)  # type: ignore[no-any-return]
        case pb.TOO_LARGE:
            return RecordTooLarge(text)
        case pb.READ_ONLY:
            return POSException.ReadOnlyError(text)  # type: ignore[no-any-return]
        case pb.LEASE_EXPIRED:
            return LeaseExpired(text)
        case pb.NO_UPLOAD:
            return UploadExpired(text)
        case pb.UNSUPPORTED:
            return POSException.Unsupported(text)  # type: ignore[no-any-return]
        case pb.UNKNOWN_VOTE | pb.STALE_TID:
            return POSException.StorageTransactionError(text)  # type: ignore[no-any-return]
        case pb.PROTOCOL_MISMATCH:
            return ProtocolMismatch(text)
        case pb.WRONG_CLUSTER:
            return WrongCluster(text)
        case pb.BUSY:
            return StorageBusy(text)
        case pb.STORAGE_FULL:
            return StorageFull(text)
        case pb.LAGGING | pb.STOPPING | pb.NOT_LEADER | pb.LEADERSHIP_LOST:
            return ClientDisconnected(text)
        case pb.INVALID:
            return InvalidRequest(text)
        case pb.INTERNAL:
            return POSException.StorageSystemError(text)  # type: ignore[no-any-return]
        case _:
            return POSException.StorageError(text)  # type: ignore[no-any-return]


@contextlib.contextmanager
def as_zodb(oid: bytes = b"", *, but: Collection[int] = ()) -> Iterator[None]:
    """Errors of the cluster layer raised inside come out as ZODB's. `oid`: for a POSKeyError without one. `but`:
    reasons with which RequestRefused stays what it is."""
    try:
        yield
    except cluster.RequestRefused as error:
        if error.reason in but:
            raise
        if error.reason == pb.NO_SUCH_OBJECT:
            raise POSException.POSKeyError(error.failure.oid or oid) from None
        raise refusal(error.failure) from error
    except cluster.CommitOutcomeUnknown as error:
        raise CommitOutcomeUnknown(str(error), error.transaction_id, error.body) from error
    except cluster.StorageBusy as error:
        raise StorageBusy(str(error)) from error
    except cluster.StorageFull as error:
        raise StorageFull(str(error)) from error
    except cluster.ClientDisconnected as error:
        raise ClientDisconnected(str(error)) from error
    except cluster.BlobDamaged as error:
        raise BlobDamaged(str(error)) from error
    except cluster.BlobDirectoryFull as error:
        raise BlobDirectoryFull(str(error)) from error
    except cluster.DirectoryInUse as error:
        raise DirectoryInUse(str(error)) from error
    except cluster.EmbeddedError as error:
        raise EmbeddedError(str(error)) from error
    except cluster.ProtocolMismatch as error:
        raise ProtocolMismatch(str(error)) from error
    except cluster.WrongCluster as error:
        raise WrongCluster(str(error)) from error


@contextlib.contextmanager
def outcome_unknown(transaction_id: bytes, body: Body) -> Iterator[None]:
    """For what comes after a commit was sent: that nobody can be reached, or takes anything, does not mean there
    that nothing was changed. CommitOutcomeUnknown in its place. Inside `as_zodb`."""
    try:
        yield
    except (cluster.ClientDisconnected, cluster.StorageFull) as error:
        raise cluster.CommitOutcomeUnknown(str(error), transaction_id, body) from error
