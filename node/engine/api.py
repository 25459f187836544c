"""What an engine is: the MVCC state machine that the replicated log is applied to.

Everything is a function of the applied entries: no clock, no randomness, no local setting, no hash order.
`oid`, `tid` and `serial` are 8 bytes; see `storage.proto`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from raftstorage.proto import storage_pb2 as pb

#: No tid; the base serial of a new object.
Z64 = b"\0" * 8


class EngineError(Exception):
    """The state on disk is not what it must be (a checksum, a missing key, another node's directory)."""


class EngineWriteError(EngineError):
    """The state could not be written. What is on disk is older, and sound."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of an object. `data` None: deleted here. `next_serial` None: it is the current one."""

    data: bytes | None
    serial: bytes
    next_serial: bytes | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """An object whose committed serial is not the expected one; `reading`: it came from a Check."""

    oid: bytes
    serial: bytes
    expected: bytes
    reading: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of one entry, equal on every node.

    `tid`: of the committed transaction (of the first attempt for a transaction id seen before); None when it
    was refused or was no commit. `oids`: what it changed, in stored order, empty for a repeated id.
    `conflicts`: why it was refused. `refused`: another reason (a stale given tid, a malformed command).
    `first_oid`: answer to an AllocateCommand.
    """

    index: int
    transaction_id: bytes = b""
    tid: bytes | None = None
    oids: tuple[bytes, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    refused: str = ""
    first_oid: bytes | None = None
    repeated: bool = False


class Engine(Protocol):
    """An engine is used from one thread. Entries are applied in log order, each once.

    `apply` writes data and applied index in one atomic batch. A crash loses a tail of applied entries, never
    part of one: the driver replays the log from `applied_index + 1`.
    """

    @property
    def applied_index(self) -> int: ...
    @property
    def last_tid(self) -> bytes:
        """Tid of the newest committed transaction; Z64 in an empty database."""

    def apply(self, index: int, data: bytes) -> Applied:
        """Applies a Command (serialized), or nothing but the index for b"" (a no-op entry).

        ValueError when index is not applied_index + 1. Bad commands never raise: they are `refused`.
        """

    def load_before(self, oid: bytes, tid: bytes) -> Revision | None:
        """The newest revision below `tid`; None when the object is younger. KeyError: unknown oid."""

    def load_serial(self, oid: bytes, serial: bytes) -> bytes:
        """That revision's data. KeyError when there is none, or it has no data."""

    def current_serial(self, oid: bytes) -> bytes | None:
        """Serial of the newest revision; None for an unknown oid."""

    def history(self, oid: bytes, size: int) -> list[pb.Revision]:
        """Newest first. KeyError: unknown oid."""

    def transaction_tid(self, transaction_id: bytes) -> bytes | None:
        """The tid that this transaction id was committed with, if it was (and is not long ago)."""

    def transactions(
        self, start: bytes, stop: bytes | None, max_bytes: int
    ) -> tuple[list[pb.CommittedTransaction], bool]:
        """A page of transactions start <= tid <= stop with records, at least one; True when more follow."""

    def changed_since(self, tid: bytes, limit: int) -> list[tuple[bytes, tuple[bytes, ...]]]:
        """(tid, oids) of up to `limit` transactions above `tid`, rising. Reads no record data."""

    def conflicts(self, transaction: pb.Transaction) -> list[Conflict]:
        """What `apply` would find now: base serials and checks against current serials. Changes nothing."""

    def approximate_size(self) -> tuple[int, int]:
        """(bytes on disk, number of objects), both approximate."""

    def digest(self) -> bytes:
        """SHA-256 over the whole logical state, for comparing replicas at one applied index. Slow."""

    def flush(self) -> None:
        """Makes what was applied durable. Called at a clean stop, never needed for safety."""

    def close(self) -> None: ...
