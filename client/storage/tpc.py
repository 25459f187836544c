"""A transaction's way through two-phase commit: Begun, then Voted. Each phase is an object."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from raftstorage.proto import storage_pb2 as pb
from ZODB import POSException
from ZODB._compat import _protocol, dumps

from ..cluster import Call
from ..cluster.bodies import Body, Record, make_body, size_of
from ..cluster.policy import vote
from .errors import RecordTooLarge, UploadExpired, as_zodb, conflict, outcome_unknown
from .pending_blobs import PendingBlobs
from .reading import Reader
from .undo import Undo

if TYPE_CHECKING:
    from .storage import ClientStorage

Z64 = b"\0" * 8
VOTE_ROUNDS = 10  # of conflict resolution before a ConflictError: others were faster each time
UPLOAD_ROUNDS = 3  # of uploading blobs that the cluster has forgotten meanwhile


def as_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else bytes(text)


def extension_bytes(transaction: Any) -> bytes:
    """The extension as it was pickled; pickled here for records that only have the dictionary."""
    try:
        return bytes(transaction.extension_bytes)
    except AttributeError:
        extension = transaction.extension
        return bytes(dumps(extension, _protocol)) if extension else b""


class Begun:
    """Collects what a transaction changes. Nothing leaves the client before `vote`."""

    def __init__(self, storage: ClientStorage, transaction: Any, tid: bytes | None, status: str | bytes) -> None:
        self.storage = storage
        self.transaction = transaction
        self.transaction_id = os.urandom(16)
        self.message = pb.Transaction(
            user=as_bytes(transaction.user),
            description=as_bytes(transaction.description),
            extension=extension_bytes(transaction),
            tid=tid or b"",
            status=as_bytes(status),
        )
        self._records: dict[bytes, Record] = {}
        self._checks: dict[bytes, bytes] = {}
        self._bytes = 0
        self.blobs = PendingBlobs(storage)
        self._asked = False  # a leader may hold a vote that we have no answer to

    @property
    def restoring(self) -> bool:
        return bool(self.message.tid)

    def store(self, oid: bytes, serial: bytes | None, data: bytes) -> None:
        self._put(Record(oid, serial or Z64, data))

    def restore(self, oid: bytes, data: bytes | None, hint: bytes | None) -> None:
        self._put(Record(oid, data=data or b"", no_data=data is None, data_tid=hint or b""))

    def delete(self, oid: bytes, serial: bytes) -> None:
        self._put(Record(oid, serial, no_data=True))

    def undo(self, tid: bytes) -> list[bytes]:
        """Takes back what the transaction `tid` changed; the oids. UndoError, and nothing is changed."""
        storage = self.storage
        with as_zodb():  # what was committed before must be seen, whoever did it
            point = storage.cluster.read_point()
            storage.cluster.feed.wait_for(point, storage.delivery_timeout)
        reader = Reader(storage.cluster, point)
        records = Undo(reader, tid, self._records, storage).records()
        for record in records:
            self._put(record)
        return [record.oid for record in records]

    def check(self, oid: bytes, serial: bytes) -> None:
        self._checks[oid] = serial

    def _put(self, record: Record) -> None:
        limits = self.storage.cluster.limits
        size = len(record.data)
        if limits.max_record_bytes and size > limits.max_record_bytes:
            raise RecordTooLarge(
                f"record of object {record.oid.hex()} has {size} bytes, the limit is {limits.max_record_bytes}"
            )
        earlier = self._records.pop(record.oid, None)
        self._bytes += size - (len(earlier.data) if earlier is not None else 0)
        if limits.max_transaction_bytes and self._bytes > limits.max_transaction_bytes:
            raise RecordTooLarge(
                f"transaction has {self._bytes} bytes or more, the limit is {limits.max_transaction_bytes}"
            )
        self.blobs.discard(record.oid)
        self._records[record.oid] = record

    @property
    def oids(self) -> list[bytes]:
        """What it changes."""
        return list(self._records)

    @property
    def records(self) -> Collection[Record]:
        return self._records.values()

    def body(self) -> Body:
        """The serialized Transaction, or how to make it. RecordTooLarge when it is over the cluster's limit."""
        cluster = self.storage.cluster
        for oid, blob in self.blobs.upload().items():
            self._records[oid] = self._records[oid]._replace(blob=blob)
        del self.message.records[:], self.message.checks[:]
        checks = {oid: serial for oid, serial in self._checks.items() if oid not in self._records}
        body = make_body(self.message, self._records, checks, cluster.takes_parts)
        limit = cluster.limits.max_transaction_bytes
        if limit and size_of(body) > limit:
            raise RecordTooLarge(f"transaction has {size_of(body)} bytes, the limit is {limit}")
        return body

    def vote(self) -> Voted:
        """Has the leader check and reserve; conflicts are resolved here, where the classes are, and voted again.

        ConflictError and ReadConflictError when they cannot be. A restored transaction is not voted on.
        """
        if self.restoring:
            return Voted(self, self.body(), "", [])
        cluster = self.storage.cluster
        resolved: dict[bytes, None] = {}
        for _ in range(VOTE_ROUNDS):
            body, event, voted_at = self._reserve()
            conflicts = event.vote.conflicts
            if not conflicts:
                return Voted(self, body, voted_at, list(resolved))
            for failure in conflicts:
                if self._resolve(failure):
                    resolved[failure.oid] = None
        cluster.metrics.conflict("write")
        raise self._conflict(conflicts[0])

    def _reserve(self) -> tuple[Body, pb.Event, str]:
        """What was asked for, the leader's reply, and its address."""
        for left in reversed(range(UPLOAD_ROUNDS)):
            body = self.body()
            self._asked = True
            try:
                with as_zodb():
                    event, address = self.storage.cluster.lead(vote(self.transaction_id, body))
            except UploadExpired:
                self.blobs.forget_or_raise(left)
            else:
                self._asked = False
                return body, event, address
        raise AssertionError("the last round ends in one way or another")

    def _resolve(self, failure: pb.Failure) -> bool:
        """Replaces the record in conflict by the resolved one, which is based on the committed revision.

        False when there was nothing to resolve: an object that is not there (its revisions are below this storage
        in a DemoStorage, or were packed away) is stored as a new one, as FileStorage does.
        """
        metrics = self.storage.cluster.metrics
        record = self._records.get(failure.oid)
        if failure.reason == pb.READ_CONFLICT or record is None:
            metrics.conflict("read")
            raise conflict(failure)
        committed = failure.serial or Z64
        base = record.base_serial or Z64
        if committed == Z64 != base:
            if record.no_data:
                raise POSException.POSKeyError(record.oid)  # there is nothing to delete
            self._put(record._replace(base_serial=Z64))
            return False
        # Two objects with one oid have no common ancestor; what one side deletes the other one changes; the bytes
        # of blobs are not merged.
        if base == Z64 or record.no_data or not failure.data or record.blob is not None:
            metrics.conflict("write")
            raise self._conflict(failure)
        try:
            data = self.storage.tryToResolveConflict(failure.oid, committed, base, record.data, failure.data)
        except POSException.ConflictError:
            metrics.conflict("write")
            raise
        metrics.conflict("resolved")
        self._put(Record(record.oid, committed, data))
        return True

    def _conflict(self, failure: pb.Failure) -> Exception:
        """With the record that was refused as the application's class pickled it, not as a wrapper stores it."""
        data = self._records[failure.oid].data
        return conflict(failure, self.storage._crs_untransform_record_data(data) if data else None)

    def abort(self) -> None:
        if self._asked:
            self.storage.cluster.tell("", Call("abort", pb.Abort(transaction_id=self.transaction_id)))


