"""Where a peer's message goes. Functions over a RaftCore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import election, following, leading, snapshots
from .messages import CANDIDATES_REQUESTS, LEADERS_MESSAGES, MOST_TERMS_AHEAD, REPLIES, is_sane
from .read_index import Read
from .types import Message, MessageType, Role

if TYPE_CHECKING:
    from .core import RaftCore


def step(core: RaftCore, message: Message) -> None:
    """Takes a message of a peer. What makes no sense is ignored. RaftInvariantError.

    The sender need not be a member of the configuration here, which may be old (thesis 4.2.2): only what would be
    counted must come from one.
    """
    if message.to_node != core.node_id or message.from_node == core.node_id or not is_sane(message):
        return
    if message.type in REPLIES and message.from_node not in core.members:
        _on_leavers_reply(core, message)
        return
    if message.term > core.term + MOST_TERMS_AHEAD:
        return
    if message.term > core.term:
        if message.type in CANDIDATES_REQUESTS and core.hears_leader and not message.transfer:
            return  # thesis 4.2.3: a leader is alive; the sender may be one that was cut off, or removed
        # A pre-vote speaks of a term that nobody is in yet; but its refusal is in the refuser's own term.
        if message.type is not MessageType.PRE_VOTE and (
            message.type is not MessageType.PRE_VOTE_REPLY or message.reject
        ):
            core.become_follower(message.term, message.from_node if message.type in LEADERS_MESSAGES else 0)
    elif message.term < core.term:
        _answer_old_term(core, message)
        return
    _step_current(core, message)


def _on_leavers_reply(core: RaftCore, message: Message) -> None:
    """A reply that counts from members only: it may move on what a leaver is told, and nothing else."""
    leaver = core.leavers.get(message.from_node)
    if leaver is None or message.term != core.term:
        return
    if message.type is MessageType.APPEND_REPLY:
        leading.on_append_reply(core, message, leaver.peer)
    elif message.type is MessageType.HEARTBEAT_REPLY:
        leading.on_heartbeat_reply(core, message, leaver.peer)


def _answer_old_term(core: RaftCore, message: Message) -> None:
    """Tells a sender that is behind which term it is; it steps down or updates itself (paper 5.1)."""
    to = message.from_node
    match message.type:
        case MessageType.APPEND | MessageType.HEARTBEAT | MessageType.SNAPSHOT:
            core.say(MessageType.APPEND_REPLY, to, durable=True, reject=True, log_index=message.log_index)
        case MessageType.PRE_VOTE:
            core.say(MessageType.PRE_VOTE_REPLY, to, durable=True, reject=True)
        case MessageType.VOTE:
            core.say(MessageType.VOTE_REPLY, to, durable=True, reject=True)
        case MessageType.READ_INDEX:
            core.say(MessageType.READ_INDEX_REPLY, to, durable=True, reject=True, context=message.context)


def _step_current(core: RaftCore, message: Message) -> None:
    """A message in this node's term, or a pre-vote's in a later one."""
    match message.type:
        case MessageType.APPEND:
            if following.accept_leader(core, message):
                following.on_append(core, message)
        case MessageType.APPEND_REPLY:
            if core.role is Role.LEADER:
                leading.on_append_reply(core, message, core.peers[message.from_node])
        case MessageType.HEARTBEAT:
            if following.accept_leader(core, message):
                following.on_heartbeat(core, message)
        case MessageType.HEARTBEAT_REPLY:
            if core.role is Role.LEADER:
                leading.on_heartbeat_reply(core, message, core.peers[message.from_node])
        case MessageType.SNAPSHOT:
            if following.accept_leader(core, message):
                snapshots.on_offer(core, message)
        case MessageType.PRE_VOTE | MessageType.VOTE:
            election.on_request(core, message)
        case MessageType.PRE_VOTE_REPLY | MessageType.VOTE_REPLY:
            election.on_reply(core, message)
        case MessageType.READ_INDEX:
            read = Read(message.from_node, message.context, 0)
            if core.role is Role.LEADER:
                core.reads.add(read.node, read.request)
            else:
                core.answer_read(read, None)
        case MessageType.READ_INDEX_REPLY:
            if message.from_node == core.leader and core.own_reads.is_awaited(message.context):
                own = Read(core.node_id, message.context, 0)
                core.answer_read(own, None if message.reject else message.log_index)
        case MessageType.TIMEOUT_NOW:
            if following.accept_leader(core, message) and core.may_campaign:
                election.campaign(core, pre=False, transfer=True)
