"""Who waits for reads to be confirmed and for entries to be applied. Used from one event loop."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence

from raftstorage.node.raft.types import ReadState

Waiter = asyncio.Future[None]

#: With so many, those that gave up are looked for.
SWEEP = 1024


class LeadershipLost(Exception):
    """No leader confirmed the read in time, or this node is stopping: nothing is known, ask again."""


async def in_time(waiter: Waiter, timeout: float, leader: Callable[[], int]) -> None:  # noqa: ASYNC109
    """Waits up to `timeout` seconds. TimeoutError; LeadershipLost when no leader is known then either."""
    try:
        async with asyncio.timeout(timeout):
            await waiter
    except TimeoutError:
        if leader() == 0:
            raise LeadershipLost(f"no leader is known after {timeout:g} s") from None
        raise


class ReadWaiters:
    """Reads on their way: not asked for, asked for under a request number, confirmed but not applied yet.

    `retry_ticks`: a read that got no answer for so long is asked for again. `first_request`: the first number.
    """

    def __init__(self, retry_ticks: int, first_request: int = 1) -> None:
        self._retry_ticks = retry_ticks
        self._ticks = 0
        self._request = itertools.count(first_request)
        self._new: list[Waiter] = []
        self._lost: list[Waiter] = []
        self._asked: dict[int, tuple[int, list[Waiter]]] = {}  # request -> (tick, who waits)
        self._by_index: list[tuple[int, int, Waiter]] = []  # a heap
        self._order = itertools.count()
        self._sweep_at = SWEEP

    def add(self, waiter: Waiter) -> None:
        """A read that is to be confirmed."""
        self._new.append(waiter)

    def next_request(self) -> int:
        """The number under which all reads added so far are to be asked for; 0: there are none."""
        waiters = [waiter for waiter in self._new if not waiter.done()]
        self._new.clear()
        if not waiters:
            return 0
        request = next(self._request)
        self._asked[request] = (self._ticks, waiters)
        return request

    def tick(self) -> None:
        """Reads that were lost, or that got no answer for too long, are asked for again."""
        self._ticks += 1
        for request in [r for r, (asked, _) in self._asked.items() if self._ticks - asked >= self._retry_ticks]:
            self._lost.extend(self._asked.pop(request)[1])
        self._new.extend(self._lost)
        self._lost.clear()
        if len(self._by_index) >= self._sweep_at:  # who gave up waits for an index that may not come for long
            self._by_index = [item for item in self._by_index if not item[2].done()]
            heapq.heapify(self._by_index)
            self._sweep_at = max(SWEEP, 2 * len(self._by_index))

    def lost(self, requests: Sequence[int]) -> None:
        """The core will not answer these; they wait for the next tick, by which a leader may be known."""
        for request in requests:
            self._lost.extend(self._asked.pop(request, (0, []))[1])

    def confirmed(self, reads: Sequence[ReadState], applied: int) -> None:
        for read in reads:
            for waiter in self._asked.pop(read.request, (0, []))[1]:
                self.until(read.index, waiter, applied)

    def until(self, index: int, waiter: Waiter, applied: int) -> None:
        """Wakes `waiter` once `index` is applied; `applied` is what is applied now."""
        if applied >= index:
            resolve(waiter)
        else:
            heapq.heappush(self._by_index, (index, next(self._order), waiter))

    def applied(self, index: int) -> None:
        while self._by_index and self._by_index[0][0] <= index:
            resolve(heapq.heappop(self._by_index)[2])

    def fail(self, error: Exception) -> None:
        """Raises `error` in everyone who waits."""
        for waiter in self._all():
            if not waiter.done():
                waiter.set_exception(error)

    def _all(self) -> Iterator[Waiter]:
        yield from self._new
        yield from self._lost
        for _tick, waiters in self._asked.values():
            yield from waiters
        for _index, _order, waiter in self._by_index:
            yield waiter


class RoleWaiters:
    """Who waits for the next change of role, term, leader or readiness; woken in the order they came."""

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}

    async def wait(self) -> None:
        """Returns at the next `wake`; raises what `fail` is given."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def wake(self) -> None:
        for waiter in self._waiters:
            resolve(waiter)

    def fail(self, error: Exception) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)


def resolve(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(None)
