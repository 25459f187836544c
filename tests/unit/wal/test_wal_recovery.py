"""The log against crashes, lying disks and damage that the plain cases in test_wal.py do not reach."""

from __future__ import annotations

import os
import random
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal, WalDamaged, WalError
from raftstorage.node.wal import format as fmt

from tests.simulation.disk import LOG, SimFiles

SEGMENT = 4096


def entry(index: int, term: int = 1, data: bytes = b"data") -> Entry:
    return Entry(term, index, EntryKind.COMMAND, data)


def content(wal: Wal) -> list[Entry]:
    return wal.entries(1, wal.last_index() + 1, 1 << 30)


@pytest.fixture
def crashed(tmp_path: Path) -> Iterator[Callable[..., Wal]]:
    """Opens logs that are never closed properly, as in a process that is killed; returns the opener."""
    opened: list[Wal] = []

    def opener(directory: Path = tmp_path, segment_bytes: int = SEGMENT) -> Wal:
        opened.append(Wal.open(directory, segment_bytes=segment_bytes, cache_bytes=0))
        return opened[-1]

    yield opener
    for wal in opened:
        wal._release()


def open_files(directory: Path) -> list[str]:
    names = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(fd.readlink()))
        except FileNotFoundError:  # the listing's own
            continue
    return [name for name in names if name.startswith(str(directory))]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_what_was_read_back_is_written_and_synced_before_it_counts(
    tmp_path: Path, crashed: Callable[..., Wal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed between write and sync leaves entries in the page cache; so does a sync that failed."""
    wal = crashed()
    wal.write(HardState(1, 1), [entry(1)])
    batch = wal._current.end
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output"):
            wal.write(HardState(2, 2), [entry(2)])
    events: list[tuple[str, int]] = []
    real_pwrite, real_fdatasync = os.pwrite, os.fdatasync

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        events.append(("write", offset))
        return real_pwrite(fd, data, offset)

    def fdatasync(fd: int) -> None:
        events.append(("sync", 0))
        real_fdatasync(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        patched.setattr(os, "fdatasync", fdatasync)
        again = crashed()
    assert content(again) == [entry(1), entry(2)]
    assert again.hard_state == HardState(2, 2)
    assert events[0] == ("write", batch)
    assert {kind for kind, _ in events[: events.index(("sync", 0))]} == {"write"}


@pytest.mark.parametrize("seed", range(30))
def test_a_batch_that_failed_does_not_come_back_after_a_start_that_failed_too(seed: int) -> None:
    """Found by the model test: the second start saw zeros in the page cache where the disk had the batch still."""
    files = SimFiles(random.Random(seed), lambda name: None)

    def open_log() -> Wal:
        return Wal.open(LOG, segment_bytes=SEGMENT, files=files)

    wal = open_log()
    files.fail_writes = 1
    with pytest.raises(OSError, match="Input/output"):
        wal.write(HardState(1, 1), [entry(1, data=bytes(range(256))), entry(2)])
    files.kill()
    files.fail_syncs = 1
    with pytest.raises(OSError, match="Input/output"):
        open_log()
    files.kill()
    wal = open_log()
    kept = content(wal)
    wal.write(HardState(2, 2), [entry(len(kept) + 1, 2, bytes(SEGMENT))])
    after = Wal.open(LOG, segment_bytes=SEGMENT, files=files.after_power_cut())
    assert content(after) == content(wal)


def fail(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_nothing_is_written_after_a_failed_sync(
    crashed: Callable[..., Wal], monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = crashed()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output"):
            wal.write(None, [entry(1)])
    with pytest.raises(WalError, match="earlier write failed"):
        wal.write(None, [entry(1)])
    assert wal.last_index() == 0


@pytest.mark.parametrize("failing", ["posix_fallocate", "fsync", "fdatasync"])
def test_a_segment_that_cannot_be_begun_ends_the_log(
    crashed: Callable[..., Wal], monkeypatch: pytest.MonkeyPatch, failing: str, tmp_path: Path
) -> None:
    wal = crashed()
    wal.write(HardState(3, 1), [entry(1, data=bytes(3000))])
    with monkeypatch.context() as patched:
        patched.setattr(os, failing, fail)
        with pytest.raises(OSError, match="Input/output"):
            wal.write(None, [entry(2, data=bytes(3000))])
    with pytest.raises(WalError, match="earlier write failed"):
        wal.write(None, [entry(2)])
    assert len(open_files(tmp_path)) == 1
    again = crashed()
    assert (again.last_index(), again.hard_state) == (1, HardState(3, 1))
    assert not list(tmp_path.glob("*.new"))


def test_names_are_durable_before_anything_is_written_under_them(
    tmp_path: Path, crashed: Callable[..., Wal], monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = crashed()
    events: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(fd: int) -> None:
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        events.append("sync directory")
        real_fsync(fd)

    def rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return real_rename(path, target)

    def fdatasync(fd: int) -> None:
        events.append("sync data")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    wal.write(None, [entry(1, data=bytes(2 * SEGMENT))])
    assert events == ["sync data", "rename", "sync directory", "sync data"]


def test_a_clean_stop_tells_damage_in_the_last_batch_from_a_torn_one(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path, segment_bytes=SEGMENT)
    wal.write(HardState(4, 2), [entry(1)])
    end = wal._current.end
    wal.close()
    (path,) = tmp_path.glob("*.segment")
    whole = path.read_bytes()
    for offset in range(end):
        overwrite(path, offset, bytes([whole[offset] ^ 0x10]))
        with pytest.raises(WalError, match=str(path)):
            Wal.open(tmp_path)
        overwrite(path, offset, whole[offset : offset + 1])
    assert open_files(tmp_path) == []
    assert Wal.open(tmp_path).hard_state == HardState(4, 2)


def test_pages_of_a_torn_batch_may_arrive_in_any_order(tmp_path: Path, crashed: Callable[..., Wal]) -> None:
    """Nobody was told of that batch: valid records behind a hole in it are no proof of damage."""
    wal = crashed(segment_bytes=1 << 16)
    wal.write(None, [entry(1)])
    begin = wal._current.end
    wal.write(None, [entry(index, data=b"x" * 500) for index in range(2, 40)])
    path = wal._current.path
    overwrite(path, begin + 600, bytes(4096))
    again = crashed()
    assert content(again) == [entry(1), entry(2, data=b"x" * 500)]
    again.write(None, [entry(3, term=2)])
    assert content(crashed()) == [entry(1), entry(2, data=b"x" * 500), entry(3, term=2)]


def test_a_segment_that_was_shortened_is_refused(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path, segment_bytes=SEGMENT)
    wal.write(None, [entry(1)])
    wal.close()
    (path,) = tmp_path.glob("*.segment")
    os.truncate(path, 120)
    with pytest.raises(WalDamaged, match="120 bytes") as refused:
        Wal.open(tmp_path)
    assert (refused.value.file, refused.value.offset) == (path, 120)
    os.truncate(path, 10)
    with pytest.raises(WalDamaged, match="within its header"):
        Wal.open(tmp_path)


def test_a_lost_end_of_an_older_segment_is_refused(tmp_path: Path) -> None:
    """Zeros look like a clean end; the next segment knows better."""
    wal = Wal.open(tmp_path, segment_bytes=SEGMENT)
    wal.write(None, [entry(1)])
    first, end = wal._current.path, wal._current.end
    wal.write(HardState(9, 1), [])  # no entry, so that no gap in the indexes would show it
    wal.write(None, [entry(2, data=bytes(SEGMENT))])
    wal.close()
    overwrite(first, end, bytes(SEGMENT - end))
    with pytest.raises(WalDamaged, match="the records end here") as refused:
        Wal.open(tmp_path)
    assert (refused.value.file, refused.value.offset) == (first, end)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    Wal.open(tmp_path, segment_bytes=SEGMENT).close()
    (path,) = tmp_path.glob("*.segment")
    overwrite(path, 8, struct.pack(">I", fmt.FORMAT + 1))
    with pytest.raises(WalError, match=f"format {fmt.FORMAT + 1}; this version knows formats 1 to 2") as no:
        Wal.open(tmp_path)
    assert not isinstance(no.value, WalDamaged)
    overwrite(path, 0, b"something else")
    with pytest.raises(WalDamaged, match="not a log segment"):
        Wal.open(tmp_path)


def test_a_segment_of_another_name_is_refused(tmp_path: Path) -> None:
    Wal.open(tmp_path, segment_bytes=SEGMENT).close()
    (path,) = tmp_path.glob("*.segment")
    path.rename(path.with_name("0000000000000002.segment"))
    with pytest.raises(WalDamaged, match="should be"):
        Wal.open(tmp_path)


def test_a_record_in_a_wrong_place_is_none(tmp_path: Path, crashed: Callable[..., Wal]) -> None:
    """A disk that writes a valid record elsewhere in the same segment (a misdirected write)."""
    wal = crashed()
    wal.write(None, [entry(1)])
    end = wal._current.end
    wal.write(None, [entry(1, term=3)])
    path = wal._current.path
    batch = path.read_bytes()[end : wal._current.end]
    overwrite(path, wal._current.end, batch)
    assert content(crashed()) == [entry(1, term=3)]
    data = path.read_bytes()
    assert data.count(batch[fmt.MARK_BYTES :]) == 1, "what is behind the end was not cut"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (7, b""),
        (fmt.STATE, b"short"),
        (fmt.ENTRY, struct.pack(">QQB", 1, 1, 99)),
        (fmt.ENTRY, struct.pack(">QQB", 1, 5, 1)),
        (fmt.ENTRY, struct.pack(">QQB", 1, 0, 1)),
    ],
    ids=["unknown type", "short state", "unknown kind of entry", "gap", "index 0"],
)
def test_a_valid_record_that_makes_no_sense_is_refused(
    crashed: Callable[..., Wal], kind: int, payload: bytes
) -> None:
    wal = crashed()
    segment = wal._current
    overwrite(segment.path, segment.end, fmt._record(segment.seed, segment.end, kind, payload))
    with pytest.raises(WalDamaged) as refused:
        crashed()
    assert (refused.value.file, refused.value.offset) == (segment.path, segment.end)


def test_readers_see_nothing_before_the_sync_and_do_not_wait_for_it(
    crashed: Callable[..., Wal], monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = crashed()
    wal.write(HardState(1, 1), [entry(1), entry(2)])
    syncing, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(fd: int) -> None:
        syncing.set()
        assert go_on.wait(30)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    writer = threading.Thread(target=wal.write, args=(HardState(2, 2), [entry(2, term=2), entry(3, term=2)]))
    writer.start()
    assert syncing.wait(30)
    seen = (content(wal), wal.term(2), wal.last_index(), wal.hard_state)
    go_on.set()
    writer.join()
    assert seen == ([entry(1), entry(2)], 1, 2, HardState(1, 1))
    assert content(wal) == [entry(1), entry(2, term=2), entry(3, term=2)]
    assert (wal.term(2), wal.hard_state) == (2, HardState(2, 2))


step = st.tuples(
    st.integers(0, 6),  # how far back the entries begin
    st.lists(st.binary(max_size=600), max_size=5),
    st.one_of(st.none(), st.integers(1, 1000)),  # a new vote
    st.sampled_from(["go on", "go on", "crash", "close"]),
)


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(step, max_size=20), cache=st.sampled_from([0, 900, 1 << 20]))
def test_the_log_does_what_a_list_does(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[bytes], int | None, str]], cache: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    wal = Wal.open(directory, segment_bytes=2048, cache_bytes=cache)
    model: list[Entry] = []
    state = HardState()
    for term, (back, datas, vote, after) in enumerate(steps, 1):
        first = max(0, len(model) - back)
        entries = [entry(first + at, term, data) for at, data in enumerate(datas, 1)]
        new_state = None if vote is None else HardState(term, vote)
        wal.write(new_state, entries)
        if entries:
            model = model[:first] + entries
        state = new_state or state
        if after != "go on":
            wal._release() if after == "crash" else wal.close()
            wal = Wal.open(directory, segment_bytes=2048, cache_bytes=cache)
        assert (wal.last_index(), wal.hard_state) == (len(model), state)
        assert content(wal) == model
        assert [wal.term(index) for index in range(len(model) + 1)] == [0, *(each.term for each in model)]
        with pytest.raises(IndexError):
            wal.entries(1, len(model) + 2, 1 << 30)
    assert wal._index._recent_bytes <= cache
    assert wal.bytes_on_disk() == sum(path.stat().st_size for path in directory.iterdir())
    wal.close()
