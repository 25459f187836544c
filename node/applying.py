"""Applies what is committed in turns of the loop that stay short, whatever there is to catch up with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from raftstorage.node.engine.api import Applied, Engine
from raftstorage.node.raft.types import Entry

#: A turn begins no further entry after so many seconds; one entry takes some milliseconds at most.
TURN_SECONDS = 0.005


class Applying:
    """What the core has handed out to be applied, and the engine has not yet. `clock`: in seconds, never set."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._left: deque[Entry] = deque()

    @property
    def idle(self) -> bool:
        """Is nothing left of earlier turns? Only then does the core hand out more."""
        return not self._left

    def turn(self, entries: Sequence[Entry]) -> list[tuple[Entry, Applied]]:
        """What is left and `entries`, as far as the turn's time reaches: at least one, if there is one."""
        self._left.extend(entries)
        applied: list[tuple[Entry, Applied]] = []
        begin = self._clock()
        while self._left:
            entry = self._left.popleft()
            applied.append((entry, self._engine.apply(entry)))
            if self._clock() - begin > TURN_SECONDS:
                break
        return applied

    def forget(self) -> None:
        """Another state has come, which holds what is left."""
        self._left.clear()
