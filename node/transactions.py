"""The leader's side of two-phase commit: votes, reservations, leases, tids, blocks of oids.

Pure: time is handed in (`now`, seconds of a clock that is never set), proposals go out through a function, answers
through the `reply` given with each call (an Event without id, now or later, at most once). What is safe is decided
where entries are applied, not here. A commit that is refused here must be one that no node can ever apply: this
node may have been deposed without knowing it, and the client may have sent the commit to the next leader before.
LEASE_EXPIRED speaks of a Finish alone: a client that has sent Commit since must not take it for that one's answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from raftstorage.node.engine.api import Applied, Engine
from raftstorage.node.examination import Examination
from raftstorage.node.failures import (
    CONFLICT_BYTES,
    busy,
    conflict_failure,
    conflict_failures,
    failed,
    is_final,
    lost,
    no_upload,
    not_leader,
    outcome_event,
    stale,
)
from raftstorage.node.oids import OidBlocks, Reply
from raftstorage.node.parts import Parts
from raftstorage.node.raft.types import Entry, NotLeader
from raftstorage.node.reservations import Reservations
from raftstorage.node.tids import after, timestamp_tid
from raftstorage.node.works import CoordinatorLimits, Flight, Work, Works
from raftstorage.proto import storage_pb2 as pb


class Coordinator:
    """See the module.

    `term` gives the node's current term, `wall_clock` the time for tids (seconds since 1970; it may jump).
    `lease_seconds`: how long a vote holds its oids. `propose_many` is wanted for large transactions; as long as
    `unfinished`, somebody must call `advance` again and again.
    """

    def __init__(
        self,
        engine: Engine,
        propose: Callable[[bytes], int],
        term: Callable[[], int],
        wall_clock: Callable[[], float],
        lease_seconds: float,
        limits: CoordinatorLimits | None = None,
        *,
        propose_many: Callable[[Sequence[bytes]], int] | None = None,
    ) -> None:
        self._engine = engine
        self._propose = propose
        self._propose_many = propose_many
        self._term = term
        self._wall_clock = wall_clock
        self._lease = lease_seconds
        self._limits = limits or CoordinatorLimits()
        self._last_assigned = engine.last_tid
        #: Votes that wait for their Finish; others only read it.
        self.held = self._voted = Works()
        self._waiting = Works()
        self._preparing = Works()  # large ones that are being compared with the engine
        self._flights: dict[int, Flight] = {}  # by log index
        self._flying: dict[bytes, Flight] = {}  # by transaction id
        self._flying_weight = 0
        self._examined: dict[Work, None] = {}  # large ones that prepare or wait: they hear of what is applied
        self._expired: OrderedDict[bytes, None] = OrderedDict()
        self._reservations = Reservations()
        self.oids = self._oids = OidBlocks(propose, term)

    # ---- requests ------------------------------------------------------------------------------------

    def vote(
        self,
        owner: object,
        identity: bytes,
        transaction: pb.Transaction,
        body: bytes,
        now: float,
        reply: Reply,
        parts: Parts | None = None,
    ) -> None:
        """First phase. `transaction` is `body` parsed and checked, and belongs to the coordinator from now on.

        With `parts` they are the rest of a large one, which `parts` has been told of too.
        """
        if self._engine.transaction_tid(identity) is not None or identity in self._flying:
            reply(pb.Event(vote=pb.VoteReply()))  # Finish will tell its tid
            return
        self._begin(Work(owner, identity, transaction, body, reply, True, parts), now)

    def commit(
        self,
        owner: object,
        identity: bytes,
        transaction: pb.Transaction,
        body: bytes,
        now: float,
        reply: Reply,
        parts: Parts | None = None,
    ) -> None:
        """Both phases. Parameters as for `vote`."""
        if not self._known(identity, reply):
            self._begin(Work(owner, identity, transaction, body, reply, False, parts), now)

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
            work.identity
            for held in (self._voted, self._waiting, self._preparing)
            for work in held.values()
            if work.owner is owner
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

    @property
    def unfinished(self) -> bool:
        """Is there a large transaction that is not wholly compared with the engine?"""
        return any(not _examination(work).done for work in self._examined)

    def advance(self, now: float) -> None:
        """A few milliseconds of work at one that is not: the one that has waited longest for its turn."""
        for work in self._examined:
            if not _examination(work).done:
                del self._examined[work]
                self._examined[work] = None
                if _examination(work).step() and self._preparing.pop(work.identity) is not None:
                    self._resume(work, now)
                return

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
            if self._examined and outcome.tid is not None and not outcome.repeated:
                for work in self._examined:
                    _examination(work).changed(outcome.tid, outcome.oids)
            flight = self._flights.pop(entry.index, None)
            if flight is None:
                continue
            ours = entry.term == flight.term
            del self._flying[flight.work.identity]
            self._flying_weight -= flight.work.weight
            freed += self._reservations.release(flight.work)
            for reply in flight.replies:  # an event each: the id that goes into it differs
                reply(outcome_event(flight.work.tid, outcome, self._engine) if ours else lost())
        if not self._flying:
            self._last_assigned = self._engine.last_tid
        self._retry(freed, now)

    def lost_leadership(self) -> None:
        """Answers everything: nobody may wait for what this node cannot decide any more."""
        flights, self._flights = self._flights, {}
        waiting = [*self._waiting.values(), *self._preparing.values()]
        for works in (self._voted, self._waiting, self._preparing):
            works.clear()
        for state in (self._flying, self._examined, self._reservations, self._expired):
            state.clear()
        self._flying_weight = 0
        for flight in flights.values():
            for reply in flight.replies:
                reply(lost())
        for work in waiting:
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

    def _begin(self, work: Work, now: float) -> None:
        self._expired.pop(work.identity, None)
        freed = self._drop(work.identity)
        held = self._voted.weight + self._waiting.weight + self._preparing.weight + self._flying_weight
        # Whoever wants more than half comes in beside the smaller ones, or it never might. Restores are proposed
        # in the order in which they come: none may be refused that could be taken a moment later.
        if held + min(work.weight, self._limits.held // 2) > self._limits.held and not work.tid:
            work.reply(pb.Event(failure=busy("too many transactions are under way; try again")))
        else:
            if work.parts is not None and not work.tid:
                work.examination = Examination(self._engine, work.parts, self._limits.slice_objects)
                self._examined[work] = None
            self._admit(work, now)
        self._retry(freed, now)

    def _resume(self, work: Work, now: float) -> None:
        """While it waited, its transaction may have been committed by another leader's entry."""
        if work.vote and self._engine.transaction_tid(work.identity) is not None:
            work.reply(pb.Event(vote=pb.VoteReply()))
        elif work.vote or not self._known(work.identity, work.reply):
            self._admit(work, now)
            return
        self._examined.pop(work, None)

    def _admit(self, work: Work, now: float) -> None:
        """Answers, reserves, proposes, or lets it wait; a large one may have to be looked at first."""
        if work.examination is not None and not work.examination.step():
            self._preparing[work.identity] = work
        elif not self._decide(work, now):
            self._examined.pop(work, None)
            work.examination = None

    def _decide(self, work: Work, now: float) -> bool:
        """True when it has to wait."""
        if work.vote and (missing := self._engine.missing_upload(work.blobs)) is not None:
            work.reply(no_upload(missing))
            return False
        if work.tid:
            if work.vote and work.tid <= self._last_assigned:
                work.reply(stale(work.tid, self._last_assigned))
                return False
        else:
            examined = work.examination
            found = self._engine.conflicts(work.transaction) if examined is None else examined.conflicts
            if found and work.vote:
                most = 0 if examined is None else CONFLICT_BYTES
                failures = conflict_failures(found, self._engine, most)
                work.reply(pb.Event(vote=pb.VoteReply(conflicts=failures)))
                return False
            final = next((conflict for conflict in found if is_final(conflict)), None)
            if final is not None:
                work.reply(pb.Event(failure=conflict_failure(final, self._engine)))
                return False
            taken = self._reservations.taken(work)
            if taken is not None:
                return self._wait(work, taken)
        self._reservations.reserve(work)
        if work.vote:
            work.deadline = now + self._lease
            self._voted[work.identity] = work
            work.reply(pb.Event(vote=pb.VoteReply()))
        elif not self._send(work, work.reply):
            self._retry(self._reservations.release(work), now)
        return False

    def _wait(self, work: Work, oid: bytes) -> bool:
        if len(self._waiting) >= self._limits.waiting:
            work.reply(pb.Event(failure=busy("too many transactions wait for objects; try again", oid)))
            return False
        self._waiting[work.identity] = work
        self._reservations.wait(work, oid)
        return True

    def _retry(self, oids: Iterable[bytes], now: float) -> None:
        """Looks again at all that wait for released `oids`, each oid's in its order."""
        for oid in oids:
            for work in self._reservations.blocked.pop(oid, ()):
                self._waiting.pop(work.identity)
                self._resume(work, now)

    def _send(self, work: Work, reply: Reply) -> bool:
        """Proposes; False when it could not, and `reply` knows. A vote stays then, until its lease ends."""
        if work.tid and work.tid <= self._engine.last_tid:
            reply(stale(work.tid, self._engine.last_tid))
            return False
        tid = work.tid or max(
            timestamp_tid(self._wall_clock()), after(max(self._last_assigned, self._engine.last_tid))
        )
        parts = work.parts
        term = self._term()
        try:
            index = self._propose_commit(work, tid, parts)
        except NotLeader:
            reply(not_leader())
            return False
        self._last_assigned = max(self._last_assigned, tid)
        self._voted.pop(work.identity)
        work.body = b""  # the log has it
        if parts is not None:
            parts.forget_data()
        self._flights[index] = self._flying[work.identity] = Flight(term, [reply], work)
        self._flying_weight += work.weight
        return True

    def _propose_commit(self, work: Work, tid: bytes, parts: Parts | None) -> int:
        """The index of the CommitCommand, behind its fragments if there are any. NotLeader."""
        command = pb.CommitCommand(transaction_id=work.identity, tid=tid, transaction=work.body)
        if parts is None:
            return self._propose(pb.Command(commit=command).SerializeToString())
        if self._propose_many is None:
            raise AssertionError("a large transaction, and nobody to propose it to")
        command.fragments = len(parts)
        entries = [*parts.commands(tid), pb.Command(commit=command).SerializeToString()]
        return self._propose_many(entries) + len(parts)

    def _drop(self, identity: bytes, answer: bool = True) -> list[bytes]:
        """Forgets a vote or what waits; returns the oids whose waiters can be looked at again."""
        voted = self._voted.pop(identity)
        if voted is not None:
            return self._reservations.release(voted)
        work = self._waiting.pop(identity)
        freed = []
        if work is not None:
            self._reservations.leave(work)
            freed.append(work.blocked_on)
        else:
            work = self._preparing.pop(identity)
        if work is not None:
            self._examined.pop(work, None)
            if answer:
                why = "given up: aborted, or replaced by a later request of the same transaction"
                work.reply(pb.Event(failure=busy(why, retry_after_ms=0)))
        return freed

    def _expire(self, work: Work, now: float) -> None:
        freed = self._drop(work.identity)
        self._expired[work.identity] = None
        while len(self._expired) > self._limits.expired:
            self._expired.popitem(last=False)
        self._retry(freed, now)


def _examination(work: Work) -> Examination:
    if work.examination is None:
        raise AssertionError("it is examined no more")
    return work.examination
