"""The bytes of a log segment; the package's docstring describes them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
from raftstorage.node.raft.types import Entry, EntryKind, HardState

FORMAT = 2
FORMATS = (1, 2)  # that can be read; new segments have the last one
MAGIC = b"RaftWAL\0"
STATE, ENTRY, MARK, BASE = 1, 2, 3, 4
SALT_BYTES = 16

_PRELUDE = struct.Struct(">8sI")
_HEADER = struct.Struct(">8sIQQQQ16s")
_CRC = struct.Struct(">I")
_HEAD = struct.Struct(">IBI")
_COVERED = struct.Struct(">QIB")
_LENGTH_TYPE = struct.Struct(">IB")
_STATE = struct.Struct(">QQ")
_ENTRY = struct.Struct(">QQB")
_MARK = struct.Struct(">Q")
_BASE = struct.Struct(">QQ")
HEADER_BYTES = _HEADER.size + _CRC.size
HEAD_BYTES = _HEAD.size
ENTRY_HEAD_BYTES = _ENTRY.size
STATE_BYTES = HEAD_BYTES + _STATE.size
MARK_BYTES = HEAD_BYTES + _MARK.size
BASE_BYTES = HEAD_BYTES + _BASE.size
#: What a new segment begins with.
BEGIN_BYTES = HEADER_BYTES + STATE_BYTES + BASE_BYTES
_MARK_PREFIX = _LENGTH_TYPE.pack(_MARK.size, MARK)


class WalError(Exception):
    """The log cannot be used."""


class WalDamaged(WalError):
    """What was durable is not there any more: `file`, `offset` in bytes, and why."""

    def __init__(self, file: Path, offset: int, why: str) -> None:
        super().__init__(f"log damaged: {file} at offset {offset}: {why}")
        self.file = file
        self.offset = offset
        self.why = why


@dataclass(frozen=True, slots=True)
class Header:
    """The first bytes of a segment."""

    sequence: int
    size: int
    first_index: int
    previous_end: int
    salt: bytes
    form: int = FORMAT

    def pack(self) -> bytes:
        body = _HEADER.pack(
            MAGIC, self.form, self.sequence, self.size, self.first_index, self.previous_end, self.salt
        )
        return body + _CRC.pack(google_crc32c.value(body))

    @classmethod
    def unpack(cls, data: bytes, file: Path) -> Header:
        """WalError for another format, WalDamaged for no header at all."""
        body = data[: _HEADER.size]
        if len(data) < HEADER_BYTES:
            raise WalDamaged(file, len(data), "the file ends within its header")
        magic, form = _PRELUDE.unpack_from(body)
        if magic != MAGIC:
            raise WalDamaged(file, 0, "not a log segment")
        if form not in FORMATS:
            raise WalError(f"{file} has log format {form}; this version knows formats 1 to {FORMAT}")
        if _CRC.unpack_from(data, _HEADER.size)[0] != google_crc32c.value(body):
            raise WalDamaged(file, 0, "the header does not match its checksum")
        _, _, sequence, size, first_index, previous_end, salt = _HEADER.unpack(body)
        return cls(sequence, size, first_index, previous_end, salt, form)


def seed(salt: bytes) -> int:
    """What the checksums of a segment's records start from."""
    return int(google_crc32c.value(salt))


def _checksum(start: int, offset: int, kind: int, payload: bytes) -> int:
    crc = google_crc32c.extend(start, _COVERED.pack(offset, len(payload), kind))
    return int(google_crc32c.extend(crc, payload))


def _record(start: int, offset: int, kind: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), kind, _checksum(start, offset, kind, payload)) + payload


def state(start: int, offset: int, hard_state: HardState) -> bytes:
    """The record, for `offset` of the segment with seed `start`; likewise those below."""
    return _record(start, offset, STATE, _STATE.pack(hard_state.term, hard_state.vote))


def entry(start: int, offset: int, each: Entry) -> bytes:
    return _record(start, offset, ENTRY, _ENTRY.pack(each.term, each.index, each.kind) + each.data)


def mark(start: int, offset: int) -> bytes:
    return _record(start, offset, MARK, _MARK.pack(offset))


def base(start: int, offset: int, index: int, term: int) -> bytes:
    return _record(start, offset, BASE, _BASE.pack(index, term))


def parse_state(payload: bytes) -> HardState:
    return HardState(*_STATE.unpack(payload))


def parse_entry(payload: bytes) -> Entry:
    term, index, kind = _ENTRY.unpack_from(payload)
    return Entry(term, index, EntryKind(kind), payload[_ENTRY.size :])


def parse_base(payload: bytes) -> tuple[int, int]:
    """(index, term)."""
    index, term = _BASE.unpack(payload)
    return index, term


def read_record(data: bytes, position: int, start: int, origin: int = 0) -> tuple[int, bytes] | None:
    """(type, payload) of the record at `position` in `data`, which is what stands in the segment from `origin` on.

    None when there is no whole, valid record.
    """
    if position + HEAD_BYTES > len(data):
        return None
    length, kind, crc = _HEAD.unpack_from(data, position)
    end = position + HEAD_BYTES + length
    if kind == 0 or end > len(data):
        return None
    payload = data[position + HEAD_BYTES : end]
    return (kind, payload) if _checksum(start, origin + position, kind, payload) == crc else None


def records(data: bytes, offset: int, start: int) -> Iterator[tuple[int, int, bytes]]:
    """(offset, type, payload) from `offset` to the first place that holds no valid record."""
    while (found := read_record(data, offset, start)) is not None:
        yield offset, *found
        offset += HEAD_BYTES + len(found[1])


def mark_behind(data: bytes, offset: int, start: int) -> int | None:
    """Offset of a valid mark behind `offset`, if there is one."""
    position = data.find(_MARK_PREFIX, offset + 1)
    while position >= 0:
        found = read_record(data, position, start)
        if found is not None and found[0] == MARK and _MARK.unpack(found[1])[0] == position:
            return position
        position = data.find(_MARK_PREFIX, position + 1)
    return None
