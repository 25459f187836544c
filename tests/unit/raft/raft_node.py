"""A core with its disk and its state machine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import (
    Config,
    Entry,
    EntryKind,
    FetchSnapshot,
    HardState,
    Persist,
    RandomSource,
    ReadState,
    Role,
)

from tests.unit.raft.memory_log import MemoryLog

ALL = 1 << 40


@dataclass(frozen=True)
class Snapshot:
    """A state machine is the list of what it has applied."""

    applied: tuple[Entry, ...]
    membership: Membership

    @property
    def index(self) -> int:
        return len(self.applied)

    @property
    def term(self) -> int:
        return self.applied[-1].term


@dataclass(frozen=True)
class Before:
    """What was applied before a snapshot for `index` came, whose write is under way."""

    index: int
    applied: list[Entry]


class Node:
    """`applied`: what its state machine has seen, kept over a crash. `initial`: its membership at first."""

    def __init__(self, config: Config, log: MemoryLog, random: RandomSource, initial: Membership) -> None:
        self.config = config
        self.disk = log
        self.random = random
        self.initial = initial
        self.applied: list[Entry] = []
        self.writes: deque[Persist] = deque()
        self.installing: list[Before] = []
        self.fetch: FetchSnapshot | None = None
        self.reads: list[ReadState] = []
        self.reads_lost: list[int] = []
        self.up = True
        self.start()

    def start(self) -> None:
        self.core = RaftCore(
            self.config, self.disk, self.disk.hard_state, len(self.applied), self.random, self.state_membership()
        )
        self.known_commit = self.core.commit_index
        self.known_last = self.core.last_index
        self.led_in = 0
        self.complete = 0  # so many of the committed entries it was seen to have while it leads
        self.up = True

    def crash(self) -> None:
        """What was not written is gone, and so is what only a core remembers."""
        self.up = False
        self.writes.clear()
        self.fetch = None
        if self.installing:
            self.applied = self.installing[0].applied
            self.installing.clear()

    def state_membership(self) -> Membership:
        return membership_in(self.applied) or self.initial

    def snapshot(self) -> Snapshot:
        return Snapshot(tuple(self.applied), self.state_membership())

    def log(self) -> list[Entry]:
        """The whole log that is left, durable or not."""
        return list(self.core.log.entries(self.core.log.base + 1, self.core.last_index + 1, ALL, ALL))

    def membership_up_to(self, index: int) -> Membership:
        """In effect when the log ended at `index`; not as the core has it, but as the log says."""
        base = self.core.log.base
        found = membership_in(self.log()[: max(0, index - base)])
        return found or membership_in(self.applied[:base]) or self.initial

    @property
    def leads(self) -> bool:
        return self.up and self.core.role is Role.LEADER


def membership_in(entries: list[Entry]) -> Membership | None:
    """The last one."""
    for entry in reversed(entries):
        if entry.kind is EntryKind.MEMBERSHIP:
            return Membership.decode(entry.data)
    return None


def empty_disk() -> MemoryLog:
    return MemoryLog([], HardState())
