"""The log of one node: appended to by a writer thread, read by the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raftstorage.node.raft.types import Entry, HardState
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.files import SYSTEM, Files
from raftstorage.node.wal.format import WalDamaged, WalError
from raftstorage.node.wal.index import EntryIndex, Place
from raftstorage.node.wal.recovery import Recovery
from raftstorage.node.wal.segment import Segment

SEGMENT_BYTES = 64 << 20
CACHE_BYTES = 64 << 20


class Wal:
    """A durable log, and a `LogReader`. One thread writes, another may read; readers see only what is durable.

    Reading never waits for a write or a sync. Made by `open`.
    """

    def __init__(
        self,
        files: Files,
        directory: Path,
        segment_bytes: int,
        index: EntryIndex,
        segments: list[Segment],
        state: HardState,
    ) -> None:
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._index = index
        self._segments = {segment.sequence: segment for segment in segments}
        self._current = segments[-1]
        self._hard_state = state
        self._failed = False

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        files: Files = SYSTEM,
    ) -> Wal:
        """Recovers the log in `directory`, or begins one. WalDamaged, WalError, OSError.

        `segment_bytes`: length of a new segment; a larger batch gets a larger one. `cache_bytes`: how much of the
        newest entries is kept in memory.
        """
        files.make_directory(directory)
        files.sync_directory(directory.parent)
        index = EntryIndex(cache_bytes)
        found = Recovery(files, directory, index)
        found.run()
        if not found.segments:
            found.segments.append(Segment.create(files, directory, 1, segment_bytes, HardState(), 1, 0))
        wal = cls(files, directory, segment_bytes, index, found.segments, found.hard_state)
        try:
            wal._mark()
        except BaseException:
            wal._release()
            raise
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
        return self._index.last_index()

    def term(self, index: int) -> int:
        """See LogReader."""
        return self._index.term(index) if index else 0

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """See LogReader. WalDamaged when a record is not what was written; OSError."""
        return [
            found if isinstance(found, Entry) else self._read(index, found)
            for index, found in self._index.locate(low, high, max_bytes)
        ]

    def _read(self, index: int, place: Place) -> Entry:
        segment = self._segments[place.sequence]
        record = segment.read(place.offset, place.length)
        entry = fmt.parse_entry(record[1]) if record is not None and record[0] == fmt.ENTRY else None
        if entry is None or entry.index != index:
            why = f"the record of entry {index} does not match its checksum"
            raise WalDamaged(segment.path, place.offset, why)
        return entry

    def bytes_on_disk(self) -> int:
        """Size of all segments, preallocated space included."""
        return sum(segment.size for segment in list(self._segments.values()))

    # ---- writing -------------------------------------------------------------------------------------

    def write(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        """Durable when it returns; `entries` replace whatever the log holds from the first one's index on.

        WalError, and nothing is changed: an entry would leave a gap. OSError: it is not known what the disk
        holds; nothing more can be written (WalError), and the process must end.
        """
        self.write_many([(hard_state, entries)])

    def write_many(self, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> None:
        """As `write`, for several in order with one sync: group commit."""
        if not any(state is not None or entries for state, entries in writes):
            return
        self._make_room(self._checked_size(writes))
        segment = self._current
        start, offset = segment.seed, segment.end
        parts: list[bytes] = []

        def put(record: bytes) -> None:
            nonlocal offset
            parts.append(record)
            offset += len(record)

        put(fmt.mark(start, offset))
        placed: list[tuple[Entry, Place]] = []
        newest = self._hard_state
        for state, entries in writes:
            if state is not None:
                put(fmt.state(start, offset, state))
                newest = state
            for entry in entries:
                at = offset
                put(fmt.entry(start, offset, entry))
                placed.append((entry, Place(segment.sequence, at, offset - at)))
        self._append(b"".join(parts))
        self._index.publish(placed)
        self._hard_state = newest

    def _checked_size(self, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> int:
        """Bytes that the records take. WalError when an entry would not follow the log's end or replace in it."""
        size = fmt.MARK_BYTES
        last = self.last_index()
        for state, entries in writes:
            size += fmt.STATE_BYTES if state is not None else 0
            for entry in entries:
                if not 1 <= entry.index <= last + 1:
                    raise WalError(f"entry {entry.index} cannot follow entry {last}")
                last = entry.index
                size += fmt.HEAD_BYTES + fmt.ENTRY_HEAD_BYTES + len(entry.data)
        return size

    def _append(self, data: bytes) -> None:
        self._check_usable()
        try:
            self._current.append(data)
        except BaseException:
            self._failed = True
            raise

    def _check_usable(self) -> None:
        # After a failed sync the kernel takes what it could not write for written: trying again proves nothing.
        if self._failed:
            raise WalError("an earlier write failed; the log takes no more")

    def _make_room(self, needed: int) -> None:
        """Begins the next segment when the current one has not `needed` bytes left."""
        current = self._current
        if current.end + needed <= current.size:
            return
        self._check_usable()
        size = max(self._segment_bytes, fmt.HEADER_BYTES + fmt.STATE_BYTES + needed)
        try:
            segment = Segment.create(
                self._files,
                self._directory,
                current.sequence + 1,
                size,
                self._hard_state,
                self.last_index() + 1,
                current.end,
            )
        except BaseException:
            self._failed = True
            raise
        self._segments[segment.sequence] = self._current = segment

    def _mark(self) -> None:
        """Lets the next recovery know that all there is was durable."""
        self._make_room(fmt.MARK_BYTES)
        self._append(fmt.mark(self._current.seed, self._current.end))

    def close(self) -> None:
        """Releases the files; everything written is durable already. OSError: only the last mark is missing."""
        try:
            if self._segments and not self._failed:
                self._mark()
        finally:
            self._release()

    def _release(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
