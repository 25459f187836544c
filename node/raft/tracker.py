"""What a leader knows of each follower."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field


class ProgressState(enum.StrEnum):
    PROBE = "probe"  # one message at a time until the logs are known to agree
    REPLICATE = "replicate"  # pipelined
    SNAPSHOT = "snapshot"  # reserved: the log no longer has what the follower needs


@dataclass(slots=True)
class PeerProgress:
    """`match`: highest index known to be durable there. `next`: what to send next.

    In flight: (last index, bytes) of each APPEND with entries that was not answered.
    """

    next: int
    match: int = 0
    state: ProgressState = ProgressState.PROBE
    recent_active: bool = False
    probe_sent: bool = False
    told_commit: int = 0
    inflight: deque[tuple[int, int]] = field(default_factory=deque)
    inflight_bytes: int = 0

    def sent(self, last_index: int, size: int) -> None:
        self.inflight.append((last_index, size))
        self.inflight_bytes += size

    def acknowledged(self, index: int) -> None:
        """Frees the window of everything up to `index`."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]

    def become_probe(self) -> None:
        self.state = ProgressState.PROBE
        self.probe_sent = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.next = self.match + 1

    def become_replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.probe_sent = False
        self.next = max(self.next, self.match + 1)
