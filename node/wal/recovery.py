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

    Fills `index`; `segments` and `hard_state` are what was found, `segments` empty for a new log. Everything
    that it found is durable when `run` returns. WalDamaged, WalError, OSError; then no file is left open.
    """

    def __init__(self, files: Files, directory: Path, index: EntryIndex) -> None:
        self._files = files
        self._directory = directory
        self._index = index
        self._tail = 0  # offset of the last batch in the segment read last
        self.segments: list[Segment] = []
        self.hard_state = HardState()

    def run(self) -> None:
        # A name may be in the page cache only, as contents may.
        self._files.sync_directory(self._directory)
        names = self._files.names(self._directory)
        for name in names:
            if name.endswith(TEMPORARY):
                self._files.remove(self._directory / name)
        paths = [self._directory / name for name in names if name.endswith(SUFFIX)]
        try:
            for path in paths:
                self._read(path, last=path == paths[-1])
        except BaseException:
            for segment in self.segments:
                segment.close()
            raise

    def _read(self, path: Path, *, last: bool) -> None:
        data = self._files.read_all(path)
        header = fmt.Header.unpack(data, path)
        self._check_header(path, header, len(data))
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
        if last:
            self._secure(segment, data)

    def _check_header(self, path: Path, header: fmt.Header, size: int) -> None:
        previous = self.segments[-1] if self.segments else None
        expected = previous.sequence + 1 if previous is not None else 1
        if header.sequence != expected or path.name != Segment.name(header.sequence):
            raise WalDamaged(path, 0, f"segment {header.sequence} stands where segment {expected} should be")
        if previous is not None and previous.end != header.previous_end:
            why = f"the records end here, but at {header.previous_end} when the next segment was begun"
            raise WalDamaged(previous.path, previous.end, why)
        if header.first_index != self._index.last_index() + 1:
            why = f"begins at entry {header.first_index}, behind entry {self._index.last_index()}"
            raise WalDamaged(path, 0, why)
        if size != header.size:
            raise WalDamaged(path, min(size, header.size), f"the file has {size} bytes and not {header.size}")

    def _read_records(self, segment: Segment, data: bytes) -> None:
        self._tail = segment.end
        for offset, kind, payload in fmt.records(data, segment.end, segment.seed):
            segment.end = offset + fmt.HEAD_BYTES + len(payload)
            try:
                if kind == fmt.STATE:
                    self.hard_state = fmt.parse_state(payload)
                elif kind == fmt.ENTRY:
                    entry = fmt.parse_entry(payload)
                    if not 1 <= entry.index <= self._index.last_index() + 1:
                        raise ValueError(f"entry {entry.index} behind entry {self._index.last_index()}")
                    self._index.recovered(entry, Place(segment.sequence, offset, segment.end - offset))
                elif kind == fmt.MARK:
                    self._tail = offset
                else:
                    raise ValueError(f"record of an unknown type {kind}")
            except (ValueError, struct.error) as error:
                # Valid by its checksum: not the disk's fault, and not one to be cut off.
                raise WalDamaged(segment.path, offset, str(error)) from error

    def _secure(self, segment: Segment, data: bytes) -> None:
        """Makes the last batch durable (nobody knows if it is), and zeros what stands behind it.

        All of it: what seems to be zero may be so in the page cache only, if an earlier start zeroed it and its
        sync failed. Records of a batch that nobody was told of would come back behind new ones at a power cut.
        """
        segment.rewrite_to_end(data[self._tail : segment.end], self._tail)
