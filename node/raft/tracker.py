"""What a leader knows of each follower."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field


class ProgressState(enum.StrEnum):
    PROBE = "probe"  # one message at a time until the logs are known to agree
    REPLICATE = "replicate"  # pipelined
    SNAPSHOT = "snapshot"  # the log no longer has what the follower needs: it is told where a state is to be had


@dataclass(slots=True)
class PeerProgress:
    """`match`: highest index known to be durable there. `next`: what to send next. `silent_ticks`: since it was
    heard, or since it counts; `heard`: it was, by this leader.

    In flight: (last index, bytes) of each APPEND with entries that was not answered. It holds no entry: what is
    sent again is read from the log again.
    """

    next: int
    match: int = 0
    state: ProgressState = ProgressState.PROBE
    silent_ticks: int = 0
    heard: bool = False
    probe_sent: bool = False
    told_commit: int = 0
    inflight: deque[tuple[int, int]] = field(default_factory=deque)
    inflight_bytes: int = 0

    def hears(self) -> None:
        """Something came from it in this leader's term."""
        self.heard = True
        self.silent_ticks = 0

    def is_live(self, ticks: int) -> bool:
        """Was it heard within so many ticks?"""
        return self.heard and self.silent_ticks <= ticks

    def may_send(self, max_messages: int, max_bytes: int) -> bool:
        """Is there room in the window?"""
        if self.state is ProgressState.PROBE:
            return not self.probe_sent
        return (
            self.state is ProgressState.REPLICATE
            and len(self.inflight) < max_messages
            and self.inflight_bytes < max_bytes
        )

    def sent(self, last_index: int, size: int) -> None:
        """An APPEND with entries up to `last_index` left."""
        self.inflight.append((last_index, size))
        self.inflight_bytes += size
        self.next = last_index + 1

    def acknowledged(self, index: int) -> None:
        """The follower has everything up to `index`, durable."""
        self.match = max(self.match, index)
        self.next = max(self.next, self.match + 1)
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]

    def become_probe(self, next_index: int) -> None:
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.next = max(next_index, self.match + 1)

    def become_replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.probe_sent = False

    def become_snapshot(self) -> None:
        self.become_probe(self.next)
        self.state = ProgressState.SNAPSHOT
