"""Raft's guarantees (paper, figure 3; thesis, chapter 4), looked at all along: `Violation` if one breaks."""

from __future__ import annotations

from collections.abc import Mapping

from raftstorage.node.raft.types import Entry, Message, MessageType, ReadState

from tests.unit.raft.memory_log import Violation
from tests.unit.raft.raft_node import Node
from tests.unit.raft.raft_words import show_membership


class Checks:
    """What was seen of all nodes."""

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self._nodes = nodes
        self.leaders: dict[int, int] = {}  # term -> node
        self.committed: list[Entry] = []
        self.committed_in: list[int] = []  # term of who first knew it committed
        self.asked: dict[int, int] = {}  # read request -> what was committed when it was asked

    def after_input(self, node: int, it: Node) -> None:
        """A core has been given something."""
        core = it.core
        if core.commit_index < it.known_commit:
            raise Violation(f"the commit index of {node} goes back to {core.commit_index}")
        if it.leads:
            if core.commit_index > it.known_commit:
                self._check_commit(node, it)
            self._check_leader(node, it)
        it.known_commit, it.known_last = core.commit_index, core.last_index

    def _check_commit(self, node: int, it: Node) -> None:
        """A leader counted: a majority of each configuration has it on disk, by what the log said just before."""
        index = it.core.commit_index
        term = it.core.log.term(index)
        if term != it.core.term:
            return  # known from an earlier leader, or by a mistake that `_check_leader` finds
        membership = it.membership_up_to(it.known_last)
        for voters in membership.configurations:
            holders = {each for each in voters if self._nodes[each].disk.covers(index, term)}
            if 2 * len(holders) <= len(voters):
                raise Violation(
                    f"{node} commits entry {index}, but only {sorted(holders)} of {sorted(voters)} have it "
                    f"on disk; members are {show_membership(membership)}"
                )

    def _check_leader(self, node: int, it: Node) -> None:
        core = it.core
        known = self.leaders.setdefault(core.term, node)
        if known != node:
            raise Violation(f"election safety: {known} and {node} lead in term {core.term}")
        if it.led_in != core.term:
            it.led_in, it.complete = core.term, core.log.base
            if it.applied[: core.log.base] != self.committed[: core.log.base]:
                raise Violation(f"leader completeness: {node} has another state at {core.log.base}")
        for position in range(it.complete, len(self.committed)):
            entry = self.committed[position]
            if self.committed_in[position] < core.term and not (
                entry.index <= core.log.base or core.log.matches(entry.index, entry.term)
            ):
                raise Violation(f"leader completeness: {node} lacks {entry.index} in term {core.term}")
        it.complete = max(it.complete, len(self.committed))

    def applies(self, node: int, it: Node, entry: Entry) -> None:
        if entry.index != len(it.applied) + 1:
            raise Violation(f"node {node} applies {entry.index} after {len(it.applied)}")
        if it.installing:
            raise Violation(f"node {node} applies {entry.index} behind a snapshot that is not durable")
        if it.disk.last_index() < entry.index or it.disk.term(entry.index) != entry.term:
            raise Violation(f"node {node} applies {entry.index} before it is durable there")
        it.applied.append(entry)
        if entry.index <= len(self.committed):
            if self.committed[entry.index - 1] != entry:
                raise Violation(f"state machine safety: two entries at {entry.index}")
        else:
            self.committed.append(entry)
            self.committed_in.append(it.core.term)

    def installed(self, node: int, it: Node, before: list[Entry]) -> None:
        """A snapshot replaced `before`."""
        if len(it.applied) < len(before):
            raise Violation(f"node {node} goes back from {len(before)} to {len(it.applied)}")
        if it.applied != self.committed[: len(it.applied)]:
            raise Violation(f"node {node} has a state that was never committed")

    def reads(self, read: ReadState) -> None:
        if read.index < self.asked[read.request]:
            raise Violation(f"read {read.request} is stale: {read.index} < {self.asked[read.request]}")

    def sends(self, it: Node, message: Message) -> None:
        if message.entries:
            assert len(message.entries) <= it.config.max_message_entries
        if message.type is MessageType.APPEND_REPLY and not message.reject:
            disk = it.disk
            if disk.last_index() < message.log_index:
                raise Violation(f"{message.from_node} has {message.log_index} not on disk, and says it has")

    def logs(self) -> None:
        """Log matching: equal index and term means equal logs up to there."""
        logs = [(it.core.log.base, it.log()) for it in self._nodes.values() if it.up]
        for position, (base, one) in enumerate(logs):
            for other_base, other in logs[position + 1 :]:
                low = max(base, other_base)
                a_part, b_part = one[low - base :], other[low - other_base :]
                common = min(len(a_part), len(b_part))
                agree = False
                for a, b in zip(reversed(a_part[:common]), reversed(b_part[:common]), strict=True):
                    agree = agree or a.term == b.term
                    if agree and a != b:
                        raise Violation(f"log matching: {a} and {b} under a common entry")
