"""A log that is written, cut and reset, with a crash or a failing disk at each point on the way.

Everything between the log and its disk is passed: before and after each write, sync, create, rename, remove and
sync of the folder. Whatever strikes there, the next start finds the step under way done or not begun.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal, WalError
from raftstorage.node.wal import index as entry_index

from tests.simulation.disk import LOG, SimFiles
from tests.unit.wal.log_model import Gone, State, Writes, observed, outcomes

SEGMENT = 1024


class Strike:
    """`SimFiles`'s point: raises `error` at the call number `at`, counted from 1; 0 never."""

    def __init__(self) -> None:
        self.at = self.passed = 0
        self.error: BaseException = Gone()
        self.hit = ""

    def __call__(self, name: str) -> None:
        self.passed += 1
        if self.passed == self.at:
            self.hit = name
            raise self.error


@dataclass(frozen=True)
class Step:
    """`after`: what the log may be when the step is cut short; last, what it is when it was not."""

    act: Callable[[Wal], object]
    after: Callable[[State], list[State]]
    writes: bool = True


def write(first: int, term: int, sizes: list[int], vote: HardState | None = None) -> Step:
    entries = [
        Entry(term, index, EntryKind.COMMAND, random.Random(index * 100 + term).randbytes(size))
        for index, size in enumerate(sizes, first)
    ]
    writes: Writes = [(vote, entries)]
    return Step(lambda wal: wal.write_many(writes), lambda state: list(outcomes(state, writes)))


def cut(index: int) -> list[Step]:
    return [
        Step(lambda wal: wal.write_base(index), lambda state: [state, state.cut(index)]),
        Step(lambda wal: wal.forget(index), lambda state: [state], writes=False),
        Step(lambda wal: wal.clean(), lambda state: [state]),
    ]


def reset(index: int, term: int, vote: HardState | None = None) -> list[Step]:
    def after(state: State) -> list[State]:
        voted = replace(state, vote=vote or state.vote)
        kept = index <= state.last and state.term(index) == term
        return [state, *([voted] if kept else []), voted.reset(index, term)]

    _base, *others = cut(index)
    return [Step(lambda wal: wal.reset(index, term, vote), after), *others]


STORY = [
    write(1, 1, [300, 300], HardState(1, 1)),
    write(3, 1, [400, 20, 30]),
    *cut(2),
    write(6, 1, [700]),
    write(7, 1, [10, 10, 10]),
    write(5, 2, [200, 200], HardState(2, 2)),  # replaces entries of older segments
    *cut(5),
    write(7, 2, [900]),
    *cut(7),  # nothing is left
    write(8, 3, [600]),  # in a segment that begins with its base
    *reset(8, 3, HardState(4, 1)),  # holds it
    write(9, 4, [10, 800, 10]),
    *reset(20, 5),  # further than it reaches
    write(21, 5, [10, 20, 700, 30]),
    write(25, 5, [500]),
    *reset(23, 6, HardState(6, 3)),  # holds another entry there
    write(24, 6, [30]),
    *reset(24, 6),
    *reset(30, 7, HardState(7, 0)),  # twice without an entry between
    *reset(40, 7),
    write(41, 8, [600, 30]),
]


@dataclass
class Run:
    """The story up to where `strike` fell; `possible` is what a start may find."""

    strike: Strike
    files: SimFiles
    possible: list[State] = field(default_factory=lambda: [State()])
    left: list[Step] = field(default_factory=list)
    wal: Wal | None = None


def open_log(files: SimFiles) -> Wal:
    return Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=500, files=files)


def told(at: int, error: BaseException) -> Run:
    strike = Strike()
    run = Run(strike, SimFiles(random.Random(at), strike), left=list(STORY))
    strike.at, strike.error = at, error
    try:
        run.wal = open_log(run.files)
        while run.left:
            run.possible = run.left[0].after(run.possible[-1])
            run.left[0].act(run.wal)
            run.possible = run.possible[-1:]
            del run.left[0]
    except (Gone, OSError):
        assert strike.hit
    strike.at = 0
    return run


def everywhere(error: BaseException) -> Iterator[Run]:
    """Once for each point on the way."""
    at = 1
    while (run := told(at, error)).strike.hit:
        yield run
        at += 1
    assert at > 200, "the story is shorter than it was"


def after_crash(files: SimFiles, how: int) -> SimFiles:
    """A copy, as a start finds it: 0 after a kill, otherwise after a power cut, each number with its own dice."""
    files = copy.deepcopy(files)
    if how:
        files._rng = random.Random(how)
        files.lose_power()
    else:
        files.kill()
    return files


def check(files: SimFiles, possible: list[State]) -> None:
    """The log opens, is one of `possible`, and goes on as such."""
    wal = open_log(files)
    state = observed(wal)
    assert state in possible
    durable = open_log(files.after_power_cut())
    assert observed(durable) == state, "what a start found is not durable"
    vote = HardState(50, 1)
    for step in [write(state.last + 1, 50, [700, 10], vote), *cut(state.last + 1), write(state.last + 3, 50, [9])]:
        step.act(wal)
        state = step.after(state)[-1]
    assert observed(wal) == state
    assert files.names(LOG) == [segment.path.name for segment in wal._segments.values()]
    assert wal._segments.keys() == {wal._index.first_sequence()} | {wal._current.sequence}
    wal.close()
    assert observed(open_log(files)) == state


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_index, "_PAGE_BITS", 2)
    monkeypatch.setattr(entry_index, "_PAGE_MASK", 3)


def test_the_story_without_a_crash() -> None:
    run = told(0, Gone())
    assert run.wal is not None
    assert run.wal.base == (40, 7)
    check(after_crash(run.files, 0), run.possible)


def test_a_crash_at_every_point() -> None:
    hit = set()
    for run in everywhere(Gone()):
        hit.add(run.strike.hit)
        for how in range(6):
            check(after_crash(run.files, how), run.possible)
    operations = ["write", "sync", "rename", "remove", "directory sync"]
    assert hit == {f"{when} {what}" for when in ("before", "after") for what in operations} | {"before create"}


def test_a_crash_at_every_point_of_the_start_after_a_crash() -> None:
    for run in everywhere(Gone()):
        for how in range(2):
            crashed = after_crash(run.files, how)
            at = 0
            while True:
                at += 1
                files = copy.deepcopy(crashed)
                strike: Strike = files._point  # type: ignore[assignment]
                strike.hit, strike.passed, strike.at, strike.error = "", 0, at, Gone()
                try:
                    open_log(files)
                except Gone:
                    strike.at = 0
                else:
                    break
                check(after_crash(files, at % 2), run.possible)
            assert at > 5


def test_a_disk_that_fails_at_every_point() -> None:
    """Nothing is written after that in this life; readers go on with what they had."""
    for run in everywhere(OSError(errno.EIO, "Input/output error")):
        wal = run.wal
        if wal is not None:
            passed, seen = run.strike.passed, observed(wal)
            with pytest.raises(WalError, match="an earlier write failed"):
                wal.write(None, [Entry(60, wal.last_index() + 1, EntryKind.NOOP)])
            for step in run.left:
                if step.writes:
                    with contextlib.suppress(WalError):  # some have nothing to do
                        step.act(wal)
                    assert observed(wal) == seen
            wal.close()
            assert run.strike.passed == passed, "something was written after a failure"
        assert not run.files._open, "a log that failed left a file open"
        for how in range(3):
            check(after_crash(run.files, how), run.possible)
