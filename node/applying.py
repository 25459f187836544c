"""Applies what is committed in turns of the loop that stay short, whatever there is to catch up with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
        self._stopped = 0

    @property
    def ready(self) -> bool:
        """Is nothing left of earlier turns, and may the next one go on? Only then the core is to hand out more."""
        return not self._left and not self._stopped

    @property
    def may_write(self) -> bool:
        """It is not stopped, and the engine would not have to wait."""
        return not self._stopped and not self._engine.congested

    def turn(self, entries: Sequence[Entry]) -> list[tuple[Entry, Applied]]:
        """Applies what is left and `entries`, as far as the turn's time reaches; what it has applied.

        Nothing while it is stopped, or while the engine could only wait: then another turn is to be tried later.
        """
        self._left.extend(entries)
        applied: list[tuple[Entry, Applied]] = []
        begin = self._clock()
        while self._left and self.may_write:
            entry = self._left.popleft()
            applied.append((entry, self._engine.apply(entry)))
            if self._clock() - begin > TURN_SECONDS:
                break
        return applied

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """In the block nothing is applied."""
        self._stopped += 1
        try:
            yield
        finally:
            self._stopped -= 1

    def forget(self) -> None:
        """Another state has come, which holds what is left."""
        self._left.clear()
