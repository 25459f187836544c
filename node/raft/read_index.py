"""Reads that wait for the leader to prove that it still leads (thesis 6.4)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Round:
    """A heartbeat round and the reads that it confirms. `context` is unique for this core's life."""

    context: int
    index: int
    reads: list[tuple[int, int]]  # (node that asked, its request)
    answered: set[int] = field(default_factory=set)
    age: int = 0


class ReadQueue:
    """Rounds in the order they were sent; a confirmed round confirms every earlier one."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int]] = []  # until the leader's own no-op is committed, or the next round
        self.rounds: deque[Round] = deque()

    def answered(self, context: int, node: int) -> None:
        """A reply to round `context` also answers all earlier ones."""
        for each in self.rounds:
            if each.context <= context:
                each.answered.add(node)

    def clear(self) -> list[tuple[int, int]]:
        """Drops and returns all reads."""
        lost = [read for each in self.rounds for read in each.reads] + self.waiting
        self.rounds.clear()
        self.waiting = []
        return lost
