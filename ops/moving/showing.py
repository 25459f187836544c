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
        self._console = console

    @contextmanager
    def bytes(self, title: str, total: int | None) -> Iterator[Callable[[int], object]]:
        """A function to call with so many bytes more. `total`: about so many in all; None: nobody knows."""
        progress = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        with progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.advance(task, count)
            done = progress.tasks[task].completed
            progress.update(task, total=done, completed=done)
