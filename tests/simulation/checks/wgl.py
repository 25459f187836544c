"""Linearizability of any object with a sequential specification, by search.

Wing & Gong's search for an order of the operations that respects real time and the specification, with Lowe's
memory of what was tried: (set of operations in order so far, state). Herlihy & Wing define the property, and that
objects may be checked one by one.

Sets are a window over the operations in the order in which they began: all before `low` are in, and bits say which
after it. So what is remembered for each step is as large as the number of concurrent operations, not of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class Operation(Generic[S]):
    """`step`: the state after it, None if it cannot have happened in that state.

    `ended` None: nobody knows whether it happened; if so, at any time after `begun`. `reads`: if it happens, the
    state is as before or says more of the same; where it is as before, it can happen at once.
    """

    begun: float
    ended: float | None
    step: Callable[[S], S | None]
    text: Callable[[], str]
    reads: bool = False


class Done(NamedTuple):
    """Which operations are in order: `low` counts the answered ones at the start that all are."""

    low: int
    answered: int
    unanswered: int


@dataclass
class Stuck(Generic[S]):
    """The longest order that was found: no operation of `pending` can come next."""

    ordered: int
    state: S
    pending: list[Operation[S]]


@dataclass
class _Entries(Generic[S]):
    """Calls and returns in the order of time, as a list in which an operation is taken out and put back in O(1).

    Entry 0 is the head. At equal times calls come first: such operations count as concurrent.
    """

    operations: Sequence[Operation[S]]
    following: list[int] = field(default_factory=list)
    previous: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)  # entry -> operation
    call: list[int] = field(default_factory=list)  # operation -> entry
    back: list[int] = field(default_factory=list)  # operation -> entry of its return; 0: none

    def __post_init__(self) -> None:
        moments = []
        for number, operation in enumerate(self.operations):
            moments.append((operation.begun, 0, number))
            if operation.ended is not None:
                moments.append((max(operation.begun, operation.ended), 1, number))
        moments.sort()
        self.owner = [-1]
        self.call, self.back = [0] * len(self.operations), [0] * len(self.operations)
        for entry, (_, returned, number) in enumerate(moments, 1):
            self.owner.append(number)
            (self.back if returned else self.call)[number] = entry
        count = len(self.owner)
        self.following = [*range(1, count), 0]
        self.previous = [count - 1, *range(count - 1)]

    def take(self, number: int) -> None:
        for entry in (self.call[number], self.back[number]):
            if entry:
                self.following[self.previous[entry]] = self.following[entry]
                self.previous[self.following[entry]] = self.previous[entry]

    def put(self, number: int) -> None:
        for entry in (self.back[number], self.call[number]):
            if entry:
                self.following[self.previous[entry]] = entry
                self.previous[self.following[entry]] = entry

    def pending(self) -> list[Operation[S]]:
        """What may come next: what began before any other returned."""
        found, entry = [], self.following[0]
        while entry and entry == self.call[self.owner[entry]]:
            found.append(self.operations[self.owner[entry]])
            entry = self.following[entry]
        return found


def ranks(operations: Sequence[Operation[S]]) -> list[int]:
    """The place of each operation among the answered, or among the unanswered."""
    found, answered, unanswered = [], 0, 0
    for operation in operations:
        if operation.ended is None:
            found.append(unanswered)
            unanswered += 1
        else:
            found.append(answered)
            answered += 1
    return found


def add(done: Done, rank: int, answered: bool) -> Done:
    if not answered:
        return done._replace(unanswered=done.unanswered | 1 << rank)
    bits = done.answered | 1 << (rank - done.low)
    shift = (~bits & (bits + 1)).bit_length() - 1  # the ones at its low end
    return Done(done.low + shift, bits >> shift, done.unanswered)


def search(operations: Sequence[Operation[S]], initial: S) -> Stuck[S] | None:
    """None: there is an order of all answered operations and some of the others."""
    return _Search(sorted(operations, key=lambda operation: operation.begun), initial).run()


class _Search(Generic[S]):
    def __init__(self, operations: Sequence[Operation[S]], initial: S) -> None:
        self.operations = operations
        self.entries = _Entries(operations)
        self.ranks = ranks(operations)
        self.left = sum(operation.ended is not None for operation in operations)
        self.state = initial
        self.done = Done(0, 0, 0)
        self.stack: list[tuple[int, S, Done]] = []  # operations in order, and what was before each
        self.seen = {(self.done, initial)}
        self.best: Stuck[S] | None = None

    def run(self) -> Stuck[S] | None:
        entry = self.entries.following[0]
        while self.left:
            number = self.entries.owner[entry]
            if entry != self.entries.call[number]:  # it returns, and was not in order before
                self.note()
                found = self.back()
                if found is None:
                    return self.best
                entry = self.entries.following[self.entries.call[found]]
            elif self.advance(number):
                entry = self.entries.following[0]
            else:
                entry = self.entries.following[entry]
        return None

    def advance(self, number: int) -> bool:
        """Puts the operation next, unless it cannot be or this was tried."""
        operation = self.operations[number]
        state = operation.step(self.state)
        if state is None:
            return False
        done = add(self.done, self.ranks[number], operation.ended is not None)
        if (done, state) in self.seen:
            return False
        self.seen.add((done, state))
        self.stack.append((number, self.state, self.done))
        self.entries.take(number)
        self.left -= operation.ended is not None
        self.state, self.done = state, done
        return True

    def back(self) -> int | None:
        """Takes out the last operation that might have come later, and all after it; None: there is none."""
        while self.stack:
            number, before, done = self.stack.pop()
            free = self.operations[number].reads and self.state == before
            self.state, self.done = before, done
            self.entries.put(number)
            self.left += self.operations[number].ended is not None
            if not free:
                return number
        return None

    def note(self) -> None:
        """Remembers the longest order, to tell of it."""
        if self.best is None or len(self.stack) > self.best.ordered:
            self.best = Stuck(len(self.stack), self.state, self.entries.pending())
