"""What a drill's writers store."""

from __future__ import annotations

from persistent import Persistent


class Mark(Persistent):  # type: ignore[misc]
    """One commit: its unique id, and the writer's commit before it."""

    def __init__(self, uid: str, previous: Mark | None) -> None:
        self.uid = uid
        self.previous = previous


class Draft(Persistent):  # type: ignore[misc]
    """What nothing refers to any more as soon as the next one is stored: garbage for a pack."""

    def __init__(self, text: str) -> None:
        self.text = text


class Slot(Persistent):  # type: ignore[misc]
    """A writer's place in the database."""

    latest: Mark | None = None
    draft: Draft | None = None
    count = 0
