"""The log of one node: appended to by a writer thread, read by the loop."""

from __future__ import annotations

import os
import secrets
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

from raftstorage.node.raft.types import Entry, HardState
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.format import WalDamaged, WalError

SEGMENT_BYTES = 64 << 20
CACHE_BYTES = 64 << 20
_OFFSET_BITS = 40


def sync_directory(directory: Path) -> None:
    """Makes created and renamed names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


class _Segment:
    """An open segment file; `end` is the offset behind its last record."""

    def __init__(self, path: Path, sequence: int, salt: bytes, fd: int, end: int, size: int) -> None:
        self.path = path
        self.sequence = sequence
        self.salt = salt
        self.fd = fd
        self.end = end
        self.size = size

    @staticmethod
    def name(sequence: int) -> str:
        return f"{sequence:016d}.segment"

    @classmethod
    def create(cls, directory: Path, sequence: int, size: int, hard_state: HardState) -> _Segment:
        """A preallocated segment that begins with the vote; durable, name and all, when it returns."""
        path = directory / cls.name(sequence)
        temporary = path.with_suffix(".new")
        salt = secrets.token_bytes(16)
        start = fmt.header(sequence, salt) + fmt.state(salt, hard_state)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            _write_all(fd, start, 0)
            os.fsync(fd)
            temporary.rename(path)
            sync_directory(directory)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, sequence, salt, fd, len(start), size)


class Wal:
    """A durable log, and a `LogReader`. One thread writes, another may read; readers see only what is durable."""

    def __init__(self, directory: Path, segment_bytes: int, cache_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._cache_bytes = cache_bytes
        self._segments: dict[int, _Segment] = {}
        self._current: _Segment
        self._hard_state = HardState()
        # One item for each entry from index 1 on: where its record is, its payload's length, its term.
        self._places = array("Q")
        self._lengths = array("Q")
        self._terms = array("Q")
        self._recent: dict[int, Entry] = {}
        self._recent_bytes = 0
        self._lock = threading.Lock()  # held for memory operations only

    @classmethod
    def open(cls, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, cache_bytes: int = CACHE_BYTES) -> Wal:
        """Recovers the log in `directory`, or begins one. WalDamaged, WalError, OSError."""
        wal = cls(directory, segment_bytes, cache_bytes)
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("*.new"):
            leftover.unlink()
        paths = sorted(directory.glob("*.segment"))
        for position, path in enumerate(paths):
            wal._recover(path, last=position == len(paths) - 1)
        if not paths:
            sync_directory(directory.parent)
            wal._roll(0)
        wal._current = wal._segments[max(wal._segments)]
        return wal

    # ---- reading -------------------------------------------------------------------------------------

    @property
    def hard_state(self) -> HardState:
        """The newest durable vote and term."""
        return self._hard_state

    def first_index(self) -> int:
        """See LogReader."""
        return 1

    def last_index(self) -> int:
        """See LogReader."""
        return len(self._terms)

    def term(self, index: int) -> int:
        """See LogReader."""
        if index == 0:
            return 0
        with self._lock:
            if not 1 <= index <= len(self._terms):
                raise IndexError(index)
            return self._terms[index - 1]

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """See LogReader. WalDamaged when a record is not what was written."""
        found: list[Entry] = []
        size = 0
        for index in range(low, high):
            with self._lock:
                if not 1 <= index <= len(self._terms):
                    raise IndexError(index)
                entry = self._recent.get(index)
                place, length = self._places[index - 1], self._lengths[index - 1]
            size += length - fmt.ENTRY_HEAD_BYTES
            if found and size > max_bytes:
                break
            found.append(entry if entry is not None else self._read(index, place, length))
        return found

    def _read(self, index: int, place: int, length: int) -> Entry:
        segment = self._segments[place >> _OFFSET_BITS]
        offset = place & ((1 << _OFFSET_BITS) - 1)
        data = os.pread(segment.fd, fmt.HEAD_BYTES + length, offset)
        record = fmt.read_record(data, 0, segment.salt)
        entry = fmt.parse_entry(record[1]) if record is not None and record[0] == fmt.ENTRY else None
        if entry is None or entry.index != index:
            raise WalDamaged(segment.path, offset, f"the record of entry {index} does not match its checksum")
        return entry

    def bytes_on_disk(self) -> int:
        """Size of all segments, preallocated space included."""
        return sum(segment.size for segment in list(self._segments.values()))

    # ---- writing -------------------------------------------------------------------------------------

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Durable when it returns. An OSError leaves it unknown what the disk holds: the process must end."""
        self.write_many([(hard_state, entries)])

    def write_many(self, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> None:
        """As `write`, for several in order with one sync: group commit."""
        if not any(state is not None or entries for state, entries in writes):
            return
        payload = sum(
            len(each.data) + fmt.HEAD_BYTES + fmt.ENTRY_HEAD_BYTES for _, entries in writes for each in entries
        )
        # Marks and states are small; a record of either fits into 64 bytes.
        needed = payload + 64 * (len(writes) + 1)
        if self._current.end + needed > self._current.size:
            self._roll(needed)
        segment = self._current
        parts = [fmt.mark(segment.salt, segment.end)]
        offset = segment.end + len(parts[0])
        placed: list[tuple[Entry, int, int]] = []
        newest = self._hard_state
        for state, entries in writes:
            if state is not None:
                parts.append(fmt.state(segment.salt, state))
                offset += len(parts[-1])
                newest = state
            for entry in entries:
                parts.append(fmt.entry(segment.salt, entry))
                placed.append((entry, offset, len(parts[-1]) - fmt.HEAD_BYTES))
                offset += len(parts[-1])
        _write_all(segment.fd, b"".join(parts), segment.end)
        os.fdatasync(segment.fd)
        segment.end = offset
        with self._lock:
            self._hard_state = newest
            for entry, at, length in placed:
                self._publish(entry, segment.sequence << _OFFSET_BITS | at, length)
                self._remember(entry)

    def _publish(self, entry: Entry, place: int, length: int) -> None:
        position = entry.index - 1
        if position > len(self._terms):
            raise WalError(f"entry {entry.index} cannot follow entry {len(self._terms)}")
        if position < len(self._terms):
            for index in range(entry.index, len(self._terms) + 1):
                old = self._recent.pop(index, None)
                self._recent_bytes -= len(old.data) if old is not None else 0
            del self._places[position:], self._lengths[position:], self._terms[position:]
        self._places.append(place)
        self._lengths.append(length)
        self._terms.append(entry.term)

    def _remember(self, entry: Entry) -> None:
        self._recent[entry.index] = entry
        self._recent_bytes += len(entry.data)
        while self._recent_bytes > self._cache_bytes or len(self._recent) > 100_000:
            oldest = self._recent.pop(next(iter(self._recent)))
            self._recent_bytes -= len(oldest.data)

    def _roll(self, needed: int) -> None:
        sequence = max(self._segments, default=0) + 1
        size = max(self._segment_bytes, needed + 256)
        self._segments[sequence] = self._current = _Segment.create(
            self._directory, sequence, size, self._hard_state
        )

    def close(self) -> None:
        """Releases the files. Everything written is durable already."""
        for segment in self._segments.values():
            os.close(segment.fd)
        self._segments.clear()

    # ---- recovery ------------------------------------------------------------------------------------

    def _recover(self, path: Path, *, last: bool) -> None:
        """Reads one segment; cuts a torn tail in the last one. WalDamaged for all else."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        data = path.read_bytes()
        head = fmt.read_record(data, 0, b"")
        if head is None or head[0] != fmt.HEADER:
            raise WalDamaged(path, 0, "bad segment header")
        sequence, salt = fmt.parse_header(head[1], path)
        expected = max(self._segments, default=sequence - 1) + 1
        if sequence != expected or path.name != _Segment.name(sequence) or (not self._segments and sequence != 1):
            raise WalDamaged(path, 0, f"segment {sequence} stands where segment {expected} should be")
        end = fmt.HEAD_BYTES + len(head[1])
        for offset, kind, payload in fmt.records(data, end, salt):
            end = offset + fmt.HEAD_BYTES + len(payload)
            if kind == fmt.STATE:
                self._hard_state = fmt.parse_state(payload)
            elif kind == fmt.ENTRY:
                self._publish(fmt.parse_entry(payload), sequence << _OFFSET_BITS | offset, len(payload))
        rest = len(data[end:].rstrip(b"\0"))
        if rest:
            behind = fmt.mark_behind(data, end, salt)
            if behind is not None:
                raise WalDamaged(
                    path, end, f"bad record before the durable end (a later batch begins at {behind})"
                )
            if not last:
                raise WalDamaged(path, end, "bad record in a segment that has a successor")
            _write_all(fd, bytes(rest), end)
            os.fsync(fd)
        self._segments[sequence] = _Segment(path, sequence, salt, fd, end, len(data))
