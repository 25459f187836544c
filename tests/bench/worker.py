"""What goes on beside that which a benchmark does."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Worker(threading.Thread):
    """Does `work(number)` with rising numbers until it is left; `count` is how often so far."""

    def __init__(self, work: Callable[[int], object]) -> None:
        super().__init__()
        self.count = 0
        self.error: BaseException | None = None
        self._work = work
        self._stop_now = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_now.is_set():
                self._work(self.count)
                self.count += 1
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()
        if self.error is not None:
            raise self.error
