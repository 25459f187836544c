"""What a drill's writers store."""

from __future__ import annotations

from persistent import Persistent


class Mark(Persistent):  # type: ignore[misc]
    """One commit: its unique id, and the writer's commit before it."""

    def __init__(self, uid: str, previous: Mark | None) -> None:
        self.uid = uid
        self.previous = previous


class Slot(Persistent):  # type: ignore[misc]
    """A writer's place in the database."""

    latest: Mark | None = None
    count = 0
