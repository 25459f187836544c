"""Reading a log back at start: what is durable is kept, a torn tail is cut, damage is refused."""

from __future__ import annotations

import struct
from pathlib import Path

from raftstorage.node.raft.types import HardState
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.files import Files
from raftstorage.node.wal.format import WalDamaged
from raftstorage.node.wal.index import EntryIndex, Place
from raftstorage.node.wal.segment import SUFFIX, TEMPORARY, Segment


class Recovery:
    """The log in `directory` as a crash or a clean stop left it.

    Fills `index`; `segments`, `hard_state` and `base` are what was found, `segments` empty for a new log.
    Everything that it found is durable when `run` returns. WalDamaged, WalError, OSError; then no file is left
    open.
    """

    def __init__(self, files: Files, directory: Path, index: EntryIndex) -> None:
        self._files = files
        self._directory = directory
        self._index = index  # while records are read, its base is what the entries that are there follow
        self._tail = 0  # offset of the last batch in the segment read last
        self._gap = (directory, "")  # the newest segment that does not follow another one, and where it stands
        self.segments: list[Segment] = []
        self.hard_state = HardState()
        self.base = (0, 0)

    def run(self) -> None:
        # A name may be in the page cache only, as contents may.
        self._files.sync_directory(self._directory)
        names = self._files.names(self._directory)
        paths = [self._directory / name for name in names if name.endswith(SUFFIX)]
        data = b""
        try:
            for path in paths:
                data = self._read(path, last=path == paths[-1])
            if paths:
                self._check_missing()
                self._index.forget(*self.base)
                self._secure(self.segments[-1], data)
        except BaseException:
            for segment in self.segments:
                segment.close()
            raise
        # Only now: a log of a later version is left as it is.
        for name in names:
            if name.endswith(TEMPORARY):
                self._files.remove(self._directory / name)

    def _read(self, path: Path, *, last: bool) -> bytes:
        """Takes in a segment; returns its bytes."""
        data = self._files.read_all(path)
        header = fmt.Header.unpack(data, path)
        self._check_header(path, header, data)
        segment = Segment(self._files, path, header, self._files.open(path), fmt.HEADER_BYTES)
        self.segments.append(segment)
        self._read_records(segment, data)
        if data.count(0, segment.end) != len(data) - segment.end:
            behind = fmt.mark_behind(data, segment.end, segment.seed)
            if behind is not None:
                why = f"bad record before the durable end (a later batch begins at {behind})"
                raise WalDamaged(path, segment.end, why)
            if not last:
                raise WalDamaged(path, segment.end, "bad record in a segment that has a successor")
        return data

    def _check_header(self, path: Path, header: fmt.Header, data: bytes) -> None:
        """Finds what the segment's entries follow: the segment before, or nothing that is there."""
        previous = self.segments[-1] if self.segments else None
        expected = previous.sequence + 1 if previous is not None else 1
        misplaced = f"segment {header.sequence} stands where segment {expected} should be"
        if path.name != Segment.name(header.sequence):
            raise WalDamaged(path, 0, misplaced)
        follows = header.sequence == expected
        if follows and previous is not None and previous.end != header.previous_end:
            why = f"the records end here, but at {header.previous_end} when the next segment was begun"
            raise WalDamaged(previous.path, previous.end, why)
        if len(data) != header.size:
            why = f"the file has {len(data)} bytes and not {header.size}"
            raise WalDamaged(path, min(len(data), header.size), why)
        base = _begins_with(path, header, data)
        before, last = header.first_index - 1, self._index.last_index()
        if base is not None and base[0] == before:
            # Nothing of before counts any more. It may be entries that a snapshot took the place of: no gap then.
            self._index.restart(*base)
        elif not follows:
            self._gap = path, misplaced
            self._index.restart(before, 0)
        elif before != last:
            raise WalDamaged(path, 0, f"begins at entry {header.first_index}, behind entry {last}")

    def _read_records(self, segment: Segment, data: bytes) -> None:
        self._tail = segment.end
        for offset, kind, payload in fmt.records(data, segment.end, segment.seed):
            segment.end = offset + fmt.HEAD_BYTES + len(payload)
            try:
                if kind == fmt.STATE:
                    self.hard_state = fmt.parse_state(payload)
                elif kind == fmt.ENTRY:
                    self._take_entry(payload, Place(segment.sequence, offset, segment.end - offset))
                elif kind == fmt.MARK:
                    self._tail = offset
                elif kind == fmt.BASE and segment.form > 1:
                    self._take_base(*fmt.parse_base(payload))
                else:
                    raise ValueError(f"record of an unknown type {kind}")
            except (ValueError, struct.error) as error:
                # Valid by its checksum: not the disk's fault, and not one to be cut off.
                raise WalDamaged(segment.path, offset, str(error)) from error

    def _take_entry(self, payload: bytes, place: Place) -> None:
        entry, last = fmt.parse_entry(payload), self._index.last_index()
        if not self.base[0] < entry.index <= last + 1:
            raise ValueError(f"entry {entry.index} behind entry {last}, with the base at {self.base[0]}")
        if entry.index <= self._index.base[0]:
            # It replaced entries of a segment that is gone, with all that is there behind them.
            self._index.restart(entry.index - 1, 0)
        self._index.recovered(entry, place)

    def _take_base(self, index: int, term: int) -> None:
        """A base never goes back, is never behind the last entry, and knows the term of its entry."""
        known = self.base[1] if index == self.base[0] else term
        if self._index.base[0] < index <= self._index.last_index():
            known = self._index.term(index)
        if index < self.base[0] or index > self._index.last_index() or term != known:
            last = self._index.last_index()
            raise ValueError(f"base {index} of term {term} behind base {self.base} in a log up to {last}")
        self.base = (index, term)

    def _check_missing(self) -> None:
        """The newest base must vouch for every entry that is not there."""
        before = self._index.base[0]
        if before > self.base[0]:
            path, misplaced = self._gap
            why = f"{misplaced}: entries {self.base[0] + 1} to {before} are missing"
            raise WalDamaged(path, 0, why)

    def _secure(self, segment: Segment, data: bytes) -> None:
        """Makes the last batch durable (nobody knows if it is), and zeros what stands behind it.

        All of it: what seems to be zero may be so in the page cache only, if an earlier start zeroed it and its
        sync failed. Records of a batch that nobody was told of would come back behind new ones at a power cut.
        """
        segment.rewrite_to_end(data[self._tail : segment.end], self._tail)


def _begins_with(path: Path, header: fmt.Header, data: bytes) -> tuple[int, int] | None:
    """The base (index, term) that a segment begins with; None in format 1. WalDamaged.

    A segment gets its name when its begin is durable: this is never the torn tail.
    """
    if header.form == 1:
        return None
    offset, payload = fmt.HEADER_BYTES, b""
    for wanted, length in (fmt.STATE, fmt.STATE_BYTES), (fmt.BASE, fmt.BASE_BYTES):
        kind, payload = fmt.read_record(data, offset, fmt.seed(header.salt)) or (0, b"")
        if (kind, fmt.HEAD_BYTES + len(payload)) != (wanted, length):
            raise WalDamaged(path, offset, "the segment does not begin with a vote and a base")
        offset += length
    return fmt.parse_base(payload)
