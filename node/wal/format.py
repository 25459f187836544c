"""The bytes of a log segment.

A segment is a preallocated file of records; zeros behind the last one. A record is

    length of payload u32 | type u8 | CRC32C u32 | payload          (big-endian)

with the checksum over the segment's salt (16 random bytes), length, type and payload, so that what an earlier
use of the same disk blocks left behind cannot pass as a record. Types and payloads:

    HEADER  magic, format u32, sequence u64, salt      first in a segment, checksum without salt
    STATE   term u64, vote u64
    ENTRY   term u64, index u64, kind u8, data         replaces every earlier entry from index on
    MARK    offset u64                                 first of each batch: everything before is durable

A batch is synced before the next one is written, so a mark behind a bad record proves that the bad record was
durable once: damage. Without one the bad record belongs to the last batch, and is a torn write that nobody was
told of. (A bit that flips in the very last batch cannot be told from that; the peers still have the entries.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
from raftstorage.node.raft.types import Entry, EntryKind, HardState

FORMAT = 1
MAGIC = b"RaftWAL\0"
HEADER, STATE, ENTRY, MARK = 1, 2, 3, 4

_HEAD = struct.Struct(">IBI")
_LENGTH_TYPE = struct.Struct(">IB")
_HEADER = struct.Struct(">8sIQ16s")
_STATE = struct.Struct(">QQ")
_ENTRY = struct.Struct(">QQB")
_MARK = struct.Struct(">Q")
HEAD_BYTES = _HEAD.size
ENTRY_HEAD_BYTES = _ENTRY.size
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


def _checksum(salt: bytes, kind: int, payload: bytes) -> int:
    crc = google_crc32c.extend(google_crc32c.value(salt), _LENGTH_TYPE.pack(len(payload), kind))
    return int(google_crc32c.extend(crc, payload))


def record(salt: bytes, kind: int, payload: bytes) -> bytes:
    """One record, whole."""
    return _HEAD.pack(len(payload), kind, _checksum(salt, kind, payload)) + payload


def header(sequence: int, salt: bytes) -> bytes:
    return record(b"", HEADER, _HEADER.pack(MAGIC, FORMAT, sequence, salt))


def state(salt: bytes, hard_state: HardState) -> bytes:
    return record(salt, STATE, _STATE.pack(hard_state.term, hard_state.vote))


def entry(salt: bytes, each: Entry) -> bytes:
    return record(salt, ENTRY, _ENTRY.pack(each.term, each.index, each.kind) + each.data)


def mark(salt: bytes, offset: int) -> bytes:
    return record(salt, MARK, _MARK.pack(offset))


def parse_header(payload: bytes, file: Path) -> tuple[int, bytes]:
    """(sequence, salt). WalError for another format."""
    try:
        magic, form, sequence, salt = _HEADER.unpack(payload)
    except struct.error:
        raise WalDamaged(file, 0, "bad segment header") from None
    if magic != MAGIC:
        raise WalDamaged(file, 0, "not a log segment")
    if form != FORMAT:
        raise WalError(f"{file} has log format {form}; this version knows format {FORMAT}")
    return sequence, salt


def parse_state(payload: bytes) -> HardState:
    return HardState(*_STATE.unpack(payload))


def parse_entry(payload: bytes) -> Entry:
    term, index, kind = _ENTRY.unpack_from(payload)
    return Entry(term, index, EntryKind(kind), payload[_ENTRY.size :])


def read_record(data: bytes, offset: int, salt: bytes) -> tuple[int, bytes] | None:
    """(type, payload) of the record at `offset`; None when there is no whole, valid one."""
    if offset + HEAD_BYTES > len(data):
        return None
    length, kind, crc = _HEAD.unpack_from(data, offset)
    end = offset + HEAD_BYTES + length
    if kind == 0 or end > len(data):
        return None
    payload = bytes(data[offset + HEAD_BYTES : end])
    return (kind, payload) if _checksum(salt, kind, payload) == crc else None


def records(data: bytes, offset: int, salt: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(offset, type, payload) from `offset` to the first place that holds no valid record."""
    while (found := read_record(data, offset, salt)) is not None:
        yield offset, *found
        offset += HEAD_BYTES + len(found[1])


def mark_behind(data: bytes, offset: int, salt: bytes) -> int | None:
    """Offset of a valid mark behind `offset`, if there is one."""
    position = data.find(_MARK_PREFIX, offset + 1)
    while position >= 0:
        found = read_record(data, position, salt)
        if found is not None and found[0] == MARK and _MARK.unpack(found[1])[0] == position:
            return position
        position = data.find(_MARK_PREFIX, position + 1)
    return None
