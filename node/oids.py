"""New oids for clients, out of blocks that the leader takes from the log. Pure; part of the Coordinator."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from raftstorage.node.engine.api import Applied
from raftstorage.node.failures import failed, lost, not_leader
from raftstorage.node.raft.types import Entry, NotLeader
from raftstorage.proto import storage_pb2 as pb

Reply = Callable[[pb.Event], None]

#: Oids are taken from the log in blocks of at least this many.
OID_BLOCK = 4096
#: Requests that may wait for a block.
MAX_WAITING = 10_000


class OidBlocks:
    """Gives every oid out once. Who asks while a block is on its way waits, in order."""

    def __init__(self, propose: Callable[[bytes], int], term: Callable[[], int]) -> None:
        self._propose = propose
        self._term = term
        self._next = self._end = 0
        self._waiting: deque[tuple[int, Reply]] = deque()
        self._asked: tuple[int, int, int] | None = None  # (log index, term, count) of the block on its way

    def has(self, count: int) -> bool:
        """Would `allocate` answer at once, without the log?"""
        return not self._waiting and self._end - self._next >= count

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def allocate(self, count: int, reply: Reply) -> None:
        if len(self._waiting) >= MAX_WAITING:
            reply(failed(pb.BUSY, "too many requests wait for oids; try again"))
            return
        self._waiting.append((count, reply))
        self._serve()

    def applied(self, entry: Entry, outcome: Applied) -> None:
        """Every entry, in order."""
        # A restored object may lie in the block that is being given out. One in a fragment is passed over at once:
        # its commit comes before another block does.
        changed = outcome.oids if isinstance(outcome.oids, tuple) else outcome.oids.last
        for oid in outcome.staged or changed:
            number = int.from_bytes(oid, "big")
            if self._next <= number < self._end:
                self._next = number + 1
        if self._asked is None or self._asked[0] != entry.index:
            return
        _index, term, count = self._asked
        self._asked = None
        if entry.term != term:
            self._refuse(lost)
        elif outcome.first_oid is None:
            self._refuse(lambda: failed(pb.INTERNAL, outcome.refused))
        else:
            first = int.from_bytes(outcome.first_oid, "big")
            if first != self._end:  # else it lengthens what is left
                self._next = first
            self._end = first + count
            self._serve()

    def lost_leadership(self) -> None:
        """The rest of the block is wasted: another leader's clients may have restored objects in it."""
        self._next = self._end = 0
        self._asked = None
        self._refuse(not_leader)

    def _serve(self) -> None:
        while self._waiting:
            count, reply = self._waiting[0]
            if self._end - self._next < count:
                self._ask(count)
                return
            self._waiting.popleft()
            first = self._next
            self._next += count
            reply(pb.Event(oids=pb.OidRange(first=first.to_bytes(8, "big"), count=count)))

    def _ask(self, count: int) -> None:
        if self._asked is not None:
            return
        block = max(OID_BLOCK, count)
        term = self._term()
        try:
            index = self._propose(pb.Command(allocate=pb.AllocateCommand(count=block)).SerializeToString())
        except NotLeader:
            self._refuse(not_leader)
        else:
            self._asked = (index, term, block)

    def _refuse(self, why: Callable[[], pb.Event]) -> None:
        """Answers all that wait; an event each, because the id that goes into it differs."""
        waiting, self._waiting = self._waiting, deque()
        for _count, reply in waiting:
            reply(why())
