"""The leader's side of two-phase commit: votes, reservations, leases, tids, blocks of oids.

Pure: time is handed in (`now`, seconds of a clock that is never set), proposals go out through a function, answers
through the `reply` given with each call (an Event without id, now or later, at most once). What is safe is decided
where entries are applied, not here. A commit that is refused here must be one that no node can ever apply: this
node may have been deposed without knowing it, and the client may have sent the commit to the next leader before.
LEASE_EXPIRED speaks of a Finish alone: a client that has sent Commit since must not take it for that one's answer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from raftstorage.node.engine.api import Applied, Conflict, Engine
from raftstorage.node.failures import conflict_failure, failed, lost, not_leader
from raftstorage.node.held import Held
from raftstorage.node.oids import OidBlocks, Reply
from raftstorage.node.raft.types import Entry, NotLeader
from raftstorage.node.tids import after, timestamp_tid
from raftstorage.proto import storage_pb2 as pb


@dataclass(frozen=True, slots=True)
class CoordinatorLimits:
    """`waiting`: votes and commits that may wait for oids; `expired`: expired leases that are remembered."""

    waiting: int = 10_000
    expired: int = 10_000


class _Work:
    """One vote or commit, from its arrival until it is answered, dropped or proposed."""

    __slots__ = (
        "blocked_on",
        "body",
        "checked",
        "deadline",
        "identity",
        "owner",
        "reply",
        "tid",
        "transaction",
        "vote",
    )

    def __init__(
        self, owner: object, identity: bytes, transaction: pb.Transaction, body: bytes, reply: Reply, vote: bool
    ) -> None:
        self.owner = owner
        self.identity = identity
        for record in transaction.records:
            record.ClearField("data")  # `body` has it; once is enough
        self.transaction = transaction
        self.body = body
        self.reply = reply
        self.vote = vote
        self.tid = transaction.tid  # given: a restore, which reserves nothing
        written = {record.oid for record in transaction.records}
        self.checked = [] if self.tid else [check.oid for check in transaction.checks if check.oid not in written]
        self.deadline = 0.0
        self.blocked_on = b""

    @property
    def written(self) -> list[bytes]:
        return [] if self.tid else [record.oid for record in self.transaction.records]


@dataclass(slots=True, eq=False)
class _Flight:
    """A proposed transaction whose outcome is not known yet."""

    term: int
    replies: list[Reply]
    work: _Work


class Coordinator:
    """See the module.

    `term` gives the node's current term, `wall_clock` the time for tids (seconds since 1970; it may jump).
    `lease_seconds`: how long a vote holds its oids.
    """

    def __init__(
        self,
        engine: Engine,
        propose: Callable[[bytes], int],
        term: Callable[[], int],
        wall_clock: Callable[[], float],
        lease_seconds: float,
        limits: CoordinatorLimits | None = None,
    ) -> None:
        self._engine = engine
        self._propose = propose
        self._term = term
        self._wall_clock = wall_clock
        self._lease = lease_seconds
        self._limits = limits or CoordinatorLimits()
        self._last_assigned = engine.last_tid
        #: Votes that wait for their Finish; others only read it.
        self.held = self._voted = Held[_Work](lambda work: len(work.body))
        self._waiting: dict[bytes, _Work] = {}
        self._blocked: dict[bytes, deque[_Work]] = {}  # oid -> who waits for it, in order
        self._flights: dict[int, _Flight] = {}  # by log index
        self._flying: dict[bytes, _Flight] = {}  # by transaction id
        self._expired: OrderedDict[bytes, None] = OrderedDict()
        self._writers: dict[bytes, bytes] = {}  # oid -> transaction id
        self._readers: dict[bytes, set[bytes]] = {}
        self.oids = self._oids = OidBlocks(propose, term)

    # ---- requests ------------------------------------------------------------------------------------

    def vote(
        self, owner: object, identity: bytes, transaction: pb.Transaction, body: bytes, now: float, reply: Reply
    ) -> None:
        """First phase. `transaction` is `body` parsed and checked, and belongs to the coordinator from now on."""
        if self._engine.transaction_tid(identity) is not None or identity in self._flying:
            reply(pb.Event(vote=pb.VoteReply()))  # Finish will tell its tid
            return
        self._begin(_Work(owner, identity, transaction, body, reply, vote=True), now)

    def commit(
        self, owner: object, identity: bytes, transaction: pb.Transaction, body: bytes, now: float, reply: Reply
    ) -> None:
        """Both phases. `transaction` as for `vote`."""
        if not self._known(identity, reply):
            self._begin(_Work(owner, identity, transaction, body, reply, vote=False), now)

    def finish(self, identity: bytes, now: float, reply: Reply) -> None:
        """Second phase of what was voted for."""
        if self._known(identity, reply):
            return
        work = self._voted.get(identity)
        if work is not None and work.deadline <= now:
            self._expire(work, now)
            work = None
        if work is not None:
            self._send(work, reply)
        elif identity in self._expired:
            reply(failed(pb.LEASE_EXPIRED, "the vote's reservation ran out; the transaction is aborted"))
        else:
            reply(failed(pb.UNKNOWN_VOTE, "this leader has no such vote"))

    def abort(self, identity: bytes, now: float) -> None:
        """Releases a vote, waiting or not. Nothing happens to what is proposed."""
        self._expired.pop(identity, None)
        self._retry(self._drop(identity), now)

    def session_closed(self, owner: object, now: float) -> None:
        """Releases everything of `owner` that is not proposed. A Commit can still finish it."""
        mine = [
            work.identity for held in (self._voted, self._waiting) for work in held.values() if work.owner is owner
        ]
        freed = [oid for identity in mine for oid in self._drop(identity, answer=False)]
        self._retry(freed, now)

    def tick(self, now: float) -> None:
        """Ends leases that ran out. They began in the order they are kept in."""
        while self._voted:
            work = next(iter(self._voted.values()))
            if work.deadline > now:
                return
            self._expire(work, now)

    def allocate_oids(self, count: int, reply: Reply) -> None:
        self._oids.allocate(count, reply)

    @property
    def waiting(self) -> int:
        """Votes and commits that wait for objects."""
        return len(self._waiting)

    def waits(self, identity: bytes) -> bool:
        """For an object, that is for whoever holds it."""
        return identity in self._waiting

    def is_known(self, identity: bytes) -> bool:
        """On its way through the log, or through it: who asks for it is told what becomes of it."""
        return identity in self._flying or self._engine.transaction_tid(identity) is not None

    # ---- what the node tells -------------------------------------------------------------------------

    def applied(self, entries: Sequence[tuple[Entry, Applied]], now: float) -> None:
        """What was applied, on any node in any role; before `lost_leadership` of the same turn."""
        freed: list[bytes] = []
        for entry, outcome in entries:
            self._oids.applied(entry, outcome)
            flight = self._flights.pop(entry.index, None)
            if flight is None:
                continue
            ours = entry.term == flight.term
            del self._flying[flight.work.identity]
            freed += self._release(flight.work)
            for reply in flight.replies:  # an event each: the id that goes into it differs
                reply(self._outcome(flight.work, outcome) if ours else lost())
        if not self._flying:
            self._last_assigned = self._engine.last_tid
        self._retry(freed, now)

    def lost_leadership(self) -> None:
        """Answers everything: nobody may wait for what this node cannot decide any more."""
        flights, self._flights = self._flights, {}
        waiting, self._waiting = self._waiting, {}
        for state in (self._flying, self._voted, self._blocked, self._writers, self._readers, self._expired):
            state.clear()
        for flight in flights.values():
            for reply in flight.replies:
                reply(lost())
        for work in waiting.values():
            work.reply(not_leader())
        self._oids.lost_leadership()

    def became_ready(self) -> None:
        """This node leads, and its engine holds all that was committed before."""
        self._last_assigned = max(self._engine.last_tid, self._last_assigned if self._flying else b"")

    # ---- a transaction's way -------------------------------------------------------------------------

    def _known(self, identity: bytes, reply: Reply) -> bool:
        tid = self._engine.transaction_tid(identity)
        if tid is not None:
            reply(pb.Event(committed=pb.Committed(tid=tid)))
            return True
        flight = self._flying.get(identity)
        if flight is not None:
            flight.replies.append(reply)
        return flight is not None

    def _begin(self, work: _Work, now: float) -> None:
        self._expired.pop(work.identity, None)
        freed = self._drop(work.identity)
        self._admit(work, now)
        self._retry(freed, now)

    def _admit(self, work: _Work, now: float) -> None:
        """Answers, reserves, proposes, or lets it wait."""
        if work.tid:
            if work.vote and work.tid <= self._last_assigned:
                work.reply(_stale(work.tid, self._last_assigned))
                return
        else:
            found = self._engine.conflicts(work.transaction)
            if found and work.vote:
                failures = [conflict_failure(conflict, self._engine) for conflict in found]
                work.reply(pb.Event(vote=pb.VoteReply(conflicts=failures)))
                return
            final = next((conflict for conflict in found if _is_final(conflict)), None)
            if final is not None:
                work.reply(pb.Event(failure=conflict_failure(final, self._engine)))
                return
            taken = self._taken(work)
            if taken is not None:
                self._wait(work, taken)
                return
        for oid in work.written:
            self._writers[oid] = work.identity
        for oid in work.checked:
            self._readers.setdefault(oid, set()).add(work.identity)
        if work.vote:
            work.deadline = now + self._lease
            self._voted[work.identity] = work
            work.reply(pb.Event(vote=pb.VoteReply()))
        elif not self._send(work, work.reply):
            self._retry(self._release(work), now)

    def _taken(self, work: _Work) -> bytes | None:
        """An oid that it has to wait for. Whoever waits already comes first, or readers could starve a writer."""
        for oid in work.written:
            if oid in self._writers or oid in self._readers or oid in self._blocked:
                return oid
        for oid in work.checked:
            if oid in self._writers or oid in self._blocked:
                return oid
        return None

    def _wait(self, work: _Work, oid: bytes) -> None:
        if len(self._waiting) >= self._limits.waiting:
            work.reply(failed(pb.BUSY, "too many transactions wait for objects; try again", oid))
            return
        work.blocked_on = oid
        self._waiting[work.identity] = work
        self._blocked.setdefault(oid, deque()).append(work)

    def _retry(self, oids: Iterable[bytes], now: float) -> None:
        """Looks again at all that wait for released `oids`, each oid's in its order."""
        for oid in oids:
            for work in self._blocked.pop(oid, ()):
                del self._waiting[work.identity]
                # While it waited, its transaction may have been committed by another leader's entry.
                if work.vote and self._engine.transaction_tid(work.identity) is not None:
                    work.reply(pb.Event(vote=pb.VoteReply()))
                elif work.vote or not self._known(work.identity, work.reply):
                    self._admit(work, now)

    def _send(self, work: _Work, reply: Reply) -> bool:
        """Proposes; False when it could not, and `reply` knows. A vote stays then, until its lease ends."""
        if work.tid and work.tid <= self._engine.last_tid:
            reply(_stale(work.tid, self._engine.last_tid))
            return False
        tid = work.tid or max(
            timestamp_tid(self._wall_clock()), after(max(self._last_assigned, self._engine.last_tid))
        )
        command = pb.CommitCommand(transaction_id=work.identity, tid=tid, transaction=work.body)
        term = self._term()
        try:
            index = self._propose(pb.Command(commit=command).SerializeToString())
        except NotLeader:
            reply(not_leader())
            return False
        self._last_assigned = max(self._last_assigned, tid)
        self._voted.pop(work.identity, None)
        work.body = b""  # the log has it
        self._flights[index] = self._flying[work.identity] = _Flight(term, [reply], work)
        return True

    def _outcome(self, work: _Work, outcome: Applied) -> pb.Event:
        if outcome.tid is not None:
            return pb.Event(committed=pb.Committed(tid=outcome.tid))
        if outcome.conflicts:
            return pb.Event(failure=conflict_failure(outcome.conflicts[0], self._engine))
        if work.tid and work.tid <= self._engine.last_tid:
            return _stale(work.tid, self._engine.last_tid)
        return failed(pb.INVALID, outcome.refused or "refused")

    def _release(self, work: _Work) -> list[bytes]:
        """Gives its reservations back; returns the oids."""
        freed = []
        for oid in work.written:
            if self._writers.get(oid) == work.identity:
                del self._writers[oid]
                freed.append(oid)
        for oid in work.checked:
            readers = self._readers.get(oid)
            if readers is not None:
                readers.discard(work.identity)
                if not readers:
                    del self._readers[oid]
                    freed.append(oid)
        return freed

    def _drop(self, identity: bytes, answer: bool = True) -> list[bytes]:
        """Forgets a vote or what waits; returns the oids whose waiters can be looked at again."""
        voted = self._voted.pop(identity, None)
        if voted is not None:
            return self._release(voted)
        work = self._waiting.pop(identity, None)
        if work is None:
            return []
        line = self._blocked[work.blocked_on]
        line.remove(work)
        if not line:
            del self._blocked[work.blocked_on]
        if answer:
            work.reply(
                failed(pb.BUSY, "given up: aborted, or replaced by a later request of the same transaction")
            )
        return [work.blocked_on]

    def _expire(self, work: _Work, now: float) -> None:
        freed = self._drop(work.identity)
        self._expired[work.identity] = None
        while len(self._expired) > self._limits.expired:
            self._expired.popitem(last=False)
        self._retry(freed, now)


def _is_final(conflict: Conflict) -> bool:
    """Whether no later state can be without it: serials only rise.

    A serial below the expected one shows that this node lags: it was deposed and does not know yet. An earlier
    attempt of the same commit may be committed elsewhere then, so that only the log may refuse it.
    """
    return conflict.serial > conflict.expected


def _stale(tid: bytes, last: bytes) -> pb.Event:
    return failed(pb.STALE_TID, f"tid {tid.hex()} is not above {last.hex()}")
