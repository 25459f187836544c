"""What simulated clients store: their data in the form of a ZODB record, so that nodes find the references in it.

`@` and the 16 hexadecimal digits of an oid, anywhere in the data, are a reference.
"""

from __future__ import annotations

import re

_HEAD = b"\x80\x03N.\x80\x03(B"
_REFERENCE = re.compile(rb"@([0-9a-f]{16})")


def named(data: bytes) -> list[bytes]:
    """The oids that `data` refers to."""
    return [bytes.fromhex(found.decode()) for found in _REFERENCE.findall(data)]


def name(oid: bytes) -> bytes:
    return b"@" + oid.hex().encode()


def wrap(data: bytes) -> bytes:
    references = b"".join(b"C\x08" + oid + b"Q" for oid in named(data))
    return _HEAD + len(data).to_bytes(4, "little") + data + references + b"t."


def unwrap(record: bytes) -> bytes:
    size = int.from_bytes(record[len(_HEAD) : len(_HEAD) + 4], "little")
    return record[len(_HEAD) + 4 :][:size]
