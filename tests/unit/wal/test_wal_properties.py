"""The log against a list: random writes, crashes at every point, failing disks, and damage of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal, WalDamaged, WalError
from raftstorage.node.wal import format as fmt

from tests.simulation.disk import LOG, SECTOR, SimFiles
from tests.unit.service.fuzzing import explore

SEGMENT = 2048

Writes: TypeAlias = list[tuple[HardState | None, list[Entry]]]
State: TypeAlias = tuple[list[Entry], HardState]


class Gone(BaseException):
    """The process ended here."""


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


def writes_of(batch: list[tuple[int, list[bytes], bool]], length: int, term: int) -> Writes:
    """The batch as writes to a log of `length` entries."""
    made: Writes = []
    for back, each, vote in batch:
        first = max(0, length - back)
        kinds = list(EntryKind)
        entries = [Entry(term, first + at, kinds[at % 3], data) for at, data in enumerate(each, 1)]
        made.append((HardState(term, back) if vote else None, entries))
        length = first + len(entries) if entries else length
    return made


def outcomes(state: State, writes: Writes) -> Iterator[State]:
    """What the log is when the first 0, 1, ... records of a batch are there."""
    entries, hard_state = state
    yield entries, hard_state
    for new, more in writes:
        if new is not None:
            hard_state = new
            yield entries, hard_state
        for entry in more:
            entries = [*entries[: entry.index - 1], entry]
            yield entries, hard_state


def observed(wal: Wal) -> State:
    return wal.entries(1, wal.last_index() + 1, 1 << 40), wal.hard_state


def quiet(name: str) -> None: ...


class WalMachine(RuleBasedStateMachine):
    """`state` is what was acknowledged; `unsure` the batch whose outcome nobody was told."""

    @initialize(seed=st.integers(0, 1 << 16), cache=st.sampled_from([0, 900, 1 << 20]))
    def begin(self, seed: int, cache: int) -> None:
        self.points = 0
        self.files = SimFiles(random.Random(seed), self.point)
        self.cache = cache
        self.term = 0
        self.state: State = ([], HardState())
        self.unsure: Writes = []
        self.wal: Wal | None = self.open()
        self.broken = False

    def point(self, name: str) -> None:
        self.points -= 1
        if self.points == 0:
            event(f"gone {name}")
            raise Gone(name)

    def open(self, files: SimFiles | None = None) -> Wal:
        return Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=self.cache, files=files or self.files)

    def arm(self, fault: str, after: int) -> None:
        files = self.files
        self.points = after if fault in ("kill", "power") else 0
        files.full, files.fail_writes, files.fail_syncs = fault == "full", fault == "write", fault == "sync"

    def end(self, how: str) -> None:
        """The process ends; with "power", the machine does."""
        self.arm("", 0)
        self.files.lose_power() if how == "power" else self.files.kill()
        self.wal = None

    faults = st.sampled_from(["", "", "", "", "kill", "power", "write", "sync", "full"])
    afters = st.integers(1, 9)

    @precondition(lambda self: self.wal is not None and not self.broken)
    @rule(batch=batches, fault=faults, after=afters)
    def write(self, batch: Any, fault: str, after: int) -> None:
        assert self.wal is not None
        self.term += 1
        writes = writes_of(batch, len(self.state[0]), self.term)
        self.arm(fault, after)
        try:
            self.wal.write_many(writes)
        except Gone:
            self.unsure = writes
            self.end(fault)
        except OSError:
            event(f"failed: {fault}")
            self.unsure = writes
            self.broken = True
        else:
            *_, self.state = outcomes(self.state, writes)
        self.arm("", 0)

    @precondition(lambda self: self.wal is not None)
    @rule(beyond=st.integers(2, 5))
    def leave_a_gap(self, beyond: int) -> None:
        assert self.wal is not None
        entry = Entry(self.term + 1, len(self.state[0]) + beyond, EntryKind.NOOP)
        with pytest.raises(WalError):
            self.wal.write(None, [entry])

    @precondition(lambda self: self.broken)
    @rule()
    def write_after_a_failure(self) -> None:
        assert self.wal is not None
        with pytest.raises(WalError, match="an earlier write failed"):
            self.wal.write(HardState(self.term, 9), [])

    @precondition(lambda self: self.wal is not None)
    @rule(how=st.sampled_from(["close", "kill", "power"]), fault=faults, after=afters)
    def stop(self, how: str, fault: str, after: int) -> None:
        """A stop that closes the log can be cut short, or meet a disk that fails, as well."""
        assert self.wal is not None
        if how == "close":
            self.arm(fault, after)
            try:
                self.wal.close()
            except Gone:
                how = fault
            except OSError:
                assert not self.files._open
        self.end(how)
        self.broken = False

    @precondition(lambda self: self.wal is None)
    @rule(fault=faults, after=afters)
    def start(self, fault: str, after: int) -> None:
        self.broken = False
        self.arm(fault, after)
        try:
            wal = self.open()
        except Gone:
            self.end(fault)
        except OSError:
            assert not self.files._open, "a start that failed left a file open"
        else:
            found = observed(wal)
            assert found in list(outcomes(self.state, self.unsure))
            # A later batch could end where a record begins that was cut off, and bring it back.
            behind = self.files._files[wal._current.path].content[wal._current.end :]
            assert not any(behind), "what was cut off is still there"
            self.wal, self.state, self.unsure = wal, found, []
        self.arm("", 0)

    @rule()
    def look_at_what_is_durable(self) -> None:
        """At any time: the machine loses power, and with it all that is not certain to be on disk."""
        wal = self.open(self.files.after_power_cut())
        assert observed(wal) in list(outcomes(self.state, self.unsure))
        wal.close()

    @precondition(lambda self: self.wal is not None)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        assert self.wal is not None
        entries = self.state[0]
        low = data.draw(st.integers(1, len(entries) + 1))
        high = data.draw(st.integers(low, len(entries) + 2))
        limit = data.draw(st.integers(0, 2000))
        if high > len(entries) + 1:
            with pytest.raises(IndexError):
                self.wal.entries(low, high, limit)
            return
        expected: list[Entry] = []
        for entry in entries[low - 1 : high - 1]:
            if expected and sum(len(each.data) for each in [*expected, entry]) > limit:
                break
            expected.append(entry)
        assert self.wal.entries(low, high, limit) == expected

    @invariant()
    def readers_see_what_was_acknowledged(self) -> None:
        if getattr(self, "wal", None) is None:
            return
        wal, entries = self.wal, self.state[0]
        assert wal is not None
        assert observed(wal) == self.state
        assert [wal.term(index) for index in range(wal.last_index() + 1)] == [0, *(each.term for each in entries)]
        assert wal._index._recent_bytes <= self.cache
        with pytest.raises(IndexError):
            wal.term(len(entries) + 1)


def test_the_log_against_a_list_through_crashes_and_failing_disks() -> None:
    explore(WalMachine, 400, steps=30)


# ---- damage -------------------------------------------------------------------------------------------------


class Disk:
    """A log that was written and left: its files, and where its last batch begins."""

    def __init__(self, made: list[Any], closed: bool, seed: int) -> None:
        self.files = SimFiles(random.Random(seed), quiet)
        wal = Wal.open(LOG, segment_bytes=SEGMENT, files=self.files)
        self.before: State = observed(wal)
        writes: Writes = []
        for term, batch in enumerate(made, 1):
            new = writes_of(batch, wal.last_index(), term)
            if any(state or entries for state, entries in new):
                self.before, writes = observed(wal), new
            wal.write_many(new)
        self.state = observed(wal)
        if closed:
            self.before, writes = self.state, []
            wal.close()
        self.writes = writes
        self.last = wal._current.path
        self.mark = self.records(self.last, fmt.MARK)[-1]
        self.files.kill()

    def paths(self) -> list[Path]:
        return sorted(self.files._files)

    def records(self, path: Path, kind: int = 0) -> list[int]:
        """Offsets of a segment's records; of one kind unless that is 0."""
        data = bytes(self.files._files[path].content)
        seed = fmt.seed(fmt.Header.unpack(data, path).salt)
        return [at for at, each, _ in fmt.records(data, fmt.HEADER_BYTES, seed) if kind in (0, each)]

    def durable(self, path: Path) -> int:
        """How much of a segment is in front of the last mark."""
        return self.mark if path == self.last else len(self.files._files[path].content)

    def change(self, path: Path, alter: Callable[[bytearray], None]) -> bool:
        """Alters what the disk holds; False when that changed nothing."""
        file = self.files._files[path]
        before = bytes(file.content)
        alter(file.content)
        file.durable[:] = file.content
        return bytes(file.content) != before

    def reopen(self) -> State:
        wal = Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=0, files=self.files)
        found = observed(wal)
        wal.close()
        return found


