"""What must hold at every moment: Raft's guarantees over the logs, and those of the state machines over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raftstorage.node.engine.api import Applied, EngineError
from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import Entry, Message, MessageType, Persist, Role, RoleChange
from raftstorage.node.wal import Wal, WalError

from tests.simulation.disk import LOG
from tests.simulation.members_watch import MembersWatch, decides
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.node import SimNode
    from tests.simulation.world import World


class Watcher:
    """Hears everything from all nodes, and raises Violation. `founders`: who was a voter at the beginning."""

    def __init__(self, world: World, founders: Sequence[int]) -> None:
        self._world = world
        self._rng = world.random("watcher")
        self.nodes: dict[int, SimNode] = {}
        self.leaders: dict[int, int] = {}  # term -> node
        self.committed: list[Entry] = []  # as first applied anywhere
        self.committed_in: list[int] = []  # the highest term known when it was
        self.digests: dict[int, bytes] = {}  # applied index -> digest
        self.struck: Counter[str] = Counter()
        self.members = MembersWatch(founders)
        self.snapshots = 0  # installed
        self._term = 0
        self._votes: dict[tuple[int, int], int] = {}  # (voter, term) -> candidate
        self._commit: dict[int, int] = {}  # node -> commit index seen in this life
        self._applied: dict[int, int] = {}  # node -> applied index in this life
        self._tids: dict[int, bytes] = {}

    # ---- what nodes tell -------------------------------------------------------------------------------

    def began(self, node: SimNode) -> None:
        self._commit[node.id] = 0
        self._applied[node.id] = node.engine.applied_index
        self._tids[node.id] = node.engine.last_tid
        untold = len(self.committed) + 1
        if node.engine.applied_index >= untold:  # its last life applied them, and died before it could say so
            for entry in node.wal.entries(
                max(untold, node.wal.first_index()), node.engine.applied_index + 1, 1 << 30
            ):
                self._check_committed(node, entry)
        self._compare_digest(node)

    def installed(self, node: SimNode) -> None:
        """A snapshot took the place of what the node had applied."""
        self.snapshots += 1
        applied = node.engine.applied_index
        if applied <= self._applied[node.id]:
            raise Violation(f"{node.name} goes back to entry {applied} by a snapshot")
        if applied > len(self.committed):
            raise Violation(f"{node.name} takes a snapshot at entry {applied}, which nobody has applied")
        self._applied[node.id] = applied
        self._tids[node.id] = node.engine.last_tid
        self._compare_digest(node)
        self.members.check(node)

    def copied(self, node: SimNode) -> None:
        """Its database is copied for a node that was left behind, which must come to the same."""
        self._compare_digest(node)

    def died(self, node: SimNode) -> None:
        self._commit.pop(node.id, None)

    def refused(self, node: SimNode) -> None:
        """The node will not start on what its disk holds."""
        if not node.damaged:
            raise Violation(f"{node.name} refuses a directory that its disk has kept well: {node.lost}")

    def failed(self, node: SimNode, error: BaseException) -> None:
        """The node found that one of its own invariants is broken. A damaged disk may do that, nothing else."""
        if isinstance(error, Violation):
            raise error
        if not node.lost and not node.damaged:
            raise Violation(f"{node.name} ends itself: {error!r}") from error

    def wrote(self, node: SimNode, batch: Sequence[Persist]) -> None:
        """Says so itself once in a while: what was written is what a power cut would leave."""
        self.check_state(node)
        if self._rng.random() < 0.05:
            self._check_durable(node, batch[-1].entries)

    def check_state(self, node: SimNode) -> None:
        """A start never finds the state ahead of the log."""
        applied, last = node.engine.applied_index, node.wal.last_index()
        if applied > last:
            raise Violation(f"the state of {node.name} holds entry {applied}, its log ends at {last}")

    def leads(self, node: SimNode, change: RoleChange) -> None:
        known = self.leaders.setdefault(change.term, node.id)
        if known != node.id:
            raise Violation(f"election safety: nodes {known} and {node.id} both lead in term {change.term}")
        core = node.driver._core
        granted = {voter for (voter, term), to in self._votes.items() if (term, to) == (change.term, node.id)}
        self.members.elected(node, granted | {node.id})
        self.members.check(node)
        for entry, term in zip(self.committed, self.committed_in, strict=True):
            if term >= change.term or entry.index < core.log.base:
                continue
            if not core.log.matches(entry.index, entry.term):
                raise Violation(
                    f"leader completeness: {node.name} leads in term {change.term} without entry "
                    f"{entry.index} of term {entry.term}, committed in term {term} or before"
                )

    def sent(self, message: Message) -> None:
        """Before the network has it."""
        node = self.nodes[message.from_node]
        if message.type is MessageType.APPEND:
            self.members.sent(node, message.entries, self._is_safe)
        elif message.type is MessageType.APPEND_REPLY and not message.reject:
            if message.term == node.driver.term and message.log_index > node.wal.last_index():
                raise Violation(
                    f"{node.name} acknowledges entry {message.log_index}, which its disk has not got yet"
                )
        elif message.type is MessageType.VOTE:
            self._voted(message, message.from_node)
        elif message.type is MessageType.VOTE_REPLY and not message.reject:
            self._voted(message, message.to_node)

    def _voted(self, message: Message, candidate: int) -> None:
        known = self._votes.setdefault((message.from_node, message.term), candidate)
        if known != candidate:
            raise Violation(f"n{message.from_node} votes for n{known} and n{candidate} in term {message.term}")

    def applied(self, node: SimNode, entries: Sequence[tuple[Entry, Applied]]) -> None:
        driver = node.driver
        self._term = max(self._term, driver.term)
        before, commit = self._commit.get(node.id, 0), driver.commit_index
        if commit < before:
            raise Violation(f"the commit index of {node.name} goes back to {commit}")
        # What a leader has cut from its log was applied before: this is about what it has just committed.
        newly = commit > before and driver.role is Role.LEADER and commit > driver._core.log.base
        if newly and driver._core.log.term(commit) != driver.term:
            raise Violation(f"{node.name} leads in term {driver.term} and commits an older term's entry {commit}")
        self._commit[node.id] = commit
        for entry, outcome in entries:
            if entry.index != self._applied[node.id] + 1:
                raise Violation(f"{node.name} applies entry {entry.index} after {self._applied[node.id]}")
            self._applied[node.id] = entry.index
            if not node.log_has(entry):
                raise Violation(f"{node.name} applies entry {entry.index}, which its own log has not got yet")
            self._check_committed(node, entry)
            if outcome.tid is not None and not outcome.repeated:
                if outcome.tid <= self._tids[node.id]:
                    last = self._tids[node.id].hex()
                    raise Violation(f"{node.name} applies tid {outcome.tid.hex()} after {last}")
                self._tids[node.id] = outcome.tid

    def state(self, node: SimNode) -> None:
        """Right behind each entry. All nodes' states are compared at the same indexes: each 32nd, later fewer."""
        index = node.engine.applied_index
        if index % (1 << max(5, index.bit_length() - 3)) == 0:
            self._compare_digest(node)

    def _check_committed(self, node: SimNode, entry: Entry) -> None:
        position = entry.index - 1
        if position < len(self.committed):
            known = self.committed[position]
            if known != entry:
                raise Violation(
                    f"state machine safety: {node.name} applies entry {entry.index} of term {entry.term}; "
                    f"another node applied one of term {known.term} there"
                )
        elif position > len(self.committed):
            raise Violation(f"{node.name} applies entry {entry.index}, nobody applied the one before")
        else:
            self.committed.append(entry)
            self.committed_in.append(self._term)
            self.members.committed(entry)
            self._check_majority(node, entry)

    def _check_majority(self, node: SimNode, entry: Entry) -> None:
        """Newly committed: on the disks of a majority, whoever says so.

        Of the voters as of the entry, or of those that came into effect before it was counted.
        """
        holders = self._holders(entry)
        candidates = (self.members.newest, self.members.before, node.driver.membership)
        if not any(decides(holders, membership) for membership in candidates):
            names = ", ".join(f"n{holder}" for holder in sorted(holders))
            raise Violation(
                f"entry {entry.index} of term {entry.term} is applied, but only logs of {names} have it"
            )

    def _holders(self, entry: Entry) -> frozenset[int]:
        return frozenset(node.id for node in self.nodes.values() if node.log_has(entry))

    def _is_safe(self, entry: Entry, membership: Membership) -> bool:
        return entry.index <= len(self.committed) or decides(self._holders(entry), membership)

    def _check_durable(self, node: SimNode, entries: Sequence[Entry]) -> None:
        if not entries or node.damaged:  # a record that cannot be read says nothing about those behind it
            return
        try:
            wal = Wal.open(LOG, segment_bytes=node.segment_bytes, files=node.files.after_power_cut())
        except WalError as error:
            raise Violation(f"{node.name} writes a log that a power cut would spoil: {error}") from error
        last = entries[-1]
        if wal.last_index() < last.index or wal.term(last.index) != last.term:
            raise Violation(f"{node.name} says that entry {last.index} is durable; a power cut would lose it")
        if (wal.hard_state.term, wal.hard_state.vote) != (node.wal.hard_state.term, node.wal.hard_state.vote):
            raise Violation(f"{node.name} says that its vote is durable; a power cut would lose it")

    def _compare_digest(self, node: SimNode) -> None:
        index = node.engine.applied_index
        try:
            digest = node.engine.digest()
        except EngineError as error:
            raise Violation(f"{node.name} cannot read its state at entry {index}: {error}") from error
        if self.digests.setdefault(index, digest) != digest:
            raise Violation(f"{node.name} has another state than others had at entry {index}")

    # ---- at the end ------------------------------------------------------------------------------------

    def check_logs(self) -> None:
        """Log matching, between all that run."""
        logs = [(node.name, node.wal) for node in self.nodes.values() if node.up]
        for position, (name, one) in enumerate(logs):
            for other_name, other in logs[position + 1 :]:
                agreed = False
                bottom = max(one.base[0], other.base[0], 1) - 1
                for index in range(min(one.last_index(), other.last_index()), bottom, -1):
                    agreed = agreed or one.term(index) == other.term(index)
                    if agreed and one.term(index) != other.term(index):
                        raise Violation(f"log matching: {name} and {other_name} differ at {index}")

    def check_equal(self) -> None:
        """All nodes that run hold the same."""
        for node in self.nodes.values():
            if node.up:
                self._compare_digest(node)
                self.members.check(node)
