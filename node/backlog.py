"""What a driver has taken on and not finished: entries to be applied, writes to be made durable. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raftstorage.node.admission import Amount, Tally
from raftstorage.node.raft.types import Persist

#: Writes that may wait for the log's thread. With more, peers are not listened to: whatever they say would add
#: another one, and Raft says again what was lost. A leader's own are bounded by `admission.Bounds`.
MOST_WRITES = Amount(20_000, 256 << 20)


class Backlog:
    def __init__(self) -> None:
        self._proposals: deque[tuple[int, int]] = deque()  # index, bytes: of the term that is led
        self._proposed = Tally()
        self._writes = Tally()

    @property
    def proposed_bytes(self) -> int:
        """Of what was proposed here and is not applied."""
        return self._proposed.bytes

    @property
    def writes(self) -> Amount:
        """That wait to be durable."""
        return self._writes.amount()

    def proposed(self, index: int, data: Sequence[bytes]) -> None:
        """Entries from `index` on."""
        for number, each in enumerate(data, index):
            self._proposals.append((number, len(each)))
            self._proposed.add(len(each))

    def applied(self, index: int) -> None:
        """All up to `index`."""
        while self._proposals and self._proposals[0][0] <= index:
            self._proposed.remove(self._proposals.popleft()[1])

    def lost_leadership(self) -> None:
        """What was proposed may be replaced, and is no measure of anything any more."""
        self._proposals.clear()
        self._proposed = Tally()

    def queued(self, persist: Persist) -> None:
        self._writes.add(_size(persist))

    def durable(self, batch: Sequence[Persist]) -> None:
        for persist in batch:
            self._writes.remove(_size(persist))

    @property
    def deaf(self) -> bool:
        """Shall peers not be listened to?"""
        return self._writes.amount().reaches(MOST_WRITES)


def _size(persist: Persist) -> int:
    return sum(len(entry.data) for entry in persist.entries)
