"""Ordered key-value stores that an engine's state lives in: what `state.py` needs of one, and one in memory."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol


class Until(NamedTuple):
    """In place of a value: the key, and all from it up to `end`, which is not one of them, are deleted."""

    end: bytes


#: (family, key, value); value None deletes.
Change = tuple[str, bytes, bytes | Until | None]

#: Families of keys, in the order of a store that keeps all in one; see `layout.py`. Append, never reorder. The one
#: with large values is far from `records`: a search there must not read a neighbour of megabytes.
FAMILIES = ("records", "transactions", "ids", "id_order", "meta", "pages", "data", "packing", "uploads", "blobs")


class KeyValueStore(Protocol):
    """Keys are ordered as bytes within a family. Used from one thread, but for `flush` and `close`."""

    def get(self, family: str, key: bytes) -> bytes | None: ...

    def around(self, family: str, key: bytes, within: int = 0) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
        """The pair with the greatest key <= `key`, or None, and the key that follows it (or follows `key`).

        Only keys that begin with the same `within` bytes as `key`, which is no shorter, are looked at: what was
        removed beside them costs nothing.
        """

    def at_or_before(self, family: str, key: bytes) -> bytes | None:
        """The greatest key <= `key`."""

    def all_at_or_before(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """`at_or_before` of each."""

    def scan(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with key >= start in order, as of the call's first item."""

    def scan_back(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with key <= start, downwards."""

    def write(self, changes: Sequence[Change]) -> None:
        """All or, after a crash, none of them."""

    @property
    def congested(self) -> bool:
        """Would `write` wait until the disk has taken what was written before?"""

    def bytes_used(self) -> int:
        """On disk and in memory tables, approximate."""

    def flush(self) -> None:
        """Makes durable what was written before the call. May run in another thread during other calls."""

    def checkpoint(self, directory: Path) -> None:
        """A durable copy in a new folder."""

    def close(self) -> None:
        """Waits for a `flush` that runs."""


def sync_folder(directory: Path) -> None:
    """Makes a new folder durable: its files, their names, and its own name in the folder above."""
    for path in (*sorted(directory.iterdir()), directory, directory.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class MemoryStore:
    """In memory; for tests and the simulator."""

    congested = False

    def __init__(self) -> None:
        self._values: dict[str, dict[bytes, bytes]] = {family: {} for family in FAMILIES}
        self._keys: dict[str, list[bytes]] = {family: [] for family in FAMILIES}

    def get(self, family: str, key: bytes) -> bytes | None:
        return self._values[family].get(key)

    def around(self, family: str, key: bytes, within: int = 0) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
        keys = self._keys[family]
        position = bisect_right(keys, key)
        following = keys[position] if position < len(keys) else None
        if following is not None and following[:within] != key[:within]:
            following = None
        if position == 0 or keys[position - 1][:within] != key[:within]:
            return None, following
        found = keys[position - 1]
        return (found, self._values[family][found]), following

    def at_or_before(self, family: str, key: bytes) -> bytes | None:
        keys = self._keys[family]
        position = bisect_right(keys, key)
        return keys[position - 1] if position else None

    def all_at_or_before(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.at_or_before(family, key) for key in keys]

    def scan(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        keys, values = self._keys[family], self._values[family]
        for key in keys[bisect_left(keys, start) :]:
            yield key, values[key]

    def scan_back(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        keys, values = self._keys[family], self._values[family]
        for key in reversed(keys[: bisect_right(keys, start)]):
            yield key, values[key]

    def write(self, changes: Sequence[Change]) -> None:
        for family, key, value in changes:
            keys, values = self._keys[family], self._values[family]
            if isinstance(value, Until):
                some = slice(bisect_left(keys, key), bisect_left(keys, value.end))
                for each in keys[some]:
                    del values[each]
                del keys[some]
            elif value is None:
                if values.pop(key, None) is not None:
                    del keys[bisect_left(keys, key)]
            else:
                if key not in values:
                    insort(keys, key)
                values[key] = value

    def bytes_used(self) -> int:
        return sum(len(key) + len(value) for each in self._values.values() for key, value in each.items())

    def flush(self) -> None:
        """Nothing outlives the process."""

    def checkpoint(self, directory: Path) -> None:
        """See KeyValueStore; `opened` reads it."""
        directory.mkdir()
        (directory / "memory").write_bytes(
            b"".join(
                b"%d %d %d\n%b%b" % (number, len(key), len(value), key, value)
                for number, family in enumerate(FAMILIES)
                for key, value in self.scan(family, b"")
            )
        )
        sync_folder(directory)

    @classmethod
    def opened(cls, directory: Path) -> MemoryStore:
        """What a checkpoint left in `directory`."""
        store = cls()
        with (directory / "memory").open("rb") as file:
            while line := file.readline():
                number, key, value = map(int, line.split())
                store.write([(FAMILIES[number], file.read(key), file.read(value))])
        return store

    def close(self) -> None:
        """Nothing to release."""
