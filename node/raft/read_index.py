"""Reads that wait for the leader to prove that it still leads (thesis 6.4): the leader's, and a node's own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from .types import ReadState

#: Rounds under way at once; reads that come meanwhile share the next one.
MAX_ROUNDS = 4


class Read(NamedTuple):
    """A read asked for by `node` with its number `request`; `since` in ticks of the queue."""

    node: int
    request: int
    since: int


@dataclass(slots=True)
class Round:
    """A heartbeat round and the reads that it confirms. `context` is unique for this core's life."""

    context: int
    index: int
    reads: list[Read]
    answered: set[int] = field(default_factory=set)


class ReadQueue:
    """Rounds in the order they were sent; a confirmed round confirms every earlier one."""

    def __init__(self) -> None:
        self.waiting: list[Read] = []  # until the leader's own no-op is committed, or for the next round
        self.rounds: deque[Round] = deque()
        self._now = 0
        self._last_context = 0

    @property
    def wants_round(self) -> bool:
        return bool(self.waiting) and len(self.rounds) < MAX_ROUNDS

    @property
    def newest_context(self) -> int:
        """Context of the newest round under way, 0 for none."""
        return self.rounds[-1].context if self.rounds else 0

    def add(self, node: int, request: int) -> None:
        self.waiting.append(Read(node, request, self._now))

    def start_round(self, index: int, node: int) -> int:
        """All reads that wait become one round for read index `index`, answered by `node` itself."""
        # With the term, which every message carries, the number is never used again: not even after a restart,
        # because this node can lead again only in a later term.
        self._last_context += 1
        self.rounds.append(Round(self._last_context, index, self.waiting, {node}))
        self.waiting = []
        return self._last_context

    def answered(self, context: int, node: int) -> None:
        """A reply to round `context` also answers all earlier ones."""
        for each in self.rounds:
            if each.context <= context:
                each.answered.add(node)

    def tick(self, limit: int) -> list[Read]:
        """One tick went by: drops and returns the reads that are `limit` ticks old."""
        self._now += 1
        oldest = self._now - limit
        lost: list[Read] = []
        while self.rounds and self.rounds[0].reads[0].since <= oldest:
            lost += self.rounds.popleft().reads
        if self.waiting and self.waiting[0].since <= oldest:
            lost += [read for read in self.waiting if read.since <= oldest]
            self.waiting = [read for read in self.waiting if read.since > oldest]
        return lost

    def clear(self) -> list[Read]:
        """Drops and returns all reads."""
        lost = [read for each in self.rounds for read in each.reads] + self.waiting
        self.rounds.clear()
        self.waiting = []
        return lost


class OwnReads:
    """What this node's own reads came to, and those that it has asked its leader for."""

    def __init__(self) -> None:
        self._confirmed: list[ReadState] = []
        self._lost: list[int] = []
        self._forwarded: dict[int, int] = {}  # request -> age in ticks

    def __bool__(self) -> bool:
        """Is there something to take?"""
        return bool(self._confirmed or self._lost)

    def forward(self, request: int) -> None:
        """The leader was asked."""
        self._forwarded[request] = 0

    def is_awaited(self, request: int) -> bool:
        """An answer of the leader came: is it the first one to a question that still stands?"""
        return self._forwarded.pop(request, None) is not None

    def answer(self, request: int, index: int | None) -> None:
        """Confirmed for `index`, or lost."""
        if index is None:
            self._lost.append(request)
        else:
            self._confirmed.append(ReadState(request, index))

    def lose_forwarded(self) -> None:
        """They were bound to the leader that they were asked of."""
        self._lost.extend(self._forwarded)
        self._forwarded.clear()

    def tick(self, limit: int) -> None:
        """One tick went by: what the leader has not answered for `limit` ticks is lost."""
        for request, age in list(self._forwarded.items()):
            self._forwarded[request] = age + 1
            if age + 1 >= limit:
                del self._forwarded[request]
                self._lost.append(request)

    def take(self) -> tuple[tuple[ReadState, ...], tuple[int, ...]]:
        """Confirmed and lost since the last call."""
        taken = tuple(self._confirmed), tuple(self._lost)
        self._confirmed.clear()
        self._lost.clear()
        return taken
