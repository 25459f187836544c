"""Transactions on their way from sessions to the coordinator: whole, or in parts; and turns for the large ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from raftstorage.node.driver import Driver
from raftstorage.node.engine.api import Applied
from raftstorage.node.failures import failure
from raftstorage.node.oids import Reply
from raftstorage.node.parts import Parsed, PartGatherer, PartLimits, Parts
from raftstorage.node.raft.types import Entry
from raftstorage.node.service.validation import (
    SessionLimits,
    check_level,
    parse_part,
    parse_transaction,
    unsupported,
)
from raftstorage.node.transactions import Coordinator
from raftstorage.node.uploads import Uploads
from raftstorage.node.works import CoordinatorLimits
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb


class Begin(Protocol):
    """`Coordinator.vote` or `Coordinator.commit`."""

    def __call__(
        self,
        owner: object,
        identity: bytes,
        transaction: pb.Transaction,
        body: bytes,
        now: float,
        reply: Reply,
        parts: Parts | None = None,
    ) -> None: ...


def coordinator_limits(limits: SessionLimits) -> CoordinatorLimits:
    return CoordinatorLimits(
        waiting=limits.waiting_votes,
        held=limits.held_bytes or 4 * limits.max_transaction_bytes,
        slice_objects=limits.slice_objects,
    )


class Transacting:
    """Gathers parts, checks what comes, and lets the coordinator go on with large transactions in turns of the
    loop that others share; takes uploads. `guard`: around what reaches the engine. `level()`: the feature level.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        limits: SessionLimits,
        guard: Callable[[], AbstractContextManager[None]],
        driver: Driver,
        clock: Callable[[], float],
        level: Callable[[], int],
    ) -> None:
        self._coordinator = coordinator
        self._limits = limits
        self._guard = guard
        self._driver = driver
        self._level = level
        self.uploads = Uploads(driver.engine, driver.propose, lambda: driver.term, clock)
        largest = limits.max_transaction_bytes
        self._gatherer = PartGatherer(
            PartLimits(
                record_bytes=limits.max_record_bytes,
                transaction_bytes=largest,
                session_bytes=limits.session_part_bytes or 2 * largest,
                bytes=limits.part_bytes or 4 * largest,
                seconds=limits.lease_ms / 1000,
            )
        )
        self._turn_scheduled = False

    def part(self, session: object, part: pb.Part, leads: bool, now: float) -> pb.Failure | None:
        """Why it is refused, or None. `leads`: ready or not, as its vote or commit waits too."""
        identity, number = part.transaction_id, part.number
        if not leads:
            return self._gatherer.refuse(session, identity, number, _not_leader(), now)
        return self._gatherer.add(session, identity, number, part.transaction, self._parse_part, now)

    def chunk(self, session: object, chunk: pb.BlobChunk, reply: Reply) -> None:
        """Of a blob."""
        most = self._limits.max_blob_bytes
        if self._level() < HISTORY_LEVEL:
            reply(pb.Event(failure=unsupported("blobs")))
        elif most and chunk.offset + len(chunk.data) > most:
            reply(pb.Event(failure=failure(pb.TOO_LARGE, f"a blob may have {most} bytes")))
        else:
            self.uploads.chunk(session, chunk, reply)

    def begin(self, begin: Begin, session: object, asked: pb.Vote | pb.Commit, now: float, reply: Reply) -> bool:
        """A vote or a commit; True if it restores, that is, brings its tid."""
        identity, body = asked.transaction_id, asked.transaction
        parts = None
        if asked.parts:
            gathered = self._gatherer.take(session, identity, asked.parts)
            if isinstance(gathered, pb.Failure):
                reply(pb.Event(failure=gathered))
                return False
            parts = gathered
        else:
            self._gatherer.drop(session, identity)
        parsed = self._known(parse_transaction(body, self._limits, self._level()))
        if parts is not None and isinstance(parsed, pb.Transaction):
            parsed = self._rest(parts, parsed, len(body)) or parsed
        if isinstance(parsed, pb.Failure):
            reply(pb.Event(failure=parsed))
            return False
        restores = bool(parsed.tid)
        begin(session, identity, parsed, body, now, reply, parts)
        self.go_on()
        return restores

    def _parse_part(self, body: bytes) -> Parsed:
        return self._known(parse_part(body, self._limits))

    def _known(self, parsed: Parsed) -> Parsed:
        """Refused when not all members know what it needs."""
        if isinstance(parsed, pb.Failure):
            return parsed
        return check_level(parsed.records, self._level()) or parsed

    def _rest(self, parts: Parts, rest: pb.Transaction, size: int) -> pb.Failure | None:
        most = self._limits.max_transaction_bytes
        if parts.size + size > most:
            return failure(pb.TOO_LARGE, f"the transaction has {parts.size + size} bytes; {most} are allowed")
        return parts.complete(rest, size, self._level())

    def aborted(self, session: object, identity: bytes) -> None:
        self._gatherer.drop(session, identity)

    def closed(self, session: object) -> None:
        self._gatherer.closed(session)
        self.uploads.session_closed(session)

    def tick(self, now: float) -> None:
        self._gatherer.tick(now)
        if self._driver.is_ready_leader:
            with self._guard():
                self.uploads.tick(now)
        self.go_on()

    def applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        self.uploads.applied(entries)
        self.go_on()

    def lost_leadership(self) -> None:
        self._gatherer.refuse_all(_not_leader())
        self.uploads.lost_leadership()

    def go_on(self) -> None:
        """Goes on with large transactions, if there are any, in later turns of the loop."""
        if not self._turn_scheduled and self._coordinator.unfinished:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        with self._guard():
            self._coordinator.advance(asyncio.get_running_loop().time())
        self.go_on()


def _not_leader() -> pb.Failure:
    return failure(pb.NOT_LEADER, "this node does not lead")
