"""Cutting the log at its front: what is durable, what readers see, what goes from disk, what a start accepts."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from raftstorage.node.raft.types import HardState
from raftstorage.node.wal import Wal, WalDamaged, WalError
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.index import EntryIndex, Place

from tests.unit.wal.log_directory import SEGMENT, cut, entries, entry, filled, opened, reopened, sequences
from tests.unit.wal.log_model import State, observed


def test_a_cut_takes_the_front_from_readers_and_from_the_disk(tmp_path: Path) -> None:
    wal = filled(tmp_path, 10)
    assert (wal.base, sequences(tmp_path)) == ((0, 0), [1, 2, 3, 4, 5])
    before = wal.bytes_on_disk()
    assert cut(wal, 5) == 2 * SEGMENT
    assert wal.bytes_on_disk() == before - 2 * SEGMENT
    assert sequences(tmp_path) == [3, 4, 5]
    assert observed(wal) == State((5, 1), entries(6, 10), HardState(1, 2))
    assert (wal.first_index(), wal.term(5), wal.term(0)) == (6, 1, 0)
    for below in (1, 4):
        with pytest.raises(IndexError):
            wal.term(below)
    with pytest.raises(IndexError):
        wal.entries(5, 7, 1000)
    wal.close()
    assert reopened(tmp_path) == State((5, 1), entries(6, 10), HardState(1, 2))


def test_a_log_goes_on_after_all_of_it_was_cut(tmp_path: Path) -> None:
    wal = filled(tmp_path, 4)
    cut(wal, 4)
    assert observed(wal) == State((4, 1), (), HardState(1, 2))
    wal.write(None, [entry(5, 2)])
    wal.close()
    assert reopened(tmp_path) == State((4, 1), (entry(5, 2),), HardState(1, 2))


def test_a_base_is_one_small_synced_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = filled(tmp_path, 9)
    events: list[int | str] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def counted(fd: int, data: bytes, offset: int) -> int:
        events.append(len(data))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    monkeypatch.setattr(os, "fdatasync", lambda fd: (events.append("sync"), fdatasync(fd)))
    wal.write_base(8)
    assert events == [fmt.MARK_BYTES + fmt.BASE_BYTES, "sync"]
    wal.write_base(8)
    wal.write_base(3)
    assert len(events) == 2, "it is there already"


def test_a_base_is_seen_and_does_something_only_when_readers_have_let_go(tmp_path: Path) -> None:
    wal = filled(tmp_path, 10)
    with pytest.raises(WalError, match="cannot be forgotten"):
        wal.forget(6)
    wal.write_base(6)
    assert (wal.base, wal.clean()) == ((0, 0), 0)
    assert observed(wal).entries == entries(1, 10), "a reader was deprived of what it may be reading"
    wal.forget(3)
    assert (wal.base, wal.clean()) == ((3, 1), SEGMENT)
    assert observed(wal).entries == entries(4, 10)
    wal._release()
    assert reopened(tmp_path).base == (6, 1)


def test_nothing_is_written_up_to_the_base(tmp_path: Path) -> None:
    wal = filled(tmp_path, 6)
    wal.write_base(4)
    with pytest.raises(WalError, match="entry 4 cannot follow entry 6 on base 4"):
        wal.write(None, [entry(4, 2)])
    wal.write(None, [entry(5, 2)])
    with pytest.raises(WalError, match="cannot be the base of a log that ends at 5"):
        wal.write_base(6)
    assert observed(wal).entries == (*entries(1, 4), entry(5, 2))


# ---- reset --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "term"), [(20, 3), (6, 3), (4, 3)], ids=["ahead", "the last", "in front"])
def test_a_reset_to_an_entry_that_is_not_there_leaves_nothing(tmp_path: Path, index: int, term: int) -> None:
    wal = filled(tmp_path, 6)
    wal.reset(index, term)
    empty = State((index, term), (), HardState(1, 2))
    assert observed(wal) == empty
    assert wal.clean() == 0, "nobody has said that no reader is in the old segments"
    with pytest.raises(WalError):
        wal.write(None, [entry(index, term)])
    wal.write(HardState(4, 1), [entry(index + 1, 4)])
    wal._release()
    full = State((index, term), (entry(index + 1, 4),), HardState(4, 1))
    assert len(sequences(tmp_path)) == 4
    assert reopened(tmp_path) == full
    wal = opened(tmp_path)
    assert wal.clean() == 3 * SEGMENT
    wal.close()
    assert reopened(tmp_path) == full


def test_a_reset_to_an_entry_that_is_there_keeps_what_is_behind(tmp_path: Path) -> None:
    wal = filled(tmp_path, 6)
    wal.reset(4, 1, HardState(5, 3))
    assert observed(wal) == State((0, 0), entries(1, 6), HardState(5, 3)), "as a base: seen when forgotten"
    wal.forget(4)
    assert observed(wal) == State((4, 1), entries(5, 6), HardState(5, 3))
    wal._release()
    assert reopened(tmp_path) == State((4, 1), entries(5, 6), HardState(5, 3))


def test_a_vote_of_a_reset_is_durable_with_it(tmp_path: Path) -> None:
    wal = filled(tmp_path, 3)
    wal.reset(9, 4, HardState(6, 1))
    assert wal.hard_state == HardState(6, 1)
    wal._release()
    assert reopened(tmp_path) == State((9, 4), (), HardState(6, 1))


def test_a_reset_never_goes_back(tmp_path: Path) -> None:
    wal = filled(tmp_path, 6)
    wal.write_base(4)
    for index, term in [(3, 1), (3, 2), (4, 2), (0, 0)]:
        with pytest.raises(WalError, match="the base is"):
            wal.reset(index, term)
    assert observed(wal).entries == entries(1, 6)


def test_the_begin_of_a_segment_is_no_torn_tail(tmp_path: Path) -> None:
    """After a reset there may be no mark behind it; it is durable all the same."""
    wal = filled(tmp_path, 3)
    wal.reset(9, 4, HardState(6, 1))
    path = wal._current.path
    wal._release()
    whole = path.read_bytes()
    for offset in range(fmt.BEGIN_BYTES):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])
        with pytest.raises(WalError, match=str(path)):
            opened(tmp_path)
    path.write_bytes(whole)
    assert reopened(tmp_path) == State((9, 4), (), HardState(6, 1))


# ---- what a start accepts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [set(c) for n in range(4) for c in itertools.combinations([1, 2, 3], n)])
def test_any_segments_below_the_base_may_be_missing(tmp_path: Path, gone: set[int]) -> None:
    """A power cut may leave some removals and lose others, in any order."""
    wal = filled(tmp_path, 10)
    wal.write_base(6)
    wal.close()
    for path in list(tmp_path.glob("*.segment")):
        if int(path.stem) in gone:
            path.unlink()
    assert reopened(tmp_path) == State((6, 1), entries(7, 10), HardState(1, 2))
    wal = opened(tmp_path)
    assert wal.clean() == (3 - len(gone)) * SEGMENT
    assert sequences(tmp_path) == [4, 5]


@pytest.mark.parametrize(
    ("base", "gone", "missing"), [(5, [3], "6 to 6"), (0, [1], "1 to 2"), (6, [1, 4], "7 to 8")]
)
def test_an_entry_above_the_base_must_not_be_missing(
    tmp_path: Path, base: int, gone: list[int], missing: str
) -> None:
    wal = filled(tmp_path, 10)
    wal.write_base(base)
    wal.close()
    for sequence in gone:
        (tmp_path / f"{sequence:016d}.segment").unlink()
    with pytest.raises(WalDamaged, match=f"should be: entries {missing} are missing") as refused:
        opened(tmp_path)
    assert refused.value.file == tmp_path / f"{gone[-1] + 1:016d}.segment"


def test_a_segment_may_begin_with_entries_that_replace_those_of_segments_that_are_gone(tmp_path: Path) -> None:
    wal = filled(tmp_path, 6)
    wal.write(None, [entry(7, size=10)])
    new = tuple(entry(index, 2, 100) for index in range(4, 7))
    wal.write(None, new)
    assert fmt.Header.unpack(wal._current.path.read_bytes(), tmp_path).first_index == 8
    cut(wal, 3)
    assert sequences(tmp_path) == [4]
    wal.close()
    assert reopened(tmp_path) == State((3, 1), new, HardState(1, 2))


def test_a_segment_that_begins_at_another_entry_than_the_next_is_refused(tmp_path: Path) -> None:
    wal = filled(tmp_path, 4)
    path = wal._current.path
    wal.close()
    header = fmt.Header.unpack(path.read_bytes(), path)
    with path.open("r+b") as file:
        file.write(replace(header, first_index=9).pack())
    with pytest.raises(WalDamaged, match="begins at entry 9, behind entry 2"):
        opened(tmp_path)


def base_of(index: int, term: int) -> Callable[[int, int], bytes]:
    return lambda seed, offset: fmt.base(seed, offset, index, term)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (base_of(9, 1), "in a log up to 6"),
        (base_of(2, 1), "behind base"),
        (base_of(3, 2), "behind base"),
        (base_of(5, 2), "behind base"),
        (lambda seed, offset: fmt.entry(seed, offset, entry(3, 2, 9)), "with the base at 3"),
        (lambda seed, offset: fmt._record(seed, offset, fmt.BASE, b"short"), "requires a buffer"),
    ],
    ids=["behind the end", "back", "other term", "other term than its entry", "entry up to it", "short"],
)
def test_a_base_that_makes_no_sense_is_refused(
    tmp_path: Path, record: Callable[[int, int], bytes], why: str
) -> None:
    wal = filled(tmp_path, 6)
    wal.write_base(3)
    segment = wal._current
    wal._release()
    with segment.path.open("r+b") as file:
        file.seek(segment.end)
        file.write(record(segment.seed, segment.end))
    with pytest.raises(WalDamaged, match=why) as refused:
        opened(tmp_path)
    assert (refused.value.file, refused.value.offset) == (segment.path, segment.end)


# ---- where to cut -------------------------------------------------------------------------------------------


def test_the_cut_that_leaves_so_many_bytes(tmp_path: Path) -> None:
    wal = filled(tmp_path, 10)
    batch = fmt.MARK_BYTES + fmt.HEAD_BYTES + fmt.ENTRY_HEAD_BYTES + 300
    assert wal.cut_point(max_bytes=1 << 20) == 0
    assert wal.cut_point(max_bytes=0) == 10
    assert wal.cut_point(max_bytes=batch) == 9
    assert wal.cut_point(max_bytes=3 * batch + 20) == 7
    cut(wal, 7)
    assert wal.cut_point(max_bytes=1 << 20) == 7
    assert wal.cut_point(max_bytes=10) == 10
    assert wal.cut_point() == 7


def test_the_cut_of_segments_that_are_too_old(tmp_path: Path) -> None:
    now = 100.0
    wal = opened(tmp_path, clock=lambda: now)
    for index in range(1, 7):
        wal.write(None, [entry(index)])
        now += 10
    # Segments got their last entries at 110, 130 and 150.
    assert now == 160
    assert [wal.cut_point(max_seconds=seconds) for seconds in (60, 50, 49, 30, 29, 9)] == [0, 0, 2, 2, 4, 6]
    assert wal.cut_point(max_seconds=49, max_bytes=0) == 6
    wal.write_base(3)
    assert wal.cut_point(max_seconds=9) == 6, "a base is no entry"
    wal.write(None, [entry(6, 2)])
    assert wal.cut_point(max_seconds=9) == 5, "the last one is new again"
    wal.close()
    wal = opened(tmp_path, clock=lambda: now)
    now += 20
    assert (wal.cut_point(max_seconds=30), wal.cut_point(max_seconds=10)) == (3, 6), "as if written at the start"


def test_what_was_forgotten_leaves_memory_with_what_comes() -> None:
    index = EntryIndex(1 << 20)
    place = Place(1, 0, 100)
    index.publish([(entry(at, 1, 100), place) for at in range(1, 101)])
    whole = index.cached_bytes
    index.forget(90)
    for at in range(101, 120):
        index.publish([(entry(at, 1, 100), place)])
    assert index.cached_bytes == pytest.approx(whole * 29 / 100)  # 91 to 119
    assert [found for _, found in index.locate(91, 120, 1 << 20)] == [entry(at, 1, 100) for at in range(91, 120)]
    index.publish([(entry(95, 2, 100), place)])  # a leader of a new term replaces the rest
    assert [found.term for _, found in index.locate(94, 96, 1 << 20)] == [1, 2]


# ---- threads ------------------------------------------------------------------------------------------------


def test_a_reader_beside_cuts_and_resets(tmp_path: Path) -> None:
    """The writer writes, cuts and resets; the reader, which forgets, finds each entry whole or an IndexError."""
    wal = Wal.open(tmp_path, segment_bytes=8 << 10, cache_bytes=2 << 10)
    failures: list[BaseException] = []
    durable, forgotten = [0], threading.Event()

    def write() -> None:
        try:
            term = 1
            for round_ in range(60):
                last = wal.last_index()
                wal.write(None, [entry(last + at, term, 100) for at in range(1, 40)])
                if round_ % 7 == 3:
                    term += 1
                    wal.reset(wal.last_index() + 5, term)
                    durable[0] = wal._base[0]
                elif round_ % 3 == 1:
                    wal.write(None, [entry(last + 20, term, 100)])
                    wal.write_base(last + 10)
                    durable[0] = last + 10
                wal.clean()
        except BaseException as error:
            failures.append(error)
        finally:
            forgotten.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer = threading.Thread(target=write)
    read = missed = 0
    try:
        writer.start()
        while not forgotten.is_set():
            wal.forget(durable[0])
            first, last = wal.first_index(), wal.last_index()
            for index in (first - 1, first, (first + last) // 2, last):
                try:
                    found = wal.entries(index, index + 1, 0)
                    assert found == [entry(index, found[0].term, 100)]
                    read += 1
                except IndexError:
                    missed += 1
    finally:
        sys.setswitchinterval(interval)
        writer.join()
    assert failures == []
    assert read and missed
    final = observed(wal)
    wal.close()
    assert observed(Wal.open(tmp_path)).cut(final.base[0]) == final
