"""What can go wrong between a client and its cluster. Nothing here needs ZODB.

`raftstorage.client.storage.errors` derives from these what ZODB's users know (StorageError and its family), so
that `except ClientDisconnected` catches both.
"""

from __future__ import annotations

from raftstorage.proto import storage_pb2 as pb
from transaction.interfaces import TransientError

from .bodies import Body


class ClusterError(Exception):
    """Base of all errors of the cluster layer."""


class ClientDisconnected(ClusterError, TransientError):  # type: ignore[misc]
    """No replica (or no leader) could be reached in time, or the storage is closed. Nothing was changed."""


class StorageBusy(ClientDisconnected):
    """The cluster had more to do than it takes, and said so until the call's time was over. Nothing was changed.

    A TransientError: run the transaction again, after a pause.
    """


class StorageFull(ClusterError):
    """The leader's disk was nearly full until the call's time was over. Nothing was changed, and reads go on.

    Running the transaction again is of no use before somebody has made room.
    """


class CommitOutcomeUnknown(ClusterError):
    """A commit was sent and no answer could be had in time: it may be committed or not.

    Ask again with `storage.commit_outcome(error)`: it sends the same transaction under the same id, which
    the cluster commits at most once, and returns its tid or raises what a commit raises. Do not simply run the
    transaction again: it may happen twice. So this is no TransientError, which publishers and transaction loops
    run again by themselves, and no ClientDisconnected, which says that nothing was changed.
    """

    def __init__(self, message: str, transaction_id: bytes = b"", body: Body = b"") -> None:
        super().__init__(message)
        self.transaction_id = transaction_id
        self.body = body


class ProtocolMismatch(ClusterError):
    """A node speaks another version of the protocol."""


class NotResumed(ClusterError):
    """What a client kept of an earlier process is newer than all replicas in reach, or of another cluster."""


class WrongCluster(ClusterError):
    """A node belongs to another cluster than the one this client has seen."""


class RequestRefused(ClusterError):
    """A node answered with a Failure that asking again would not change."""

    def __init__(self, failure: pb.Failure) -> None:
        super().__init__(f"{pb.Reason.Name(failure.reason)}: {failure.message}")
        self.failure = failure

    @property
    def reason(self) -> int:
        return self.failure.reason


class LeaseExpired(ClusterError, TransientError):  # type: ignore[misc]
    """A vote's reservation ran out before the transaction was finished: it is aborted; run it again."""


class RecordTooLarge(ClusterError):
    """A record or a transaction is over the cluster's limit (bytes)."""


class UploadExpired(ClusterError, TransientError):  # type: ignore[misc]
    """The cluster has forgotten what was uploaded for a blob. Nothing was changed; run the transaction again."""


class BlobDamaged(ClusterError):
    """No replica that could be asked gave a blob as it was stored."""


class BlobDirectoryFull(ClusterError):
    """The client's own disk has no room for a blob; nothing of it is left there."""


class EmbeddedError(ClusterError):
    """The node inside this process cannot be opened, or has ended; a storage that is opened anew may work."""


class DirectoryInUse(EmbeddedError):
    """Another process has the directory of an `embedded:` storage."""
