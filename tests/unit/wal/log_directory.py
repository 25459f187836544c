"""Logs in real folders with two entries for each segment: shared by the tests of the log."""

from __future__ import annotations

import random
from pathlib import Path

from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal

from tests.unit.wal.log_model import State, observed

SEGMENT = 1024


def entry(index: int, term: int = 1, size: int = 300) -> Entry:
    return Entry(term, index, EntryKind.COMMAND, random.Random(index * 1000 + term).randbytes(size))


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    return tuple(entry(index, term) for index in range(first, last + 1))


def opened(directory: Path, **options: object) -> Wal:
    return Wal.open(directory, segment_bytes=SEGMENT, cache_bytes=0, **options)  # type: ignore[arg-type]


def filled(directory: Path, last: int) -> Wal:
    """Two entries for each segment."""
    wal = opened(directory)
    for index in range(1, last + 1):
        wal.write(HardState(1, 2) if index == 1 else None, [entry(index)])
    return wal


def cut(wal: Wal, index: int) -> int:
    wal.write_base(index)
    wal.forget(index)
    return wal.clean()


def reopened(directory: Path) -> State:
    wal = opened(directory)
    try:
        return observed(wal)
    finally:
        wal.close()


def sequences(directory: Path) -> list[int]:
    return sorted(int(path.stem) for path in directory.glob("*.segment"))
