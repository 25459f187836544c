"""What the benchmark stores."""

from __future__ import annotations

from persistent import Persistent


class Thing(Persistent):  # type: ignore[misc]
    def __init__(self, payload: bytes) -> None:
        self.payload = payload
