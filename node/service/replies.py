"""An answer on its way back: the request's id, the known leader, what is counted, and when to ask again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.session import ClientSession
from raftstorage.proto import storage_pb2 as pb

#: A restore that was refused for one of these is sent again.
AGAIN = frozenset({pb.BUSY, pb.STORAGE_FULL, pb.NOT_LEADER, pb.LEADERSHIP_LOST, pb.STOPPING, pb.INTERNAL})


#: Bytes of a request beside what it carries.
OVERHEAD = 64


class Account(Protocol):
    """Of what is under way; `gate.Gate` is one."""

    def finish(self, session: ClientSession, size: int, call: str, blocked: bool) -> None:
        """A request that was begun with `size` is answered. `blocked`: it was counted as blocked, too."""

    def retry_after_ms(self) -> int:
        """For whoever is refused without having been told."""


class Answer:
    """Called with the Event for one request, which it takes over; only the first one counts. After the session's
    end nothing happens.

    `later`: set when the call has returned; a commit answered before that was committed long ago. `blocked`: set
    when the request is counted in `session.blocked`. `restores`: the tid of a commit in a session that restores.
    """

    __slots__ = (
        "_account",
        "_call",
        "_id",
        "_leader",
        "_metrics",
        "_session",
        "answered",
        "blocked",
        "later",
        "restores",
        "size",
    )

    def __init__(
        self,
        session: ClientSession,
        request_id: int,
        call: str,
        metrics: NodeMetrics,
        leader: Callable[[], pb.Leader],
        account: Account,
        size: int,
    ) -> None:
        self._session = session
        self._id = request_id
        self._call = call
        self._metrics = metrics
        self._leader = leader
        self._account = account
        self.size = size
        self.answered = False
        self.blocked = False
        self.later = False
        self.restores = b""

    def __call__(self, event: pb.Event) -> None:
        if self.answered:
            return
        self.answered = True
        event.id = self._id
        kind = event.WhichOneof("kind")
        if kind == "failure":
            self._refuse(event.failure)
        if self._call in ("load_before", "load_serial"):
            self._metrics.loads.labels(self._load_result(event)).inc()
        elif self._call == "vote":
            self._count_conflicts(event.vote.conflicts)
            result = "refused" if kind == "failure" else "conflict" if event.vote.conflicts else "reserved"
            self._metrics.votes.labels(result).inc()
        elif self._call in ("finish", "commit"):
            self._metrics.commits.labels(self._commit_result(event)).inc()
        elif kind == "blob_stored":
            self._metrics.blob_bytes.labels("received").inc(self.size - OVERHEAD)
        elif kind == "blob_data":
            self._metrics.blob_bytes.labels("sent").inc(len(event.blob_data.data))
        self._session.put(event)
        self._account.finish(self._session, self.size, self._call, self.blocked)

    def _refuse(self, failure: pb.Failure) -> None:
        if failure.reason == pb.NOT_LEADER:
            failure.leader.CopyFrom(self._leader())
        elif failure.reason == pb.BUSY and not failure.retry_after_ms:
            failure.retry_after_ms = self._account.retry_after_ms()
        if self.restores and failure.reason in AGAIN:
            self._session.refuse_restore(self.restores, asyncio.get_running_loop().time())
        self._metrics.refused.labels(pb.Reason.Name(failure.reason).lower()).inc()

    def _load_result(self, event: pb.Event) -> str:
        if event.HasField("record"):
            return "ok" if event.record.serial else "missing"
        return {pb.NO_SUCH_OBJECT: "missing", pb.LAGGING: "lagging"}.get(event.failure.reason, "error")

    def _commit_result(self, event: pb.Event) -> str:
        if event.HasField("committed"):
            return "committed" if self.later else "repeated"
        if event.failure.reason in (pb.CONFLICT, pb.READ_CONFLICT):
            self._count_conflicts([event.failure])
            return "conflict"
        return "lost" if event.failure.reason == pb.LEADERSHIP_LOST else "refused"

    def _count_conflicts(self, failures: Iterable[pb.Failure]) -> None:
        for failure in failures:
            self._metrics.conflicts.labels("read" if failure.reason == pb.READ_CONFLICT else "write").inc()
