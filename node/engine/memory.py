"""The engine in memory, for tests and the simulator."""

from __future__ import annotations

from raftstorage.node.engine.kv import MemoryStore
from raftstorage.node.engine.state import RETENTION, StateMachine


class MemoryEngine(StateMachine):
    """An engine whose state dies with it."""

    def __init__(self, retention: int = RETENTION) -> None:
        super().__init__(MemoryStore(), retention)