class Voted:
    """Reserved at the leader (or ready to be restored): `finish` or `abort`."""

    def __init__(self, begun: Begun, body: Body, voted_at: str, resolved: list[bytes]) -> None:
        self.storage = begun.storage
        self.transaction = begun.transaction
        self.transaction_id = begun.transaction_id
        self.resolved = resolved
        self.blobs = begun.blobs
        self._begun = begun
        self._body = body
        self._voted_at = voted_at
        self._oids = begun.oids

    def finish(self, callback: Callable[[bytes], object]) -> bytes:
        """The tid. `callback(tid)` is called before anyone sees it. CommitOutcomeUnknown, LeaseExpired; after a
        failover also ConflictError, when the new leader could not know of the reservation."""
        feed = self.storage.cluster.feed
        feed.hold(self._oids)
        try:
            tid = self._commit()
        except BaseException:
            feed.release()
            raise
        self.blobs.keep(tid)  # before anyone here can ask for them
        with as_zodb(), outcome_unknown(self.transaction_id, self._body):
            feed.finish(tid, callback, self.storage.delivery_timeout)
        self.storage._committed(tid, self._begun.records)
        return tid

    def _commit(self) -> bytes:
        for left in reversed(range(UPLOAD_ROUNDS)):
            try:
                with as_zodb():
                    return self.storage.cluster.commit(self.transaction_id, self._body, voted_at=self._voted_at)
            except UploadExpired:
                self.blobs.forget_or_raise(left)
                self._body, self._voted_at = self._begun.body(), ""
        raise AssertionError("the last round ends in one way or another")

    def abort(self) -> None:
        if self._voted_at:
            call = Call("abort", pb.Abort(transaction_id=self.transaction_id))
            self.storage.cluster.tell(self._voted_at, call)


Phase = Begun | Voted
