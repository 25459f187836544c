"""Restoring many transactions: a window of Commits under way on the leader's stream, in order."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raftstorage.proto import storage_pb2 as pb

from ..cluster import Call, Cluster
from ..cluster.blobs import SmallUpload
from ..cluster.bodies import Body, LargeBody, Record, make_body, size_of
from ..cluster.errors import ClientDisconnected, RequestRefused
from ..cluster.loop import Waiter
from ..cluster.policy import RETRY_LEAD, commit
from ..cluster.refusals import TOO_MUCH, refused, rest_seconds
from .blob_copies import BlobCopies
from .errors import RecordTooLarge
from .tpc import as_bytes, extension_bytes

WINDOW_TRANSACTIONS = 64
WINDOW_BYTES = 16 << 20
RETRY_SECONDS = 0.1


@dataclass(slots=True)
class _Restore:
    tid: bytes
    call: Call
    size: int
    uploads: list[SmallUpload]  # to be waited for before it is sent
    answer: Waiter[pb.Event | None] | None = None


def restore_all(
    cluster: Cluster,
    other: Any,
    progress: Callable[[int, int], object] | None,
    delivery_timeout: float,
) -> None:
    """Commits each transaction of the storage `other` with its own tid, blobs and all.

    RequestRefused when the cluster refuses one, RecordTooLarge when it would for its size; ClientDisconnected when
    no leader answers for the cluster's commit_timeout. What was restored before an error stays.
    """
    window: deque[_Restore] = deque()
    sender = _Sender(cluster, window)
    blobs = BlobCopies(cluster, other)
    done = 0
    volume = 0
    last = b""
    source = iter(other.iterator())
    more = True
    while more or window:
        while more and sender.may_take():
            transaction = next(source, None)
            if transaction is None:
                more = False
            else:
                window.append(_prepare(cluster, transaction, blobs))
                sender.send_new()
        if window:
            restored = sender.settle_first()
            done += 1
            volume += restored.size
            last = restored.tid
            cluster.metrics.commits.inc()
            if progress is not None:
                progress(done, volume)
    if last:
        cluster.feed.wait_for(last, delivery_timeout)


class _Sender:
    """Keeps a window under way. After any trouble it starts again with the oldest, alone, so that a leader
    which only just took over cannot refuse one and accept the next."""

    def __init__(self, cluster: Cluster, window: deque[_Restore]) -> None:
        self._cluster = cluster
        self._window = window
        self._address = ""
        self._steady = False  # the first one went through at this leader
        self._sent = 0  # so many of the window are under way
        self._bytes = 0

    def may_take(self) -> bool:
        window = self._window
        return not window or (len(window) < WINDOW_TRANSACTIONS and sum(one.size for one in window) < WINDOW_BYTES)

    def send_new(self) -> None:
        while self._address and self._sent < (len(self._window) if self._steady else min(1, len(self._window))):
            if self._sent and self._window[self._sent - 1].call.parts:
                return  # a large one may be refused for its size, and what came behind it be taken
            one = self._window[self._sent]
            for each in one.uploads:
                each.wait()
            one.answer = self._cluster.post(self._address, one.call)
            self._sent += 1

    def settle_first(self) -> _Restore:
        """Returns the oldest once it is committed."""
        deadline = time.monotonic() + self._cluster.commit_timeout
        pause = threading.Event()
        while True:
            if not self._address:
                self._address = self._find_leader(deadline)
            self.send_new()
            first = self._window[0]
            if first.answer is None:
                raise AssertionError("the oldest transaction was not sent")
            try:
                event = first.answer.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise ClientDisconnected("no leader answered a restore in time") from None
            if event is not None and event.HasField("committed"):
                self._window.popleft()
                self._sent -= 1
                self._steady = True
                return first
            if event is not None and event.failure.reason not in RETRY_LEAD:
                raise RequestRefused(event.failure)
            self._start_again()
            if event is not None and event.failure.reason in TOO_MUCH:
                self._cluster.metrics.told_off(event.failure.reason)
                seconds = rest_seconds(event.failure, random) or RETRY_SECONDS
                pause.wait(max(0.0, min(seconds, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                raise refused(event.failure if event is not None else pb.Failure(), "a restore")

    def _start_again(self) -> None:
        self._cluster.metrics.retry("commit")
        self._address = ""
        self._steady = False
        self._sent = 0
        for one in self._window:
            one.answer = None

    def _find_leader(self, deadline: float) -> str:
        pause = threading.Event()
        while True:
            # A read that the leader confirms: it returns when there is one, wherever it is.
            self._cluster.read_point(max(0.0, deadline - time.monotonic()))
            address = self._cluster.leader_address()
            if address is not None:
                return address
            if time.monotonic() >= deadline:
                raise ClientDisconnected("no leader was found in time")
            pause.wait(RETRY_SECONDS)


def _prepare(cluster: Cluster, transaction: Any, blobs: BlobCopies) -> _Restore:
    message = pb.Transaction(
        user=as_bytes(transaction.user),
        description=as_bytes(transaction.description),
        extension=extension_bytes(transaction),
        tid=transaction.tid,
        status=as_bytes(transaction.status),
    )
    records: dict[bytes, Record] = {}
    uploads: list[SmallUpload] = []
    for record in transaction:
        data = record.data
        records.pop(record.oid, None)  # a transaction undone more than once may hold an oid twice: the last counts
        records[record.oid] = Record(
            record.oid, data=data or b"", no_data=data is None, data_tid=record.data_txn or b""
        )
        found = blobs.blob(record)
        if found is not None:
            blob, upload = found
            records[record.oid] = records[record.oid]._replace(blob=blob)
            if upload is not None:
                uploads.append(upload)

    def body_of(records: Mapping[bytes, Record]) -> Body:
        head = pb.Transaction()
        head.CopyFrom(message)
        return make_body(head, records, {}, cluster.takes_parts)

    body = body_of(records)
    size = size_of(body)
    limit = cluster.limits.max_transaction_bytes
    if limit and size > limit:
        raise RecordTooLarge(f"transaction {transaction.tid.hex()} has {size} bytes, the limit is {limit}")
    identity = _identity(body_of({oid: _without_place(record) for oid, record in records.items()}))
    return _Restore(transaction.tid, commit(identity, body), size, uploads)


def _without_place(record: Record) -> Record:
    if record.blob is None:
        return record
    return record._replace(blob=pb.Blob(size=record.blob.size, crc32c=record.blob.crc32c))


def _identity(body: Body) -> bytes:
    """The same again, its blobs uploaded elsewhere or not: the same id, committed once."""
    total = hashlib.sha256()
    if isinstance(body, LargeBody):
        for part in body.parts:
            total.update(part)
        total.update(body.rest)
    else:
        total.update(body)
    return total.digest()[:16]
