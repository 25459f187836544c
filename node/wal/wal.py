"""The log of one node: appended to by a writer thread, read by the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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

    Entries leave it at the front in three steps: `write_base` (writer), `forget` (reader), `clean` (writer).
    """

    def __init__(
        self,
        files: Files,
        directory: Path,
        segment_bytes: int,
        index: EntryIndex,
        segments: list[Segment],
        state: HardState,
        clock: Callable[[], float],
    ) -> None:
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._index = index
        self._segments = {segment.sequence: segment for segment in segments}
        self._current = segments[-1]
        self._hard_state = state
        self._base = index.base  # the durable one; readers see it from `forget` on
        self._unread = 0  # no reader is in a segment below this sequence any more
        self._clock = clock
        self._failed = False
        for segment in segments:
            segment.written = clock()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        files: Files = SYSTEM,
        clock: Callable[[], float] = time.monotonic,
    ) -> Wal:
        """Recovers the log in `directory`, or begins one. WalDamaged, WalError, OSError.

        `segment_bytes`: length of a new segment; a larger batch gets a larger one. `cache_bytes`: how much of the
        newest entries is kept in memory. `clock`: seconds, for `cut_point`.
        """
        files.make_directory(directory)
        files.sync_directory(directory.parent)
        index = EntryIndex(cache_bytes)
        found = Recovery(files, directory, index)
        found.run()
        if not found.segments:
            size = max(segment_bytes, fmt.BEGIN_BYTES + fmt.MARK_BYTES)
            found.segments.append(Segment.create(files, directory, 1, size, HardState(), (0, 0), 1, 0))
        wal = cls(files, directory, segment_bytes, index, found.segments, found.hard_state, clock)
        try:
            if wal._current.form != fmt.FORMAT:
                wal._begin_segment(fmt.MARK_BYTES)
            wal._mark()
            wal.forget(wal._base[0])
        except BaseException:
            wal._release()
            raise
        return wal

    # ---- reading -------------------------------------------------------------------------------------

    @property
    def hard_state(self) -> HardState:
        """The newest durable vote and term."""
        return self._hard_state

    @property
    def base(self) -> tuple[int, int]:
        """Index and term of what the first entry follows; (0, 0) in a log that was never cut."""
        return self._index.base

    def first_index(self) -> int:
        """See LogReader."""
        return self._index.base[0] + 1

    def last_index(self) -> int:
        """See LogReader."""
        return self._index.last_index()

    def term(self, index: int) -> int:
        """See LogReader. Answers for the base as well."""
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

    def cut_point(self, *, max_bytes: int | None = None, max_seconds: float | None = None) -> int:
        """The least index to cut up to for the entries behind it to fit; the base's index when they fit already.

        `max_bytes`: so much of the files, with what else is between the entries. `max_seconds`: by when a segment
        got its last entry (for those of before, when the log was opened): entries go with their segment.
        """
        segments = list(self._segments.values())  # rising sequences
        cut = self._index.base[0]
        if max_seconds is not None:
            oldest = self._clock() - max_seconds
            too_old = [segment.sequence for segment in segments if segment.written < oldest]
            cut = max(cut, self._index.last_before(too_old[-1] + 1, 0) if too_old else 0)
        if max_bytes is not None:
            left = max_bytes
            for segment in reversed(segments):
                begin, end = fmt.BEGIN_BYTES, segment.end
                if end - begin > left:
                    return max(cut, self._index.last_before(segment.sequence, end - left))
                left -= end - begin
        return cut

    def forget(self, index: int) -> None:
        """Readers lose the entries up to `index`, which a base vouches for: WalError if none does. Memory only.

        The reading thread's, which thereby says that it is in none of their segments any more.
        """
        if index > self._base[0]:
            raise WalError(f"entry {index} cannot be forgotten: the base is entry {self._base[0]}")
        current = self._current.sequence  # before the next line: an entry that comes now is not below it
        self._index.forget(index)
        first = self._index.first_sequence()
        self._unread = current if first is None else first

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
        if placed:
            segment.written = self._clock()
        self._index.publish(placed)
        self._hard_state = newest

    def write_base(self, index: int) -> None:
        """Durable when it returns: a durable state covers the entries up to `index`, and a start can do without.

        Readers see it from `forget` on. Nothing to do when there is such a base already. WalError when the log
        does not reach that far; otherwise as `write`.
        """
        if index > self.last_index():
            raise WalError(f"entry {index} cannot be the base of a log that ends at {self.last_index()}")
        if index > self._base[0]:
            self._write_base(index, self._index.term(index), None)

    def _write_base(self, index: int, term: int, state: HardState | None) -> None:
        self._make_room(fmt.MARK_BYTES + fmt.STATE_BYTES + fmt.BASE_BYTES)
        start, offset = self._current.seed, self._current.end
        data = fmt.mark(start, offset)
        if state is not None:
            data += fmt.state(start, offset + len(data), state)
        data += fmt.base(start, offset + len(data), index, term)
        self._append(data)
        self._base = (index, term)
        self._hard_state = state or self._hard_state

    def reset(self, index: int, term: int, hard_state: HardState | None = None) -> None:
        """Durable when it returns: a snapshot's state covers the entries up to `index`; with a vote, if given.

        If the log holds that entry it is as `write_base`, and `forget` is to follow. Otherwise the log holds
        nothing from now on, for readers too. WalError when the base is behind that already, or at another term;
        otherwise as `write`.
        """
        if index < self._base[0] or (index == self._base[0] and term != self._base[1]):
            raise WalError(f"the base is {self._base}; it cannot become {(index, term)}")
        if index <= self.last_index() and self._index.term(index) == term:
            self._write_base(index, term, hard_state)
            return
        # The older segments stay until `clean`: what they hold is in front of a segment that begins with its base.
        self._begin_segment(fmt.MARK_BYTES, hard_state, (index, term))
        self._base = (index, term)
        self._hard_state = hard_state or self._hard_state
        self._index.restart(index, term)

    def clean(self) -> int:
        """Removes segments that hold only entries taken by `forget`; returns the bytes. OSError as `write`.

        A crash leaves some of them, whichever: they are gone after another `forget` and `clean`.
        """
        gone = [sequence for sequence in self._segments if sequence < self._unread]
        if not gone:
            return 0
        self._check_usable()
        try:
            size = 0
            for sequence in gone:
                self._files.remove(self._segments[sequence].path)
                segment = self._segments.pop(sequence)
                size += segment.size
                segment.close()
            self._files.sync_directory(self._directory)
        except BaseException:
            self._failed = True
            raise
        return size

    def _checked_size(self, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> int:
        """Bytes that the records take. WalError when an entry would not follow the log's end or replace in it."""
        size = fmt.MARK_BYTES
        last = self.last_index()
        for state, entries in writes:
            size += fmt.STATE_BYTES if state is not None else 0
            for entry in entries:
                if not self._base[0] < entry.index <= last + 1:
                    raise WalError(f"entry {entry.index} cannot follow entry {last} on base {self._base[0]}")
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
        if current.end + needed > current.size:
            self._begin_segment(needed)

    def _begin_segment(
        self, needed: int, state: HardState | None = None, base: tuple[int, int] | None = None
    ) -> None:
        """With another vote and behind another base, if given."""
        self._check_usable()
        current = self._current
        first_index = self.last_index() + 1 if base is None else base[0] + 1
        try:
            segment = Segment.create(
                self._files,
                self._directory,
                current.sequence + 1,
                max(self._segment_bytes, fmt.BEGIN_BYTES + needed),
                state or self._hard_state,
                base or self._base,
                first_index,
                current.end,
            )
        except BaseException:
            self._failed = True
            raise
        segment.written = self._clock()
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
