"""What one sync carries is bounded, whatever comes at once, and nothing of it is lost or out of order."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from raftstorage.node import log_writer
from raftstorage.node.log_writer import slices
from raftstorage.node.raft.types import Entry, EntryKind, HardState, Persist


def test_a_large_batch_is_written_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "GROUP_BYTES", 100)
    rng = random.Random(1)
    for _ in range(300):
        batch, index = [], 0
        for ticket in range(rng.randrange(1, 5)):
            sizes = [rng.choice((0, 10, 40, 99, 100, 250)) for _ in range(rng.randrange(6))]
            entries = [Entry(1, index + n, EntryKind.COMMAND, bytes(size)) for n, size in enumerate(sizes, 1)]
            index += len(sizes)
            state = HardState(rng.randrange(1, 9), 0) if rng.random() < 0.5 else None
            batch.append(Persist(ticket, state, tuple(entries), ()))
        written = list(slices(batch))
        assert flat([(each.hard_state, each.entries) for each in batch]) == flat(
            [each for writes in written for each in writes]
        )
        for writes in written:
            data = [len(entry.data) for _state, entries in writes for entry in entries]
            assert sum(data[:-1]) < 100


def flat(writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> list[object]:
    """States and entries in the order in which they become durable."""
    found: list[object] = []
    for state, entries in writes:
        found += [] if state is None else [state]
        found += entries
    return found
