"""Flushes, checkpoints, and states that are swapped in."""

from __future__ import annotations

from pathlib import Path

from raftstorage.node.engine import MemoryEngine
from raftstorage.node.engine.api import Checkpointed
from raftstorage.node.engine.kv import KeyValueStore, MemoryStore
from raftstorage.node.engine.rocks import RocksStore
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.raft.types import Entry, EntryKind

from tests.unit.engine.commands import entry


def opened(engine: StateMachine, directory: Path) -> KeyValueStore:
    """A store of the engine's kind in `directory`."""
    return MemoryStore.opened(directory) if isinstance(engine, MemoryEngine) else RocksStore(directory)


def test_a_membership_is_kept(engine: StateMachine, tmp_path: Path) -> None:
    assert (engine.membership, engine.applied_term) == (b"", 0)
    outcome = engine.apply(Entry(3, 1, EntryKind.MEMBERSHIP, b"members"))
    assert outcome.membership == engine.membership == b"members"
    assert (engine.applied_term, engine.applied_index) == (3, 1)
    engine.apply(entry(2, b"", term=4))
    assert engine.checkpoint(tmp_path / "copy") == Checkpointed(2, 4, b"members")
    copy = StateMachine(opened(engine, tmp_path / "copy"))
    assert (copy.applied_index, copy.applied_term, copy.membership) == (2, 4, b"members")
    assert copy.durable_index == 2
    assert copy.digest() == engine.digest()
    copy.close()
