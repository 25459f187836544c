"""An answer on its way back: the request's id, the known leader, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.session import ClientSession
from raftstorage.proto import storage_pb2 as pb


class Answer:
    """Called once with the Event for one request, which it takes over. After the session's end nothing happens.

    `later`: set when the call has returned; a commit answered before that was committed long ago.
    """

    __slots__ = ("_call", "_id", "_leader", "_metrics", "_session", "later")

    def __init__(
        self,
        session: ClientSession,
        request_id: int,
        call: str,
        metrics: NodeMetrics,
        leader: Callable[[], pb.Leader],
    ) -> None:
        self._session = session
        self._id = request_id
        self._call = call
        self._metrics = metrics
        self._leader = leader
        self.later = False

    def __call__(self, event: pb.Event) -> None:
        event.id = self._id
        kind = event.WhichOneof("kind")
        if kind == "failure" and event.failure.reason == pb.NOT_LEADER:
            event.failure.leader.CopyFrom(self._leader())
        if self._call in ("load_before", "load_serial"):
            self._metrics.loads.labels(self._load_result(event)).inc()
        elif self._call == "vote":
            self._count_conflicts(event.vote.conflicts)
            result = "refused" if kind == "failure" else "conflict" if event.vote.conflicts else "reserved"
            self._metrics.votes.labels(result).inc()
        elif self._call in ("finish", "commit"):
            self._metrics.commits.labels(self._commit_result(event)).inc()
        self._session.put(event)

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
