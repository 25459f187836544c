"""Processes that use a cluster while it is harmed, and what they have said so far."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from raftstorage.ops.child import PARENT_VARIABLE
from raftstorage.ops.drills.report import Ack
from raftstorage.ops.errors import CommandError

#: Seconds without the progress that is waited for: the drill gives up.
PATIENCE = 60.0


class Writers:
    """Writer processes and what they have said so far. A context manager; leaving it stops them."""

    role = "writer"
    module = "raftstorage.ops.drills.writer"

    def __init__(self, count: int, addresses: str, wait_timeout: float, logs: Path) -> None:
        self.acks: list[Ack] = []
        self.errors: deque[str] = deque(maxlen=5)
        self.retries = 0
        self._ready = 0
        self._stopping = False
        self._news = threading.Condition()
        self._logs = logs
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        try:
            for number in range(count):
                self._start(number, addresses, wait_timeout)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def _start(self, number: int, addresses: str, wait_timeout: float) -> None:
        arguments = [self.module, addresses, str(number), str(wait_timeout)]
        with self._log(number).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "raftstorage.ops.child", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        thread = threading.Thread(target=self._read, args=(number, process.stdout), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _log(self, number: int) -> Path:
        return self._logs / f"{self.role}-{number}.log"

    def _read(self, number: int, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                event = json.loads(line)
                with self._news:
                    if event["event"] == "ready":
                        self._ready += 1
                    elif event["event"] == "retry":
                        self.retries += 1
                        self.errors.append(event["error"])
                    else:
                        self.heard(number, event)
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def heard(self, number: int, event: dict[str, Any]) -> None:
        """One did what it is there for. Called with the lock held."""
        self.acks.append(Ack(number, event["uid"], event["tid"], event["begun"], event["acknowledged"]))

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def wait_ready(self) -> None:
        """Waits until every one of them is about to begin."""
        self._wait(lambda: self._ready == len(self._processes), f"the {self.role}s to connect")

    def wait_commits(self, since: float, count: int) -> None:
        """Waits until `count` commits that were begun after `since` were acknowledged. CommandError if not."""

        def enough() -> bool:
            recent = 0
            for ack in reversed(self.acks):
                recent += ack.begun > since
                if recent >= count or ack.acknowledged < since:
                    break
            return recent >= count

        self._wait(enough, f"{count} commits after a kill")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        with self._news:
            while not condition():
                self.check_alive()
                left = deadline - time.monotonic()
                if left <= 0:
                    last = f"; last error: {self.errors[-1]}" if self.errors else ""
                    raise CommandError(f"waited {PATIENCE:.0f} s in vain for {what}{last}")
                self._news.wait(min(left, 1.0))

    def check_alive(self) -> None:
        """CommandError when one of them has died."""
        for number, process in enumerate(self._processes):
            if process.poll() is not None and not self._stopping:
                lines = self._log(number).read_text(errors="replace").splitlines()
                raise CommandError(
                    f"{self.role} {number} died ({process.returncode}): {(lines or ['no output'])[-1]}"
                )

    def stop(self) -> None:
        """Lets every writer finish its commit; all of what they said has been read afterwards."""
        self.check_alive()
        self._stopping = True
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for number, process in enumerate(self._processes):
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                raise CommandError(f"{self.role} {number} did not end") from None
            if code != 0:
                raise CommandError(f"{self.role} {number} ended with exit code {code}")
        for thread in self._threads:
            thread.join()

    def kill(self) -> None:
        """Ends whoever still runs."""
        self._stopping = True
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        for thread in self._threads:
            thread.join()


class Readers(Writers):
    """Reader processes and what they have seen."""

    role = "reader"
    module = "raftstorage.ops.drills.reader"

    def __init__(self, count: int, addresses: str, wait_timeout: float, logs: Path) -> None:
        self.reads = 0
        self.wrong: list[str] = []
        super().__init__(count, addresses, wait_timeout, logs)

    def heard(self, number: int, event: dict[str, Any]) -> None:
        if event["event"] == "wrong":
            self.wrong.append(f"reader {number}: {event['what']}")
        else:
            self.reads += event["count"]
