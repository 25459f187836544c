"""Many runs in several processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from types import TracebackType

from tests.simulation.mutants import BY_NAME
from tests.simulation.simulation import Plan, Result, Simulation

#: A process is replaced after so many tasks: what asyncio keeps of abandoned loops would add up.
TASKS = 200
SEEDS_IN_A_TASK = 4

Results = list[tuple[int, Result]]


def run_seeds(seeds: Sequence[int], mutant: str, only: Sequence[str]) -> Results:
    """Some seeds, with production code as it is (empty) or with a mutant in it; `only`: see Plan.draw."""
    with BY_NAME[mutant]() if mutant else nullcontext():
        return [(seed, Simulation(Plan.draw(seed, only)).run()) for seed in seeds]


class Campaign:
    """A context manager that holds the processes. Leaving it waits for what runs then, and starts no more."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(jobs, context, max_tasks_per_child=TASKS)

    def __enter__(self) -> Campaign:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(
        self, seeds: Sequence[int], mutant: str = "", only: Sequence[str] = ()
    ) -> Iterator[tuple[int, Result]]:
        """(seed, result), in the order of `seeds`. Who stops taking them stops the rest.

        With a mutant, which most likely is caught soon, few runs are begun ahead, for nothing.
        """
        at_once, ahead = (1, self._jobs) if mutant else (SEEDS_IN_A_TASK, 2 * self._jobs)
        running: deque[Future[Results]] = deque()
        try:
            for start in range(0, len(seeds), at_once):
                some = seeds[start : start + at_once]
                running.append(self._pool.submit(run_seeds, some, mutant, only))
                if len(running) > ahead:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            for future in running:
                future.cancel()
