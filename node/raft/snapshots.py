"""When a follower needs entries that the leader's log no longer has (Raft paper, section 7; thesis, chapter 5).

Only the offer goes through the core: the leader says that it has a state, the follower's driver gets one, installs
it, and the follower says where its log begins now. Functions over a RaftCore.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .membership import Membership
from .tracker import PeerProgress
from .types import FetchSnapshot, Message, MessageType, Role, SnapshotBase

if TYPE_CHECKING:
    from .core import RaftCore


def offer(core: RaftCore, node: int, peer: PeerProgress) -> None:
    """The leader's: `node` needs what the log no longer has. Said again whenever it answers a heartbeat."""
    peer.become_snapshot()
    base = core.log.base
    core.say(MessageType.SNAPSHOT, node, log_index=base, log_term=core.log.term(base))


def on_offer(core: RaftCore, message: Message) -> None:
    """The leader thinks that this log lacks the entry at its base, or what follows it."""
    index, term = message.log_index, message.log_term
    if index > core.commit_index and core.log.matches(index, term):
        core.commit_to(index)  # a state covers it, so that it was committed
    if index <= core.commit_index:
        core.say(MessageType.APPEND_REPLY, message.from_node, durable=True, log_index=core.commit_index)
    else:
        core.fetch = FetchSnapshot(message.from_node, index, term)


def install(core: RaftCore, index: int, term: int, membership: Membership) -> bool:
    """See RaftCore.install_snapshot."""
    if index <= core.commit_index or core.role is Role.LEADER:
        return False  # a leader has all that was ever committed
    if term > core.term or core.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
        core.become_follower(max(term, core.term), 0)
    # What was to be acknowledged may be about to go. The leader asks again.
    core.outbox.drop_acknowledgements()
    core.replace_log(SnapshotBase(index, term, membership))
    core.fetch = None
    if core.leader:
        core.say(MessageType.APPEND_REPLY, core.leader, durable=True, log_index=index)
    return True
