"""A log as a list, and what may have become of it when a batch was cut off: shared by the tests of the log."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from hypothesis import strategies as st
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal

SEGMENT = 2048

NO_VOTE = HardState()

Writes: TypeAlias = list[tuple[HardState | None, list[Entry]]]


class Gone(BaseException):
    """The process ended here."""


@dataclass(frozen=True)
class State:
    """The entries follow `base`, (index, term)."""

    base: tuple[int, int] = (0, 0)
    entries: tuple[Entry, ...] = ()
    vote: HardState = NO_VOTE

    @property
    def last(self) -> int:
        return self.base[0] + len(self.entries)

    def term(self, index: int) -> int:
        return self.base[1] if index == self.base[0] else self.entries[index - self.base[0] - 1].term

    def written(self, entry: Entry) -> State:
        return replace(self, entries=(*self.entries[: entry.index - self.base[0] - 1], entry))

    def cut(self, index: int) -> State:
        """Without the entries up to `index`; the same when the base is behind that."""
        if index <= self.base[0]:
            return self
        return replace(self, base=(index, self.term(index)), entries=self.entries[index - self.base[0] :])

    def reset(self, index: int, term: int) -> State:
        if index <= self.last and self.term(index) == term:
            return self.cut(index)
        return replace(self, base=(index, term), entries=())


def outcomes(state: State, writes: Writes) -> Iterator[State]:
    """What the log is when the first 0, 1, ... records of a batch are there."""
    yield state
    for vote, entries in writes:
        if vote is not None:
            state = replace(state, vote=vote)
            yield state
        for entry in entries:
            state = state.written(entry)
            yield state


def observed(wal: Wal) -> State:
    first, last = wal.first_index(), wal.last_index()
    assert wal.base[0] == first - 1
    return State(wal.base, tuple(wal.entries(first, last + 1, 1 << 40)), wal.hard_state)


#: Small ones share a sector, large ones fill more than a segment, and zeros look like space that is not used.
datas = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 9), st.integers(300, 900)),
    st.builds(bytes, st.integers(0, 700)),
    st.builds(bytes, st.just(3 * SEGMENT)),
)
#: For one write: how far back the entries begin, their data, whether there is a new vote.
parts = st.tuples(st.integers(0, 5), st.lists(datas, max_size=4), st.booleans())
batches = st.lists(parts, min_size=1, max_size=3)


def writes_of(batch: list[tuple[int, list[bytes], bool]], base: int, last: int, term: int) -> Writes:
    """The batch as writes to a log of the entries behind `base` up to `last`."""
    made: Writes = []
    for back, each, vote in batch:
        first = max(base, last - back)
        kinds = list(EntryKind)
        entries = [Entry(term, first + at, kinds[at % 3], data) for at, data in enumerate(each, 1)]
        made.append((HardState(term, back) if vote else None, entries))
        last = first + len(entries) if entries else last
    return made
