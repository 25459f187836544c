"""What the tests of blob directories share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from raftstorage.client.blobs.layout import CacheLayout
from ZODB.utils import p64

CLUSTER = "ab" * 16
SERIAL = p64(5)


class Remote:
    """Has a blob of `size` bytes for every oid, counts how often it is asked, and does what it is told to."""

    def __init__(self, size: int = 100) -> None:
        self.size = size
        self.asked: list[int] = []
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def __call__(self, oid: bytes, serial: bytes, descriptor: int) -> int:
        number = int.from_bytes(oid)
        self.asked.append(number)
        self.before()
        rest = memoryview(bytes([number % 256]) * self.size)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        self.after()
        return self.size


def committed(directory: Path) -> list[int]:
    """Oids of the blobs that are there."""
    return sorted(
        int(path.name.partition(".")[0]) * CacheLayout.directories + int(path.parent.name)
        for path in directory.glob("*/*.blob")
    )


def leftovers(directory: Path) -> list[str]:
    """Names of files under a blob directory that are neither committed blobs nor its own furniture."""
    return sorted(
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.suffix not in (".blob", ".lock") and path.name not in (".layout", ".cluster")
    )
