"""Damage of every kind, anywhere in a log: refused, or without consequence; behind the last mark, it is cut."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from raftstorage.node.raft.types import HardState
from raftstorage.node.wal import Wal, WalDamaged, WalError
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.segment import Segment

from tests.simulation.disk import LOG, SECTOR, SimFiles
from tests.unit.service.fuzzing import explore
from tests.unit.wal.log_model import SEGMENT, State, batches, observed, outcomes, writes_of


def quiet(name: str) -> None: ...


class Disk:
    """A log that was written, cut and left: its files, and where its last batch begins.

    Of `made`, a list is a batch, a number from 0 on how many entries stay, one below 0 how far ahead a snapshot
    is. `possible`: what the log is without all of its last batch, or some.
    """

    def __init__(self, made: list[Any], closed: bool, seed: int) -> None:
        self.files = SimFiles(random.Random(seed), quiet)
        wal = Wal.open(LOG, segment_bytes=SEGMENT, files=self.files)
        self.possible = [observed(wal)]
        for term, step in enumerate(made, 1):
            before, end = observed(wal), (wal._current.sequence, wal._current.end)
            possible = self.make(wal, step, term)
            if end != (wal._current.sequence, wal._current.end):
                self.possible = possible or list(
                    outcomes(before, writes_of(step, before.base[0], before.last, term))
                )
                if not possible:
                    wal.clean()  # what vouches for the missing is not in the last batch now
        self.state = observed(wal)
        if closed:
            self.possible = [self.state]
            wal.close()
        self.last = wal._current.path
        self.mark = max(fmt.BEGIN_BYTES, *self.records(self.last, fmt.MARK), 0)
        self.files.kill()

    def make(self, wal: Wal, step: Any, term: int) -> list[State]:
        """What the log is without some of the batch that was written; empty: as the batch says."""
        before = observed(wal)
        if not isinstance(step, int):
            wal.write_many(writes_of(step, before.base[0], before.last, term))
            return []
        if step < 0:
            wal.reset(before.last - step, term, HardState(term, 1))
            wal.forget(before.last - step)
            return [observed(wal)]  # no batch: it has its name when all of it is durable
        index = max(before.base[0], before.last - step)
        wal.write_base(index)
        wal.forget(index)
        return [before, observed(wal)]

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

    def holders(self) -> set[Path]:
        """Segments that hold an entry."""
        wal = Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=0, files=copy.deepcopy(self.files))
        located = (wal._index._place(entry.index) >> 40 for entry in self.state.entries)
        return {LOG / Segment.name(sequence) for sequence in located}

    def reopen(self) -> State:
        wal = Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=0, files=self.files)
        found = observed(wal)
        wal.close()
        return found


steps = st.one_of(batches, batches, st.integers(-3, 6))
disks = st.builds(Disk, st.lists(steps, min_size=1, max_size=8), st.booleans(), st.integers(0, 1 << 16))


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
    assert found in disk.possible
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
def missing_segments(disk: Disk, data: st.DataObject) -> None:
    """Those that hold an entry must be there; without the others the log is the same, or refused: one that held
    only what was replaced since cannot be told from one that held more."""
    older = [path for path in disk.paths() if path != disk.last]
    gone = data.draw(st.sets(st.sampled_from(older))) if older else set()
    needed = disk.holders()
    for path in gone:
        del disk.files._files[path]
    if gone & needed:
        event("refused")
        with pytest.raises(WalDamaged):
            disk.reopen()
        return
    event("not needed" if gone else "nothing was missing")
    with suppress(WalDamaged) if gone else nullcontext():
        assert disk.reopen() == disk.state


def test_a_missing_segment_is_refused_if_it_held_an_entry() -> None:
    explore(missing_segments, 300)


@given(disk=disks, data=st.data())
def damage_under_an_open_log(disk: Disk, data: st.DataObject) -> None:
    wal = Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=0, files=disk.files)
    path = data.draw(st.sampled_from(disk.paths()))
    damage(data.draw, disk, path, 0, len(disk.files._files[path].content))
    for entry in disk.state.entries:
        index = entry.index
        try:
            assert wal.entries(index, index + 1, 0) == [entry]
        except WalDamaged as error:
            event("refused")
            assert error.file == path and f"entry {index}" in str(error)


def test_damage_under_an_open_log_never_alters_an_answer() -> None:
    explore(damage_under_an_open_log, 150)
