"""How a leader hands over (thesis 3.10). Functions over a RaftCore in the leader's role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .types import MessageType

if TYPE_CHECKING:
    from .core import RaftCore


def start(core: RaftCore, to_node: int) -> None:
    """To a voter of the incoming configuration; 0: the best one. Nothing happens if it is none."""
    candidates = core.membership.voters & core.peers.keys()
    if to_node == 0 and candidates:
        to_node = max(candidates, key=lambda node: _fitness(core, node))
    if to_node in candidates:
        core.transferring_to = to_node
        core.transfer_elapsed = 0
        attempt(core)


def _fitness(core: RaftCore, node: int) -> tuple[bool, bool, int, int, int]:
    """One that lives comes first, by the latest heartbeats or at least since the last timeout; then the one that
    lacks least."""
    peer = core.peers[node]
    lately, timeout = 3 * core.config.heartbeat_ticks, core.config.election_ticks
    return peer.is_live(lately), peer.is_live(timeout), peer.match, -peer.silent_ticks, -node


def attempt(core: RaftCore) -> None:
    """Tells the target to campaign at once when it has the whole log."""
    target = core.transferring_to
    if core.peers[target].match == core.log.last_index:
        core.say(MessageType.TIMEOUT_NOW, target)


def tick(core: RaftCore) -> None:
    """Gives up after an election timeout. A leader that should not lead hands over by itself, and steps down when
    nobody took over: they will, when they hear nobody."""
    if core.transferring_to:
        core.transfer_elapsed += 1
        if core.transfer_elapsed >= core.config.election_ticks:
            core.transferring_to = 0
            if not core.may_campaign:
                core.become_follower(core.term, 0)
    elif core.disk_hangs:
        start(core, 0)