disks = st.builds(Disk, st.lists(batches, min_size=1, max_size=6), st.booleans(), st.integers(0, 1 << 16))


def damage(draw: st.DrawFn | Any, disk: Disk, path: Path, low: int, high: int) -> str:
    """Damages bytes low .. high - 1; says how, "" when it changed nothing."""
    kind = draw(st.sampled_from(["flip", "flip", "bytes", "zeros", "sector", "tail", "copy"]))
    at = draw(st.integers(low, high - 1))
    size = min(draw(st.integers(1, SECTOR)), high - at)
    source = disk.files._files[draw(st.sampled_from(disk.paths()))].content
    new = bytes(size)
    if kind == "flip":
        size, new = 1, bytes([disk.files._files[path].content[at] ^ 1 << draw(st.integers(0, 7))])
    elif kind == "bytes":
        new = draw(st.binary(min_size=1, max_size=min(size, 16)))
    elif kind == "sector":
        at = max(low, at - at % SECTOR)
        new = bytes(min(SECTOR, high - at))
    elif kind == "tail":  # zeros from a record's first byte on look like a clean end
        at = draw(st.sampled_from([start for start in disk.records(path) if low <= start < high] or [low]))
        new = bytes(high - at)
    elif kind == "copy":  # a write that the disk put into a wrong place
        begin = draw(st.integers(0, len(source) - size))
        new = bytes(source[begin : begin + size])

    def alter(content: bytearray) -> None:
        content[at : at + len(new)] = new

    return f"{kind} at {at}" if disk.change(path, alter) else ""


