"""What goes into the consensus core and what comes out of it.

The shape is that of a sans-IO library: inputs are method calls, all effects are in one `Output`. A message that
may be sent only when something is on disk is inside the `Persist` that it waits for, so that it cannot be sent
early by accident: there is no other way to get at it. What is made all the time is a NamedTuple: a frozen
dataclass takes five times as long to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .membership import Membership


class EntryKind(enum.IntEnum):
    """What `Entry.data` holds; the numbers are those of `raft.proto`."""

    COMMAND = 1
    NOOP = 2
    MEMBERSHIP = 3


class Role(enum.StrEnum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
    LEARNER = "learner"


class MessageType(enum.IntEnum):
    """The numbers are those of `raft.proto`."""

    PRE_VOTE = 1
    PRE_VOTE_REPLY = 2
    VOTE = 3
    VOTE_REPLY = 4
    APPEND = 5
    APPEND_REPLY = 6
    HEARTBEAT = 7
    HEARTBEAT_REPLY = 8
    TIMEOUT_NOW = 9
    READ_INDEX = 10
    READ_INDEX_REPLY = 11
    SNAPSHOT = 12


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log. `index` counts from 1 without a gap; `data` is opaque to the core."""

    term: int
    index: int
    kind: EntryKind
    data: bytes = b""


class HardState(NamedTuple):
    """What a node must have on disk before it answers in a term (Raft paper, figure 2). `vote` 0: none."""

    term: int = 0
    vote: int = 0


class Message(NamedTuple):
    """One message between cores; the fields are those of `RaftMessage` in `raft.proto`."""

    type: MessageType
    from_node: int
    to_node: int
    term: int
    log_index: int = 0
    log_term: int = 0
    entries: tuple[Entry, ...] = ()
    commit: int = 0
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0
    context: int = 0
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotBase:
    """The log begins behind this entry: a durable state, with this membership, covers all up to it."""

    index: int
    term: int
    membership: Membership


@dataclass(frozen=True, slots=True)
class FetchSnapshot:
    """A state that covers at least the entry `index` of `term` is to be had from `from_node`, the leader."""

    from_node: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Persist:
    """One write to the log, and what may be said once it is durable.

    The driver writes `hard_state` (if not None), then `snapshot` (if not None: the log begins behind it; what the
    log holds behind it is kept only if it holds that entry), then `entries` (replacing whatever the log holds from
    `entries[0].index` on), syncs, calls `core.persisted(ticket)` and only then sends `then_send`, in order.
    Tickets rise by one; persists are made durable in their order (several may share one sync).
    """

    ticket: int
    hard_state: HardState | None
    entries: tuple[Entry, ...]
    then_send: tuple[Message, ...]
    snapshot: SnapshotBase | None = None


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read asked for with `request` may be served once the state machine has applied `index`."""

    request: int
    index: int


class RoleChange(NamedTuple):
    """The role, the term or the known leader is not what it was. `leader` 0: none known."""

    role: Role
    term: int
    leader: int


class Output(NamedTuple):
    """All effects since the last `take_output()`.

    `send`       messages that depend on no write that is still under way
    `persist`    what to write, in order, with the messages that wait for it
    `apply`      committed entries that are durable here too, in log order, each exactly once
    `reads`      reads that were confirmed (ReadIndex, thesis 6.4)
    `reads_lost` requests of reads that will not be answered: the leader changed; ask again
    `role`       the newest role change, if there was one
    `membership` the newest in the log is another one: appended, taken back, or a snapshot's; it counts at once
    `fetch`      this node needs a snapshot; asked for again until it is installed or not needed any more
    """

    send: tuple[Message, ...] = ()
    persist: tuple[Persist, ...] = ()
    apply: tuple[Entry, ...] = ()
    reads: tuple[ReadState, ...] = ()
    reads_lost: tuple[int, ...] = ()
    role: RoleChange | None = None
    membership: Membership | None = None
    fetch: FetchSnapshot | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A core's settings. Times are in ticks; a driver's tick is 50 ms by default.

    `voters` and `learners` are node ids, the members of a new cluster, and only of use where no membership is
    known yet. `node_id` is never used again for another node.
    """

    node_id: int
    voters: frozenset[int] = field(default_factory=frozenset)
    learners: frozenset[int] = field(default_factory=frozenset)
    election_ticks: int = 10  # a follower campaigns after election_ticks .. 2 * election_ticks - 1 of silence
    heartbeat_ticks: int = 1
    max_message_entries: int = 1024
    max_message_bytes: int = 1 << 20
    max_inflight_messages: int = 128
    max_inflight_bytes: int = 32 << 20
    max_apply_bytes: int = 1 << 20  # committed entries handed out in one Output, at least one

    def check(self) -> None:
        """ValueError for settings that no core can have."""
        if self.node_id < 1:
            raise ValueError("node ids are 1 or more")
        if not 1 <= self.heartbeat_ticks < self.election_ticks:
            raise ValueError("a heartbeat must come at least once in each election timeout")
        if min(self.max_message_entries, self.max_inflight_messages, self.max_inflight_bytes) < 1:
            raise ValueError("bounds of messages must be positive")
        if min(self.max_message_bytes, self.max_apply_bytes) < 0:
            raise ValueError("bounds in bytes must not be negative")


class LogReader(Protocol):
    """The durable log as the core reads it; `node.wal.Wal` and the tests' memory log both are one."""

    def first_index(self) -> int:
        """Index of the first entry that is still there; 1 in a log that was never cut. It may rise between calls
        of the core, in the core's thread; the entry before it, the base, keeps its term."""

    def last_index(self) -> int:
        """Index of the last entry; first_index() - 1 when there is none."""

    def term(self, index: int) -> int:
        """Term of the entry at `index`, or of the base; 0 for index 0. IndexError when it is not there."""

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low <= index < high, at least one and then at most `max_bytes` of data. IndexError as above."""


class RandomSource(Protocol):
    """The only randomness of the core: `random.Random` is one."""

    def randrange(self, start: int, stop: int) -> int: ...


class NotLeader(Exception):
    """`propose` was called on a core that does not lead (or is handing leadership over)."""


class RaftInvariantError(Exception):
    """Something that Raft rules out has happened (committed entries to be cut): the node must stop."""
