"""What a leader takes on: `admission` with the numbers of a running node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from google.protobuf.message import DecodeError
from raftstorage.node.admission import (
    LEAST_MS,
    Amount,
    Bounds,
    DrainRate,
    Load,
    Refusal,
    Work,
    decide,
    drained_ms,
    filled_ms,
)
from raftstorage.node.disk_space import Room
from raftstorage.node.driver import Driver
from raftstorage.node.engine.api import Applied
from raftstorage.node.failures import CODES
from raftstorage.node.raft.types import Entry
from raftstorage.node.service.replies import OVERHEAD, Answer
from raftstorage.node.service.session import ClientSession
from raftstorage.node.service.validation import SessionLimits
from raftstorage.node.transactions import Coordinator
from raftstorage.node.uploads import OWN, Uploads
from raftstorage.proto import storage_pb2 as pb

WRITES = frozenset({"vote", "finish", "commit", "allocate_oids", "blob_chunk"})
#: Whoever sends these waits for no answer.
UNANSWERED = frozenset({"part"})


def restored(request: pb.Request, call: str) -> bytes:
    """The tid that a commit brings along, or nothing."""
    if call != "commit":
        return b""
    try:
        return pb.Transaction.FromString(request.commit.transaction).tid
    except DecodeError:
        return b""


def weight(request: pb.Request, call: str) -> int:
    """About how many bytes `request` keeps in memory until it is answered."""
    if call in ("vote", "commit", "part"):
        return len(getattr(request, call).transaction) + OVERHEAD
    if call == "blob_chunk":
        return len(request.blob_chunk.data) + OVERHEAD
    return OVERHEAD


class Gate:
    """Used from the loop. `room`: of the disk."""

    def __init__(
        self,
        driver: Driver,
        coordinator: Coordinator,
        limits: SessionLimits,
        bounds: Bounds,
        room: Callable[[], Room],
        uploads: Uploads,
    ) -> None:
        self.bounds = bounds
        self._driver = driver
        self._coordinator = coordinator
        self._uploads = uploads
        self._most_blocked = limits.calls.part(2)
        self._most_waiting = limits.waiting_votes
        self._room = room
        self._rate = DrainRate()
        self._writing: set[ClientSession] = set()  # have writes under way

    # ---- what is under way -----------------------------------------------------------------------------

    def begin(self, session: ClientSession, size: int, call: str) -> None:
        if call in UNANSWERED:
            return
        write = call in WRITES
        session.begin(size, write)
        if write:
            self._writing.add(session)

    def finish(self, session: ClientSession, size: int, call: str, blocked: bool) -> None:
        if call in UNANSWERED:
            return
        session.finish(size, call in WRITES, blocked)
        if not session.writes.items:
            self._writing.discard(session)

    def began(self, session: ClientSession, identity: bytes, answer: Answer) -> None:
        """A vote or commit was handed to the coordinator."""
        if not answer.answered and self._coordinator.waits(identity):
            answer.blocked = True
            session.blocked.add(answer.size)

    def forget(self, session: ClientSession) -> None:
        self._writing.discard(session)

    def applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        self._rate.applied(len(entries), sum(len(entry.data) for entry, _ in entries))

    def tick(self, now: float) -> None:
        self._rate.tick(now, self._driver.backlog.items > 0)

    # ---- decisions -------------------------------------------------------------------------------------

    def refusal(
        self, session: ClientSession, request: pb.Request, call: str, answer: Answer, now: float
    ) -> pb.Failure | None:
        """Why a leader refuses a write that was begun; None: it does not."""
        refused: Refusal | None
        if answer.restores and not session.may_restore(answer.restores, now):
            refused = Refusal(pb.BUSY, "a transaction that comes before this one was refused", LEAST_MS)
        else:
            refused = self._decide(session, request, call, answer.size)
        # What was sent before adds nothing. That is asked last: it may cost a look into the database.
        if refused is None or (call in ("vote", "commit") and self._is_known(request, call)):
            return None
        reason, message, retry_after_ms = refused
        return pb.Failure(code=CODES[reason], reason=reason, message=message, retry_after_ms=retry_after_ms)

    def _is_known(self, request: pb.Request, call: str) -> bool:
        return self._coordinator.is_known(getattr(request, call).transaction_id)

    def _decide(self, session: ClientSession, request: pb.Request, call: str, size: int) -> Refusal | None:
        coordinator = self._coordinator
        work = Work.NEW
        match call:
            case "vote" | "commit":
                if call == "commit" and request.commit.transaction_id in coordinator.held:
                    work = Work.VOTED
            case "finish":
                if request.finish.transaction_id not in coordinator.held:
                    return None
                work = Work.VOTED
            case "allocate_oids":
                if coordinator.oids.has(request.allocate_oids.count):
                    return None
            case "blob_chunk":
                return self._decide_chunk(session, request, size)
            case _:
                return None
        blocked = session.blocked.amount()
        if work is Work.NEW and call != "allocate_oids" and blocked.reaches(self._most_blocked):
            # They wait for others, who may wait for what this session sends next: it must go on being read.
            message = f"{blocked.items} transactions of this session wait for objects already"
            return Refusal(pb.BUSY, message, filled_ms(blocked, self._most_blocked))
        return decide(work, self._load(session, size), self.bounds, self._rate.rate)

    def _decide_chunk(self, session: ClientSession, request: pb.Request, size: int) -> Refusal | None:
        """Chunks wait outside the log, in a line of their own, and for both."""
        uploads = self._uploads
        if not request.blob_chunk.data:
            return None
        own = uploads.owned(session)
        if own.reaches(OWN):
            message = f"{own.items} chunks of {own.bytes} bytes of this session wait here already"
            return Refusal(pb.BUSY, message, drained_ms(own, OWN, self._rate.rate))
        load = self._load(session, size)
        backlog = Amount(*map(sum, zip(load.backlog, uploads.waiting, strict=True)))
        return decide(Work.NEW, replace(load, backlog=backlog), self.bounds, self._rate.rate)

    def _load(self, session: ClientSession, size: int) -> Load:
        held = self._coordinator.held
        others = Amount(session.writes.items - 1, session.writes.bytes - size)  # without the one that asks
        return Load(
            self._driver.backlog,
            others,
            len(self._writing),
            held.amount,
            held.of(session),
            max(1, held.owners),
            self._room(),
        )

    def retry_after_ms(self) -> int:
        """For whoever is refused for another reason than the backlog: by what waits at all."""
        waiting = Amount(self._coordinator.waiting, 0)
        return max(
            drained_ms(self._driver.backlog, self.bounds.new, self._rate.rate),
            filled_ms(waiting, Amount(self._most_waiting, 1)),
        )
