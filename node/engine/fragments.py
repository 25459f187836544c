"""Transactions that come in several log entries.

A large transaction is a run of FragmentCommands and the CommitCommand right behind it. Each fragment is written
when it is applied, under the transaction's tid, which is above the last one: nobody sees it. The commit entry
decides, as if it had held all of them, and moves the last tid: then all is there at once. A leader puts the run
into its log in one go, so that only an election can cut it. Whatever entry comes that does not go on with it
ends it: its records are dropped, and removed by later entries a page at a time. Until they are, the last tid may
pass theirs; then whoever finds a record of fragments looks whether these are among the dropped ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from raftstorage.node.engine.api import MAX_CONFLICTS, Conflict
from raftstorage.proto import storage_pb2 as pb

#: A transaction with more bytes than this should come in fragments, none of which is larger, ...
FRAGMENT_BYTES = 256 << 10
#: ... or holds more records and checks than this: applying one takes some milliseconds then.
FRAGMENT_ITEMS = 500


def split(
    transaction: pb.Transaction, max_bytes: int = FRAGMENT_BYTES, max_items: int = FRAGMENT_ITEMS
) -> Iterator[pb.Transaction]:
    """The records and checks of `transaction` in pieces for fragments, in order; nothing else of it.

    A record with more data than `max_bytes` is cut. A CommitCommand with the rest has to follow them in the log.
    """
    piece, size = pb.Transaction(), 0
    for record in transaction.records:
        data = record.data
        for at in range(0, max(1, len(data)), max_bytes):
            part = data[at : at + max_bytes]
            if piece.records and (size + len(part) > max_bytes or len(piece.records) >= max_items):
                yield piece
                piece, size = pb.Transaction(), 0
            added = piece.records.add(oid=record.oid, data=part, more=at + max_bytes < len(data) or record.more)
            if at == 0:
                added.base_serial, added.data_tid = record.base_serial, record.data_tid
                added.no_data = record.no_data
            if record.HasField("blob") and not added.more:
                added.blob.CopyFrom(record.blob)
            size += len(part) + 40
    for check in transaction.checks:
        if len(piece.records) + len(piece.checks) >= max_items:
            yield piece
            piece = pb.Transaction()
        piece.checks.append(check)
    if piece.records or piece.checks:
        yield piece


@dataclass
class Staging:
    """What is known of a transaction some of whose fragments were applied.

    `first`: index of the first one's entry, which no other fragments will ever have; `count`: how many there were.
    `pages`, `paged`: pages of oids that were written, and the oids in them. `objects`: new ones among them.
    `highest`: the highest oid. `unfinished`: the record whose data goes on. `refused`: why it cannot be committed;
    nothing of it is kept then; `missing`: as in Applied. `written` and `read`: conflicts of records and of checks,
    the first ones.
    """

    identity: bytes
    tid: bytes
    first: int
    count: int = 0
    pages: int = 0
    paged: int = 0
    objects: int = 0
    highest: int = -1
    unfinished: bytes = b""
    refused: str = ""
    missing: bytes = b""
    written: list[Conflict] = field(default_factory=list)
    read: list[Conflict] = field(default_factory=list)

    def goes_on(self, command: pb.Command) -> bool:
        """Whether `command` is the next fragment, or the commit that all fragments came for."""
        kind = command.WhichOneof("kind")
        if kind == "fragment":
            part = command.fragment
            same = part.tid in (b"", self.tid)  # all but the first are made before the tid is chosen
            return same and (part.transaction_id, part.number) == (self.identity, self.count)
        commit = command.commit
        return kind == "commit" and (commit.transaction_id, commit.tid, commit.fragments) == (
            self.identity,
            self.tid,
            self.count,
        )

    def note(self, conflicts: list[Conflict]) -> None:
        """Keeps the first ones."""
        for kept, reading in ((self.written, False), (self.read, True)):
            more = [each for each in conflicts if each.reading == reading]
            kept += more[: MAX_CONFLICTS - len(kept)]

    def conflicts(self, restoring: bool) -> tuple[Conflict, ...]:
        """Those of the whole transaction; a restored one is not checked against the records it follows."""
        return tuple((([] if restoring else self.written) + self.read)[:MAX_CONFLICTS])

    def encode(self) -> bytes:
        plain = {
            **self.__dict__,
            "identity": self.identity.hex(),
            "tid": self.tid.hex(),
            "unfinished": self.unfinished.hex(),
            "missing": self.missing.hex(),
        }
        for name in ("written", "read"):
            found: list[Conflict] = plain[name]
            plain[name] = [[each.oid.hex(), each.serial.hex(), each.expected.hex()] for each in found]
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def decode_staging(value: bytes) -> Staging:
    """What `Staging.encode` gave."""
    plain = json.loads(value)
    for name in ("identity", "tid", "unfinished", "missing"):
        plain[name] = bytes.fromhex(plain.get(name, ""))
    for name in ("written", "read"):
        conflicts = [[bytes.fromhex(text) for text in each] for each in plain[name]]
        plain[name] = [Conflict(oid, serial, expected, name == "read") for oid, serial, expected in conflicts]
    return Staging(**plain)
