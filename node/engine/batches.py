"""All that a store holds, a batch at a time, and past what cannot be read of it.

A block of RocksDB's whose bytes are damaged ends every scan that comes to it. Behind it a scan works again: where
that is, is found by trying; what is sound between two damaged blocks may be passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.kv import KeyValueStore

Pair = tuple[bytes, bytes]
#: So many bytes of a key are counted on when looking for one behind the damage.
_COUNTED = 16


def batches(
    store: KeyValueStore, family: str, start: bytes, items: int, size: int, damaged: Callable[[str], None]
) -> Iterator[list[Pair] | None]:
    """Pairs from `start` on, in order, in batches of about `items` or `size` bytes; maybe empty, for others' turn.

    Each pair is as it is when its batch is; no scan is open between two batches. None: some cannot be read, and
    `damaged` was told which.
    """
    while True:
        batch: list[Pair] = []
        read = 0
        failure = ""
        try:
            for key, value in store.scan(family, start):
                batch.append((key, value))
                read += len(value)
                if len(batch) >= items or read >= size:
                    break
            else:
                yield batch
                return
        except EngineError as error:
            failure = str(error)
        if batch:
            start = batch[-1][0] + b"\0"
        yield batch
        if failure:
            onward = yield from _behind(store, family, start)
            where = f"behind {name_of(family, start)}" if start else "from the first one on"
            where += f", before {name_of(family, onward)}" if onward else ""
            damaged(f"{family} cannot be read {where}: {failure}")
            yield None
            if not onward:
                return
            start = onward


def _behind(store: KeyValueStore, family: str, start: bytes) -> Generator[list[Pair], None, bytes]:
    """The first key from which a scan works again, of those 1, 2, 4, ... above, or in between; b"": none does."""

    def works_from(key: int) -> bool:
        try:
            next(iter(store.scan(family, key.to_bytes(_COUNTED, "big"))), None)
        except EngineError:
            return False
        return True

    begin = int.from_bytes(start[:_COUNTED].ljust(_COUNTED, b"\0"), "big")
    fails, works = 0, 1
    while True:
        if begin + works >> 8 * _COUNTED:
            return b""
        if works_from(begin + works):
            break
        fails, works = works, works * 2
        yield []
    while works - fails > 1:
        middle = (fails + works) // 2
        if works_from(begin + middle):
            works = middle
        else:
            fails = middle
        yield []
    return (begin + works).to_bytes(_COUNTED, "big")


def name_of(family: str, key: bytes) -> str:
    """What is at a key, or would be, for a person."""
    if family == "records":
        return f"object {key[:8].hex()} of transaction {key[8:16].hex()}"
    return f"transaction {key[:8].hex()}" if family == "transactions" else f"{family} {key.hex()}"
