"""What a benchmark's clients do with blobs: write new ones, and read those that they do not have."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEGABYTE = 1 << 20
BLOB_BYTES = 8 * MEGABYTE
#: To be read by each client, again and again.
BLOBS = 8


def populate(db: Any) -> None:
    """Makes the blobs that are read."""
    from ZODB.blob import Blob

    for number in range(BLOBS):
        with db.transaction() as connection:
            connection.root()[f"blob-{number}"] = Blob(os.urandom(BLOB_BYTES))


def write(connection: Any, seconds: float, start: Callable[[], object]) -> tuple[int, float, float]:
    """Commits one blob after the other: megabytes, first and last second."""
    from ZODB.blob import Blob

    manager = connection.transaction_manager
    data = os.urandom(BLOB_BYTES)
    blob = Blob(b"")
    connection.add(blob)
    manager.commit()
    done = 0
    start()
    begun = now = time.monotonic()
    while now < begun + seconds:
        manager.begin()
        with blob.open("w") as file:
            file.write(data)
        manager.commit()
        done += BLOB_BYTES
        now = time.monotonic()
    return done // MEGABYTE, begun, now


def read(
    connection: Any, directory: Path, seconds: float, number: int, start: Callable[[], object]
) -> tuple[int, float, float]:
    """Reads blobs that the client's `directory` does not have: megabytes, first and last second."""
    blobs = [connection.root()[f"blob-{(number + each) % BLOBS}"] for each in range(BLOBS)]
    done = 0
    start()
    begun = now = time.monotonic()
    while now < begun + seconds:
        for path in directory.rglob("*.blob"):
            path.unlink()
        for blob in blobs:
            with blob.open() as file:
                while piece := file.read(MEGABYTE):
                    done += len(piece)
            now = time.monotonic()
            if now >= begun + seconds:
                break
    connection.transaction_manager.abort()
    return done // MEGABYTE, begun, now
