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


class Exit(SystemExit):
    """The process ends here. A SystemExit, which asyncio hands through callbacks and tasks."""


class Violation(AssertionError):
    """A promise is broken."""


class SimHandle(asyncio.TimerHandle):
    """A callback, now or later. No context of its own: nobody here has context variables."""

    __slots__ = ()
    _callback: Any  # None: cancelled
    _args: Any
    _loop: SimLoop

    def __init__(self, callback: Any, args: Any, loop: SimLoop, when: float) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._when = when

    def cancel(self) -> None:
        self._callback = self._args = None

    def cancelled(self) -> bool:
        return self._callback is None


class SimLoop(asyncio.BaseEventLoop):
    """asyncio over the world's clock. The world calls `turn` when there is something to do.

    All timers are among the world's events. Much of what is here is in asyncio too, and takes longer there.
    """

    _ready: deque[SimHandle]
    get_debug = bool  # type: ignore[assignment] # says False, which asyncio asks at every call

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self._world = world
        self.name = name
        self.gone = False  # with its process
        self._paused = False
        self._queued = False  # among those that the world turns next
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign, assignment]
        self.set_exception_handler(self._failed)

    def time(self) -> float:
        return self._world.now

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args)

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = SimHandle(callback, args, self, 0.0)
        self._ready.append(handle)
        if not self._queued:
            self._queue()
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._world.now + delay, callback, *args)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = SimHandle(callback, args, self, when)
        self._world.at(when, handle)
        return handle

    @property
    def paused(self) -> bool:
        """Its process is stopped: what becomes due waits."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        if self._ready and not self._queued:
            self._queue()

    def _queue(self) -> None:
        if not self._paused:
            self._queued = True
            self._world.runnable.append(self)

    def skip(self) -> None:
        """Its turn came, and it cannot have it."""
        self._queued = False

    def due(self, handle: SimHandle) -> None:
        """The time of a timer has come."""
        self._ready.append(handle)
        if not self._queued:
            self._queue()

    def turn(self) -> None:
        """Runs what is due, and what follows from it at once. Exit comes through.

        As `BaseEventLoop._run_once`, which would look after a selector each time.
        """
        ready = self._ready
        asyncio._set_running_loop(self)
        try:
            for _ in range(MOST_AT_ONCE):
                for _ in range(len(ready)):
                    handle = ready.popleft()
                    callback = handle._callback
                    if callback is None:
                        continue
                    try:
                        callback(*handle._args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self.call_exception_handler({"message": f"in {callback!r}", "exception": error})
                if not ready:
                    break
        finally:
            asyncio._set_running_loop(None)
            self._queued = False
            if ready:
                self._queue()

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
        self.runnable: deque[SimLoop] = deque()  # with something to do now
        self._events: list[tuple[float, int, Callable[[], object] | SimHandle]] = []
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

    def at(self, when: float, do: Callable[[], object] | SimHandle) -> None:
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
            loop.gone = True
            self._graveyard.append(loop)

    def run(self, until: float, done: Callable[[], bool] | None = None) -> None:
        """Runs to `until` (seconds), or to the first moment when `done()`. Violation."""
        events, runnable = self._events, self.runnable
        while done is None or not done():
            if self.errors:
                raise Violation(self.errors[0])
            if runnable:
                self.turn(runnable.popleft())
                continue
            if not events:
                raise Violation("nothing will ever happen again")
            if events[0][0] > until:
                self.now = until
                return
            moment, _, do = heapq.heappop(events)
            if not isinstance(do, SimHandle):
                self.now = moment
                do()
            elif do._callback is not None and not do._loop.gone:
                self.now = moment
                do._loop.due(do)

    def turn(self, loop: SimLoop) -> None:
        if loop.gone or loop.paused:
            loop.skip()
            return
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
