"""The log on disk: what was synced comes back, a torn tail is cut, damage is refused by file and offset."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal, WalDamaged, WalError

SEGMENT = 4096


def entry(index: int, term: int = 1, size: int = 20) -> Entry:
    return Entry(term, index, EntryKind.COMMAND, random.Random(index * 1000 + term).randbytes(size))


def content(wal: Wal) -> list[Entry]:
    return wal.entries(1, wal.last_index() + 1, 1 << 30)


def reopened(directory: Path) -> tuple[list[Entry], HardState]:
    """What a fresh process would find."""
    wal = Wal.open(directory, segment_bytes=SEGMENT, cache_bytes=0)
    try:
        return content(wal), wal.hard_state
    finally:
        wal.close()


def written(directory: Path, batches: Sequence[Sequence[Entry]], segment_bytes: int = SEGMENT) -> list[int]:
    """Writes each batch with a sync of its own; returns the end of the last segment after each."""
    wal = Wal.open(directory, segment_bytes=segment_bytes)
    ends = []
    for batch in batches:
        wal.write(HardState(1, 1), batch)
        ends.append(wal._current.end)
    wal.close()
    return ends


def only_segment(directory: Path) -> Path:
    (path,) = directory.glob("*.segment")
    return path


def test_an_empty_log(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path / "log")
    assert (wal.first_index(), wal.last_index(), wal.hard_state) == (1, 0, HardState())
    assert wal.term(0) == 0
    with pytest.raises(IndexError):
        wal.term(1)
    with pytest.raises(IndexError):
        wal.entries(1, 2, 100)


def test_what_was_written_comes_back_over_many_segments(tmp_path: Path) -> None:
    entries = [entry(index, size=100 + index) for index in range(1, 200)]
    written(tmp_path, [entries[at : at + 7] for at in range(0, len(entries), 7)])
    assert len(list(tmp_path.glob("*.segment"))) > 5
    assert reopened(tmp_path) == (entries, HardState(1, 1))


def test_segments_are_preallocated(tmp_path: Path) -> None:
    written(tmp_path, [[entry(1)]])
    assert only_segment(tmp_path).stat().st_size == SEGMENT
    assert only_segment(tmp_path).stat().st_blocks * 512 >= SEGMENT


def test_an_entry_larger_than_a_segment(tmp_path: Path) -> None:
    large = entry(1, size=3 * SEGMENT)
    written(tmp_path, [[large], [entry(2)]])
    assert reopened(tmp_path)[0] == [large, entry(2)]


def test_the_vote_is_carried_into_each_segment(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path, segment_bytes=SEGMENT)
    wal.write(HardState(7, 3), [])
    for index in range(1, 100):
        wal.write(None, [entry(index, size=200)])
    wal.close()
    first = min(tmp_path.glob("*.segment"))
    assert len(list(tmp_path.glob("*.segment"))) > 2
    assert reopened(tmp_path)[1] == HardState(7, 3)
    first.unlink()
    with pytest.raises(WalDamaged):
        Wal.open(tmp_path)


def test_a_later_entry_replaces_the_suffix(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path)
    wal.write(None, [entry(1), entry(2), entry(3)])
    wal.write(None, [entry(2, term=2)])
    expected = [entry(1), entry(2, term=2)]
    assert (content(wal), wal.last_index(), wal.term(2)) == (expected, 2, 2)
    wal.close()
    assert reopened(tmp_path)[0] == expected


def test_a_gap_is_refused(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path)
    with pytest.raises(WalError, match="cannot follow"):
        wal.write(None, [entry(2)])


def test_several_writes_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = Wal.open(tmp_path)
    syncs: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), fdatasync(fd)))
    wal.write_many([(HardState(1, 0), [entry(1)]), (None, [entry(2)]), (HardState(2, 1), [])])
    assert len(syncs) == 1
    wal.close()
    assert reopened(tmp_path) == ([entry(1), entry(2)], HardState(2, 1))


def test_reads_are_bounded_in_bytes_but_answer_at_least_one(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path, cache_bytes=0)
    wal.write(None, [entry(index, size=100) for index in range(1, 11)])
    assert [each.index for each in wal.entries(3, 11, 250)] == [3, 4]
    assert [each.index for each in wal.entries(3, 11, 1)] == [3]


@pytest.mark.parametrize("failing", ["fdatasync", "pwrite"])
def test_a_failed_write_shows_nothing_to_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    wal = Wal.open(tmp_path)
    wal.write(HardState(1, 1), [entry(1)])

    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="Input/output"):
        wal.write(HardState(2, 2), [entry(2)])
    assert (wal.last_index(), wal.hard_state) == (1, HardState(1, 1))


def test_a_tail_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    before, end = written(tmp_path, [[entry(1), entry(2)], [entry(3), entry(4)]])
    path = only_segment(tmp_path)
    whole = path.read_bytes()
    for cut in range(before, end):
        path.write_bytes(whole[:cut] + bytes(SEGMENT - cut))
        entries, _state = reopened(tmp_path)
        assert entries[:2] == [entry(1), entry(2)]
        assert entries in ([entry(1), entry(2)], [entry(1), entry(2), entry(3)]), f"cut at {cut}"
        # What follows must not be confused by what was cut.
        again = Wal.open(tmp_path, segment_bytes=SEGMENT)
        again.write(None, [entry(len(entries) + 1, term=9)])
        again.close()
        assert reopened(tmp_path)[0] == [*entries, entry(len(entries) + 1, term=9)]


def test_a_flipped_bit_before_the_durable_end_is_refused_everywhere(tmp_path: Path) -> None:
    first, second, _third = written(tmp_path, [[entry(1)], [entry(2)], [entry(3)]])
    path = only_segment(tmp_path)
    whole = path.read_bytes()
    for offset in range(second):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(WalError) as refused:
            Wal.open(tmp_path)
        if isinstance(refused.value, WalDamaged):
            assert refused.value.file == path
            assert refused.value.offset <= offset
            assert str(path) in str(refused.value)
    assert first < second


def test_damage_in_an_older_segment_is_refused(tmp_path: Path) -> None:
    written(tmp_path, [[entry(index, size=300)] for index in range(1, 60)])
    first = min(tmp_path.glob("*.segment"))
    data = first.read_bytes()
    end = len(data.rstrip(b"\0"))
    first.write_bytes(data[: end - 3] + b"\xff" + data[end - 2 :])
    with pytest.raises(WalDamaged) as refused:
        Wal.open(tmp_path)
    assert refused.value.file == first


def test_a_missing_segment_is_refused(tmp_path: Path) -> None:
    written(tmp_path, [[entry(index, size=300)] for index in range(1, 60)])
    sorted(tmp_path.glob("*.segment"))[1].unlink()
    with pytest.raises(WalDamaged, match="should be"):
        Wal.open(tmp_path)


def test_what_an_earlier_use_of_the_blocks_left_is_no_record(tmp_path: Path) -> None:
    (end,) = written(tmp_path / "old", [[entry(index) for index in range(1, 9)]])
    written(tmp_path / "new", [[entry(1, term=5)]])
    old, new = only_segment(tmp_path / "old").read_bytes(), only_segment(tmp_path / "new")
    begin = len(new.read_bytes().rstrip(b"\0"))
    new.write_bytes(new.read_bytes()[:begin] + old[begin:end] + bytes(SEGMENT - end))
    assert reopened(tmp_path / "new")[0] == [entry(1, term=5)]


def test_damage_found_by_a_read_names_the_place(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path, segment_bytes=SEGMENT, cache_bytes=0)
    wal.write(None, [entry(1)])
    path = only_segment(tmp_path)
    data = path.read_bytes()
    at = data.index(entry(1).data)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\0\0")
    with pytest.raises(WalDamaged, match="entry 1"):
        wal.entries(1, 2, 1000)


def test_what_was_said_to_be_durable_survives_kill_9(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.node.wal import Wal
wal = Wal.open(Path(sys.argv[1]), segment_bytes=4096)
index = wal.last_index()
while True:
    index += 1
    wal.write(None, [Entry(1, index, EntryKind.COMMAND, str(index).encode() * 20)])
    sys.stdout.write(f"{index}\\n")
    sys.stdout.flush()
"""
    acknowledged = 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(40):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = [line for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = int(rest[-1]) if rest else acknowledged
        child.wait()
        child.stdout.close()
        entries, _state = reopened(tmp_path)
        assert len(entries) >= acknowledged
        assert all(each.data == str(each.index).encode() * 20 for each in entries)
