"""Classic mistakes of nodes whose disks are nearly full; see `mutants`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

from raftstorage.node.disk_space import DiskWatcher, Gauge, Handover, Room, Space


def keeps_leadership_without_room() -> AbstractContextManager[object]:
    return mock.patch.object(Handover, "target", lambda self, voters, now: 0)


def takes_writes_without_room() -> AbstractContextManager[object]:
    return mock.patch.object(DiskWatcher, "room", Room.AMPLE)


def never_finds_room_again() -> AbstractContextManager[object]:
    original = Gauge.look

    def look(self: Gauge, space: Space) -> Room:
        if self.room is Room.AMPLE:
            return original(self, space)
        self.space = space
        return self.room

    return mock.patch.object(Gauge, "look", look)
