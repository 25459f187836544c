"""Progress bars, with how much came over in a second and how long the rest will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bars:
    """One below the other, one for each step."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    @contextmanager
    def bytes(self, title: str, total: int | None) -> Iterator[Callable[[int], object]]:
        """A function to call with so many bytes more. `total`: about so many in all; None: nobody knows."""
        self._progress.start()
        task = self._progress.add_task(title, total=total)
        try:
            yield lambda count: self._progress.advance(task, count)
            done = self._progress.tasks[task].completed
            self._progress.update(task, total=done, completed=done)
        finally:
            self._progress.stop()
