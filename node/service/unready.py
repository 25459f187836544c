"""Writes for a leader that has not applied yet what came before it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from raftstorage.node.admission import Amount, Tally
from raftstorage.node.service.replies import Answer
from raftstorage.node.service.session import ClientSession
from raftstorage.proto import storage_pb2 as pb

#: How long one waits, in seconds.
PATIENCE = 1.0
#: Of all that waits.
UNREADY_BYTES = 64 << 20


class Waiting(NamedTuple):
    deadline: float
    session: ClientSession
    request: pb.Request
    call: str
    answer: Answer
    size: int


class Unready:
    """In the order they came. Used from the loop."""

    def __init__(self, bound: Amount) -> None:
        self.bound = bound
        self._queue: deque[Waiting] = deque()
        self._tally = Tally()

    @property
    def amount(self) -> Amount:
        return self._tally.amount()

    def add(self, session: ClientSession, request: pb.Request, call: str, answer: Answer, now: float) -> bool:
        """False: there is no room."""
        if self._tally.amount().reaches(self.bound):
            return False
        size = request.ByteSize()
        self._queue.append(Waiting(now + PATIENCE, session, request, call, answer, size))
        self._tally.add(size)
        return True

    def late(self, now: float) -> list[Waiting]:
        """Takes out what waited too long."""
        late = []
        while self._queue and self._queue[0].deadline <= now:
            late.append(self._queue.popleft())
            self._tally.remove(late[-1].size)
        return late

    def take(self) -> deque[Waiting]:
        """Takes out everything."""
        queue, self._queue = self._queue, deque()
        self._tally = Tally()
        return queue

    def forget(self, session: ClientSession) -> None:
        """The session is gone."""
        for waiting in self.take():
            if waiting.session is not session:
                self._queue.append(waiting)
                self._tally.add(waiting.size)
