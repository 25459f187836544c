"""How the state is laid out in a key-value store. Every value ends in the CRC32C of all before it.

    records       oid + tid            -> flags, data's tid, [first fragment's index],
                                          data or [its size and chunks]
    data          oid + tid + chunk    -> a chunk of data that is too large for `records`
    transactions  tid                  -> CommittedTransaction without the records' data; for one that came in
                                          fragments: 0, first fragment's index, pages, records in these, and
                                          the same with the last records only
    pages         first fragment's     -> oids of records, in stored order
                  index + page
    ids           transaction id       -> tid, log index
    id_order      log index            -> transaction id
    meta          "state"              -> format, applied index, its term, last tid, next oid, objects
                  "membership"         -> data of the newest MEMBERSHIP entry; not there when there was none
                  "staging"            -> fragments of a transaction that may go on with the next entry
                  "dropped" + index    -> tid and pages of fragments (the first has this index) to be removed
    packing       "pack"               -> the newest pack, as the log has it: see `packs.py`
                  "removal"            -> how far this node has removed what it made invisible
                  "gone" + tid         -> so many records of this transaction were removed
    uploads       "i" + upload id      -> see `Upload`
                  "t" + stamp + number -> upload id: the longest idle ones first
    blobs         number + chunk       -> BLOB_CHUNK_BYTES of a blob, or what is left; `number`: log index of the
                                          upload's first chunk, which no other upload will ever have
                  number               -> how many records name it, if there are several

Format 1 had records with their data and whole transactions only, no term and no membership; format 2 no deletes
but restored ones, no packs and no blobs. They are read as they are, and the "state" rewritten when it is opened.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
from raftstorage.node.engine.api import Z64, EngineError
from raftstorage.proto import storage_pb2 as pb

FORMAT = 3
#: Data above this many bytes is kept apart, in chunks of this many: whoever looks for serials, sizes and histories
#: reads the small records only.
INLINE_BYTES = 16 << 10
CHUNK_BYTES = 256 << 10
#: Oids in a page: what is read, sent or removed in one go.
PAGE_OIDS = 1000

STATE_KEY = b"state"
MEMBERSHIP_KEY = b"membership"
STAGING_KEY = b"staging"
DROPPED_KEY = b"dropped"

_FORMAT = struct.Struct(">I")
_STATE = struct.Struct(">IQQ8sQQ")
_STATE_1 = struct.Struct(">IQ8sQQ")
_HEAD = struct.Struct(">B8s")
_FRAGMENT = struct.Struct(">Q")
_SPLIT = struct.Struct(">QI")
_PAGED = struct.Struct(">BQIQ")
_BLOB = struct.Struct(">16sQQI?")
_UPLOAD = struct.Struct(">QQIQQ")
_NO_DATA, _STAGED, _SPLITTED, _HAS_BLOB = 1, 2, 4, 8


def seal(value: bytes) -> bytes:
    return value + int(google_crc32c.value(value)).to_bytes(4, "big")


def unseal(family: str, key: bytes, sealed: bytes) -> bytes:
    """EngineError when the value is not what was sealed."""
    value = sealed[:-4]
    if len(sealed) < 4 or int(google_crc32c.value(value)) != int.from_bytes(sealed[-4:], "big"):
        raise EngineError(f"checksum of {family} {key.hex()} does not fit: the stored value is damaged")
    return value


class State(NamedTuple):
    """The value of "state"; `applied`: index of the entry that was applied last, `term` its term."""

    applied: int = 0
    term: int = 0
    last_tid: bytes = Z64
    next_oid: int = 1  # 0 is the root object
    objects: int = 0

    def sealed(self) -> bytes:
        return seal(_STATE.pack(FORMAT, *self))


def read_state(sealed: bytes) -> tuple[State, int]:
    """The state and the format it was written in."""
    value = unseal("meta", STATE_KEY, sealed)
    (form,) = _FORMAT.unpack_from(value)
    if form in (2, FORMAT):
        return State(*_STATE.unpack(value)[1:]), form
    if form == 1:
        _form, index, last_tid, next_oid, objects = _STATE_1.unpack(value)
        return State(index, 0, last_tid, next_oid, objects), form
    raise EngineError(f"the database has format {form}; this version knows formats up to {FORMAT}")


class StoredBlob(NamedTuple):
    """The blob of a record: `size` bytes under `number` in `blobs`; an empty one has number 0 and nothing there.

    `copied`: the record has it of an earlier revision, not of the upload itself.
    """

    upload_id: bytes
    number: int
    size: int
    crc32c: int
    copied: bool = False


class Upload(NamedTuple):
    """What `uploads` says of one. `stamp`: when the newest chunk came, milliseconds.

    `claim`: index of the first fragment of the transaction that took it; 0: none has.
    """

    number: int
    size: int
    crc32c: int
    stamp: int
    claim: int = 0

    def sealed(self) -> bytes:
        return seal(_UPLOAD.pack(*self))


def upload_key(upload_id: bytes) -> bytes:
    return b"i" + upload_id


def read_upload(key: bytes, sealed: bytes) -> Upload:
    return Upload(*_UPLOAD.unpack(unseal("uploads", key, sealed)))


def idle_key(upload: Upload) -> bytes:
    return b"t" + upload.stamp.to_bytes(8, "big") + upload.number.to_bytes(8, "big")


def read_idle_key(key: bytes) -> tuple[int, int]:
    """Stamp and number."""
    return int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")


def blob_key(number: int, chunk: int | None = None) -> bytes:
    """Of a chunk; None: of the number of records."""
    return number.to_bytes(8, "big") + (b"" if chunk is None else chunk.to_bytes(4, "big"))


class Stub(NamedTuple):
    """What `records` says of a record. `fragment`: index of its transaction's first fragment; 0: it came whole.

    `inline` None: the data is in `chunks` chunks, with `size` bytes in all. Garbage that was collected has
    `no_data`, and maybe chunks, which are removed with it.
    """

    no_data: bool = False
    data_tid: bytes = Z64
    fragment: int = 0
    inline: bytes | None = b""
    size: int = 0
    chunks: int = 0
    blob: StoredBlob | None = None

    def sealed(self) -> bytes:
        flags = _NO_DATA * self.no_data | _STAGED * (self.fragment > 0) | _SPLITTED * (self.inline is None)
        flags |= _HAS_BLOB * (self.blob is not None)
        return seal(
            b"".join(
                (
                    _HEAD.pack(flags, self.data_tid.rjust(8, b"\0")),
                    _FRAGMENT.pack(self.fragment) if self.fragment else b"",
                    _BLOB.pack(*self.blob) if self.blob is not None else b"",
                    _SPLIT.pack(self.size, self.chunks) if self.inline is None else self.inline,
                )
            )
        )


def read_whole(key: bytes, sealed: bytes) -> bytes | None:
    """The data of a record that came whole and has it inline, as nearly all; None: see `read_stub`."""
    value = unseal("records", key, sealed)
    return value[_HEAD.size :] if value[0] == 0 else None


def read_stub(key: bytes, sealed: bytes) -> Stub:
    value = unseal("records", key, sealed)
    flags, data_tid = _HEAD.unpack_from(value)
    at = _HEAD.size
    fragment = 0
    if flags & _STAGED:
        (fragment,) = _FRAGMENT.unpack_from(value, at)
        at += _FRAGMENT.size
    blob = None
    if flags & _HAS_BLOB:
        blob = StoredBlob(*_BLOB.unpack_from(value, at))
        at += _BLOB.size
    if flags & _SPLITTED:
        size, chunks = _SPLIT.unpack_from(value, at)
        return Stub(bool(flags & _NO_DATA), data_tid, fragment, None, size, chunks, blob)
    inline = value[at:]
    return Stub(bool(flags & _NO_DATA), data_tid, fragment, inline, len(inline), 0, blob)


def chunk_key(key: bytes, number: int) -> bytes:
    return key + number.to_bytes(4, "big")


def chunk_keys(key: bytes, stub: Stub) -> list[bytes]:
    """Of all the data that the record at `key` has apart."""
    return [chunk_key(key, number) for number in range(stub.chunks)]


def cut(data: bytes, size: int = 0) -> Iterator[bytes]:
    """Chunks of `data`, of CHUNK_BYTES or `size`."""
    size = size or CHUNK_BYTES
    for at in range(0, len(data), size):
        yield data[at : at + size]


def page_key(fragment: int, page: int) -> bytes:
    return fragment.to_bytes(8, "big") + page.to_bytes(4, "big")


def read_page(key: bytes, sealed: bytes) -> tuple[bytes, ...]:
    value = unseal("pages", key, sealed)
    return tuple([value[at : at + 8] for at in range(0, len(value), 8)])


class Head(NamedTuple):
    """What `transactions` says. `info.records`: the last ones, which are all when `pages` is 0.

    `paged`: how many are in the pages.
    """

    info: pb.CommittedTransaction
    fragment: int = 0
    pages: int = 0
    paged: int = 0

    def sealed(self) -> bytes:
        body = self.info.SerializeToString(deterministic=True)
        return seal(_PAGED.pack(0, self.fragment, self.pages, self.paged) + body if self.pages else body)


def read_head(tid: bytes, sealed: bytes) -> Head:
    value = unseal("transactions", tid, sealed)
    if value[:1] != b"\0":  # no field has number 0: a message never begins so
        return Head(pb.CommittedTransaction.FromString(value))
    _zero, fragment, pages, paged = _PAGED.unpack_from(value)
    return Head(pb.CommittedTransaction.FromString(value[_PAGED.size :]), fragment, pages, paged)


def dropped_key(fragment: int) -> bytes:
    return DROPPED_KEY + fragment.to_bytes(8, "big")
