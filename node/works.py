"""Votes and commits as the Coordinator holds them, and how much they hold. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raftstorage.node.examination import Examination
from raftstorage.node.held import Held
from raftstorage.node.oids import Reply
from raftstorage.node.parts import OBJECT_BYTES, Parts
from raftstorage.proto import storage_pb2 as pb

#: A transaction that writes and checks more objects is wide: it is reserved as a whole, without a look at each.
WIDE = 16_384


@dataclass(frozen=True, slots=True)
class CoordinatorLimits:
    """`waiting`: votes and commits that may wait for oids; `expired`: expired leases that are remembered; `held`:
    bytes of memory of all that is voted for, waits, or is proposed (a restore is proposed nonetheless);
    `slice_objects`: see Examination."""

    waiting: int = 10_000
    expired: int = 10_000
    held: int = 1 << 30
    slice_objects: int = 0


class Work:
    """One vote or commit, from its arrival until it is answered, dropped or proposed.

    `parts`: of a large one, with all that `transaction` names merged in; `examination`: while it is compared with
    the engine, or waits. `weight`: bytes of memory that it holds, about.
    """

    __slots__ = (
        "blocked_on",
        "body",
        "checked",
        "deadline",
        "examination",
        "identity",
        "owner",
        "parts",
        "reply",
        "tid",
        "transaction",
        "vote",
        "weight",
    )

    def __init__(
        self,
        owner: object,
        identity: bytes,
        transaction: pb.Transaction,
        body: bytes,
        reply: Reply,
        vote: bool,
        parts: Parts | None = None,
    ) -> None:
        self.owner = owner
        self.identity = identity
        self.body = body
        self.reply = reply
        self.vote = vote
        self.parts = parts
        self.examination: Examination | None = None
        self.deadline = 0.0
        self.blocked_on = b""
        self.tid = transaction.tid  # given: a restore, which reserves nothing
        self.checked: Collection[bytes] = ()
        if parts is not None:
            transaction = pb.Transaction()  # `parts` has it
            self.weight = parts.weight
            if not self.tid:
                self.checked = parts.checked
        else:
            for record in transaction.records:
                record.ClearField("data")  # `body` has it; once is enough
            self.weight = len(body) + OBJECT_BYTES * (len(transaction.records) + len(transaction.checks))
            if not self.tid and transaction.checks:
                written = {record.oid for record in transaction.records}
                self.checked = [check.oid for check in transaction.checks if check.oid not in written]
        self.transaction = transaction

    @property
    def written(self) -> Collection[bytes]:
        if self.tid:
            return ()
        return self.parts.written if self.parts is not None else [each.oid for each in self.transaction.records]

    @property
    def blobs(self) -> Sequence[pb.NewRecord]:
        """Records, those with blobs among them; of very many not all."""
        return self.parts.blobs if self.parts is not None else self.transaction.records

    @property
    def wide(self) -> bool:
        parts = self.parts
        return parts is not None and not self.tid and len(parts.written) + len(parts.checked) > WIDE

    def names(self, oid: bytes) -> bool:
        """Does a large one write or check it?"""
        return self.parts is not None and (oid in self.parts.written or oid in self.parts.checked)

    def writes(self, oid: bytes) -> bool:
        """Does a large one write it?"""
        return self.parts is not None and oid in self.parts.written


class Works(Held[Work]):
    """Works by transaction id, in order."""

    def __init__(self) -> None:
        super().__init__(lambda work: work.weight)

    @property
    def weight(self) -> int:
        """Of all together, in bytes."""
        return self.amount.bytes


@dataclass(slots=True, eq=False)
class Flight:
    """A proposed transaction whose outcome is not known yet."""

    term: int
    replies: list[Reply]
    work: Work
