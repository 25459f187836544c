"""What a cluster's refusals mean for a call: when to ask again, and what to raise when its time is over. Pure."""

from __future__ import annotations

from typing import Protocol

from raftstorage.proto import storage_pb2 as pb

from .errors import ClientDisconnected, CommitOutcomeUnknown, StorageBusy, StorageFull

#: The node has enough to do, or no room: it may take the same call later.
TOO_MUCH = frozenset({pb.BUSY, pb.STORAGE_FULL})
#: A request that was answered with one of these did nothing, and never will.
NOTHING_DONE = TOO_MUCH | {pb.NOT_LEADER, pb.UNKNOWN_VOTE}


class Random(Protocol):
    def random(self) -> float: ...


def rest_seconds(failure: pb.Failure, random: Random) -> float:
    """How long the node wants to be left alone, and up to half of that more, so that not all come back at once."""
    return failure.retry_after_ms / 1000 * (1 + random.random() / 2)


def refused(failure: pb.Failure, kind: str) -> Exception:
    """What to raise when the time for `kind` ends with this refusal."""
    if failure.reason == pb.STORAGE_FULL:
        return StorageFull(f"{kind} was refused: {failure.message}")
    if failure.reason == pb.BUSY:
        return StorageBusy(f"{kind} was refused: {failure.message}")
    return ClientDisconnected(f"no leader answered {kind} in time")


class Attempts:
    """The requests that one call for the leader has cost so far, by number."""

    def __init__(self) -> None:
        self._open: set[int] = set()  # may have done something, or may do so yet
        self._latest = 0
        self._last = pb.Failure()  # the answer to the latest

    def sent(self) -> int:
        """The number of the next one."""
        self._latest += 1
        self._open.add(self._latest)
        self._last = pb.Failure()
        return self._latest

    def refused(self, attempt: int, failure: pb.Failure) -> None:
        """`attempt`, the latest one or an earlier one, was answered with a failure."""
        if failure.reason in NOTHING_DONE:
            self._open.discard(attempt)
        if attempt == self._latest:
            self._last = failure

    def error(self, kind: str, committing: bool) -> Exception:
        """What to raise when the time is over."""
        if committing and self._open:
            return CommitOutcomeUnknown("the commit was sent, but its outcome could not be learnt in time")
        return refused(self._last, kind)
