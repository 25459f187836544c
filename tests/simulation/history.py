"""What clients did and saw, and what the cluster says in the end: the input of all checks.

Tids and serials are 8 bytes, big-endian, so that bytes compare as numbers. Times are seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

# (data, serial of the revision); None: there is no such object at that snapshot.
Value: TypeAlias = tuple[bytes, bytes] | None

Outcome = Literal["acknowledged", "refused", "unknown"]


@dataclass(frozen=True)
class Opened:
    """A client starts: everything up to `tid` counts as told."""

    client: int
    at: float
    tid: bytes


@dataclass(frozen=True)
class Told:
    """A client's user was told that `tid` changed `oids`; its own commits included."""

    client: int
    at: float
    tid: bytes
    oids: tuple[bytes, ...]


@dataclass(frozen=True)
class Read:
    """A read-only transaction: `values` are those at `snapshot`, the newest tid the client was told of.

    `linearizable`: before it chose its snapshot, it asked the cluster for the newest committed tid, and waited
    for that.
    """

    client: int
    begun: float
    ended: float
    snapshot: bytes
    linearizable: bool
    values: Mapping[bytes, Value]


@dataclass(frozen=True)
class Commit:
    """A transaction that writes `writes` over the revisions `bases` (oid -> serial; zeros: a new object).

    `checks` are oids that it read and relies on, with their serials. `ended` is None when it never got an answer.
    `tid` is given exactly if `outcome` is "acknowledged"; "refused" means: certainly not committed.
    """

    client: int
    identity: bytes
    begun: float
    ended: float | None
    snapshot: bytes
    writes: Mapping[bytes, bytes | None]
    bases: Mapping[bytes, bytes]
    checks: Mapping[bytes, bytes]
    outcome: Outcome
    tid: bytes | None


@dataclass(frozen=True)
class Committed:
    """A transaction as the cluster has it when all faults are over. Data None: the object was deleted."""

    tid: bytes
    identity: bytes
    records: Mapping[bytes, bytes | None]


Event: TypeAlias = Opened | Told | Read | Commit


@dataclass
class History:
    """`events` in the order in which they ended, over all clients. `packed`: tids that reads were refused for."""

    events: list[Event] = field(default_factory=list)
    packed: set[bytes] = field(default_factory=set)

    def commits(self) -> Sequence[Commit]:
        return [event for event in self.events if isinstance(event, Commit)]

    def reads(self) -> Sequence[Read]:
        return [event for event in self.events if isinstance(event, Read)]
