"""One running node process and its ready line."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from typing import IO, Protocol


class Running(Protocol):
    """A started process, as subprocess.Popen has one."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    @property
    def stdout(self) -> IO[str] | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...


class NodeProcess:
    """One running node: its process and the thread that reads its standard output."""

    def __init__(self, popen: Running) -> None:
        if popen.stdout is None:
            raise ValueError("a node's standard output is read")
        self.popen = popen
        self.node_id = 0  # told in the ready line
        self._ready: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(popen.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._ready.put(line)
        self._ready.put(None)

    def wait_ready(self, timeout: float) -> bool:
        """True after the ready line, False when the process ended (its output is closed) or time ran out."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._ready.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            if line is None:
                return False
            with contextlib.suppress(ValueError):  # a line that is no JSON is not the ready line
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == "ready":
                    self.node_id = int(event["node_id"])
                    return True
