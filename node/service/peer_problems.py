"""What is wrong between this node and its peers: logged once, and kept for a person who asks for the status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: Peers try again all the time: what has not come up for so long is over.
FORGET_SECONDS = 60.0
#: More than this are not kept; the oldest go.
MOST_PROBLEMS = 64


@dataclass(frozen=True, slots=True)
class PeerProblem:
    """Something that keeps two nodes apart.

    `node_id`: the peer, 0: not known. `kind`: why a hello was refused ("hello", "version", "cluster", "node",
    "instance", "busy"); empty: no refusal. `refused_us`: the peer refused this node; else this node says it of
    the peer.
    """

    node_id: int
    text: str
    kind: str = ""
    refused_us: bool = False


class Problems:
    """`clock`: seconds of a clock that nobody sets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # One for each peer and side: the two sides' problems come in turns, and each would look like news.
        self._found: dict[tuple[int, bool], tuple[PeerProblem, float]] = {}

    def add(self, problem: PeerProblem, *, dialling: bool) -> bool:
        """Logs it unless it is what was wrong last, on that side of streams; True: it is news."""
        key = (problem.node_id, dialling)
        last = self._found.pop(key, None)
        self._found[key] = (problem, self._clock())
        while len(self._found) > MOST_PROBLEMS:
            del self._found[next(iter(self._found))]
        if last is not None and last[0] == problem:
            return False
        log.warning("peer %s: %s", problem.node_id or "unknown", problem.text)
        return True

    def solved(self, node_id: int) -> None:
        """A stream with this peer works."""
        for dialling in (True, False):
            self._found.pop((node_id, dialling), None)

    def current(self) -> list[PeerProblem]:
        """What came up lately and is not solved, by node id."""
        since = self._clock() - FORGET_SECONDS
        return sorted(
            (problem for problem, at in self._found.values() if at >= since), key=lambda each: each.node_id
        )