@given(disk=disks, data=st.data())
def damage_before_the_last_mark(disk: Disk, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(disk.paths()))
    how = damage(data.draw, disk, path, 0, disk.durable(path))
    try:
        found = disk.reopen()
    except WalError as error:
        event("refused")
        assert how
        assert str(path) in str(error)
        assert not disk.files._open
        if isinstance(error, WalDamaged):
            assert (error.file, f"offset {error.offset}" in str(error)) == (path, True)
        else:
            assert "has log format" in str(error)
    else:
        event("changed nothing")
        assert found == disk.state


def test_damage_before_the_last_mark_is_refused_or_changes_nothing() -> None:
    explore(damage_before_the_last_mark, 800)


@given(disk=disks, data=st.data())
def damage_behind_the_last_mark(disk: Disk, data: st.DataObject) -> None:
    damage(data.draw, disk, disk.last, disk.mark, len(disk.files._files[disk.last].content))
    found = disk.reopen()
    assert found in list(outcomes(disk.before, disk.writes))
    assert disk.reopen() == found


def test_damage_of_the_last_batch_only_cuts_it() -> None:
    explore(damage_behind_the_last_mark, 250)


@given(disk=disks, data=st.data())
def another_length(disk: Disk, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(disk.paths()))
    size = len(disk.files._files[path].content)
    new = data.draw(st.integers(0, size - 1) | st.integers(size + 1, 2 * size))
    file = disk.files._files[path]
    for each in (file.content, file.durable):
        each[new:] = bytes(max(0, new - size))
    with pytest.raises(WalDamaged) as refused:
        disk.reopen()
    assert refused.value.file == path


def test_a_segment_of_another_length_is_refused() -> None:
    explore(another_length, 100)


@given(disk=disks, data=st.data())
def a_missing_segment(disk: Disk, data: st.DataObject) -> None:
    paths = disk.paths()
    if len(paths) > 1:
        del disk.files._files[data.draw(st.sampled_from(paths[:-1]))]
        with pytest.raises(WalDamaged):
            disk.reopen()


def test_a_segment_that_is_missing_before_the_last_is_refused() -> None:
    explore(a_missing_segment, 50)


@given(disk=disks, data=st.data())
def damage_under_an_open_log(disk: Disk, data: st.DataObject) -> None:
    wal = Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=0, files=disk.files)
    path = data.draw(st.sampled_from(disk.paths()))
    damage(data.draw, disk, path, 0, len(disk.files._files[path].content))
    expected: Sequence[Entry] = disk.state[0]
    for index, entry in enumerate(expected, 1):
        try:
            assert wal.entries(index, index + 1, 0) == [entry]
        except WalDamaged as error:
            event("refused")
            assert error.file == path and f"entry {index}" in str(error)


def test_damage_under_an_open_log_never_alters_an_answer() -> None:
    explore(damage_under_an_open_log, 150)
