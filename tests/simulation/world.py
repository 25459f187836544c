"""Simulated time: one clock, one order of events, an event loop of its own for each process.

A process that is paused has its loop not turned; one that is killed has it thrown away. Nothing here or above
it looks at a real clock or draws from anything but the seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

#: Rounds of a loop before the others get their turn at the same moment.
MOST_AT_ONCE = 20
#: Timers that were cancelled are thrown out when there are so many.
MOST_CANCELLED = 100
RESOLUTION = 1e-9
NEVER = float("inf")


class Exit(SystemExit):
    """The process ends here. A SystemExit, which asyncio hands through callbacks and tasks."""


class Violation(AssertionError):
    """A promise is broken."""


class SimLoop(asyncio.BaseEventLoop):
    """asyncio over the world's clock. The world calls `turn` when there is something to do."""

    _ready: deque[Any]
    _scheduled: list[Any]  # a heap of asyncio.TimerHandle
    _timer_cancelled_count: int

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self._world = world
        self.name = name
        self.paused = False
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        return self._world.now

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def turn(self) -> None:
        """Runs what is due, and what follows from it at once. Exit comes through.

        As `BaseEventLoop._run_once`, which would look after a selector each time.
        """
        ready, scheduled = self._ready, self._scheduled
        if self._timer_cancelled_count > MOST_CANCELLED:
            scheduled[:] = [handle for handle in scheduled if not handle._cancelled]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        end = self._world.now + RESOLUTION
        asyncio._set_running_loop(self)
        try:
            for _ in range(MOST_AT_ONCE):
                while scheduled and (scheduled[0]._when < end or scheduled[0]._cancelled):
                    handle = heapq.heappop(scheduled)
                    handle._scheduled = False
                    ready.append(handle)
                for _ in range(len(ready)):
                    handle = ready.popleft()
                    if not handle._cancelled:
                        handle._run()
                if not ready:
                    break
        finally:
            asyncio._set_running_loop(None)

    def run(self, function: Callable[[], Any]) -> Any:
        """Calls `function` as if the loop did."""
        asyncio._set_running_loop(self)
        try:
            return function()
        finally:
            asyncio._set_running_loop(None)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Violation):
            self._world.errors.append(str(error))
        else:
            self._world.errors.append(f"{self.name}: {context.get('message')}: {error!r}")

    def _write_to_self(self) -> None: ...


class World:
    """`trace`: called with each line that is worth telling; `digest` is over all of them."""

    def __init__(self, seed: str, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.now = 0.0
        self.errors: list[str] = []  # exceptions that nobody caught: always a fault
        self.loops: dict[SimLoop, Callable[[int], None]] = {}  # and what to call when its process ends by itself
        self._graveyard: list[SimLoop] = []
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._hash = hashlib.sha256()
        self._trace = trace
        self.lines = 0

    def random(self, purpose: str) -> random.Random:
        """A source of its own for each purpose, so that a fault left out does not change all others."""
        return random.Random(f"{self.seed}/{purpose}")

    def say(self, line: str) -> None:
        self.lines += 1
        text = f"{self.now:9.4f} {line}"
        self._hash.update(text.encode() + b"\n")
        if self._trace is not None:
            self._trace(text)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def at(self, when: float, do: Callable[[], object]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._order), do))

    def after(self, delay: float, do: Callable[[], object]) -> None:
        self.at(self.now + delay, do)

    def new_loop(self, name: str, ended: Callable[[int], None]) -> SimLoop:
        """The loop of a new process. `ended(status)` is called when Exit comes out of it."""
        loop = SimLoop(self, name)
        self.loops[loop] = ended
        return loop

    def drop(self, loop: SimLoop) -> None:
        """The process is gone, with whatever it was doing. Kept, or its coroutines' ends would still run."""
        if self.loops.pop(loop, None) is not None:
            self._graveyard.append(loop)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Runs to `until` (seconds), or to the first moment when `done()`. Violation."""
        events = self._events
        while not done():
            if self.errors:
                raise Violation(self.errors[0])
            moment = events[0][0] if events else NEVER
            chosen: SimLoop | None = None
            for loop in self.loops:
                if loop.paused or not (loop._ready or loop._scheduled):
                    continue
                due = self.now if loop._ready else loop._scheduled[0]._when
                if due < moment:
                    moment, chosen = due, loop
            if moment == NEVER:
                raise Violation("nothing will ever happen again")
            if moment > until:
                self.now = until
                return
            self.now = max(self.now, moment)
            if chosen is None:
                heapq.heappop(events)[2]()
            else:
                self.turn(chosen)

    def turn(self, loop: SimLoop) -> None:
        try:
            loop.turn()
        except Exit as end:
            ended = self.loops.get(loop)
            if ended is not None:
                ended(int(end.code or 0))

    def close(self) -> None:
        """Lets go of all loops. What their coroutines do at their end goes nowhere."""
        for loop in [*self.loops, *self._graveyard]:
            loop.set_exception_handler(lambda *_: None)
            loop.run(partial(self._forget, asyncio.all_tasks(loop)))
        self.loops.clear()
        self._graveyard.clear()

    def _forget(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine = task.get_coro()
            with suppress(BaseException):  # whatever a process that is gone would have done
                assert isinstance(coroutine, Coroutine)
                coroutine.close()
