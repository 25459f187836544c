"""Records that a storage wrapped on their way here: what is inside, in small steps.

zc.zlibstorage compresses and ZODB's HexStorage writes hexadecimal digits; both say so in two bytes that begin no
pickle. What others wrap, and what is encrypted, cannot be read here.
"""

from __future__ import annotations

import zlib
from binascii import unhexlify
from collections.abc import Generator, Iterator

#: A record does not become larger than this: a few kilobytes can be made to look like gigabytes.
MOST_BYTES = 128 << 20
#: So many bytes are made in a step: up to 1 ms.
STEP_BYTES = 128 << 10
#: Storages that wrap one another.
MOST_LAYERS = 4


def unwrap(data: bytes, inside: list[bytes]) -> Iterator[None]:
    """Appends the record inside to `inside`, `data` itself if it is not wrapped. Yields after each step.

    ValueError: it is not what it says, or becomes too large.
    """
    for _ in range(MOST_LAYERS):
        if data.startswith(b".z"):
            data = yield from _inflated(data)
        elif data.startswith(b".h"):
            data = yield from _unhexed(data)
        else:
            inside.append(data)
            return
    raise ValueError("wrapped too often")


def _inflated(data: bytes) -> Generator[None, None, bytes]:
    parts: list[bytes] = []
    size = 0
    machine = zlib.decompressobj()
    at, left = 2, b""
    while not machine.eof:
        left = left or data[at : (at := at + STEP_BYTES)]
        try:
            part = machine.decompress(left, STEP_BYTES)
        except zlib.error as error:
            raise ValueError(f"not compressed as it says: {error}") from None
        if not left and not part and not machine.eof:
            raise ValueError("compressed, and it breaks off")
        left = machine.unconsumed_tail
        size += len(part)
        if size > MOST_BYTES:
            raise ValueError(f"compressed, and more than {MOST_BYTES} bytes")
        parts.append(part)
        yield
    return b"".join(parts)


def _unhexed(data: bytes) -> Generator[None, None, bytes]:
    parts: list[bytes] = []
    for at in range(2, len(data), 2 * STEP_BYTES):
        parts.append(unhexlify(data[at : at + 2 * STEP_BYTES]))
        yield
    return b"".join(parts)
