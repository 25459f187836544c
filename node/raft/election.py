"""Campaigns and votes (Raft paper 5.2 and 5.4.1; thesis 4.2.3 and 9.6). Functions over a RaftCore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .quorum import has_quorum, is_lost
from .types import HardState, Message, MessageType, Role

if TYPE_CHECKING:
    from .core import RaftCore


def campaign(core: RaftCore, *, pre: bool, transfer: bool = False) -> None:
    """Asks for votes, or with `pre` whether they would be given. `transfer`: the leader ordered it."""
    core.become(Role.PRE_CANDIDATE if pre else Role.CANDIDATE, core.term if pre else core.term + 1)
    if not pre:
        core.vote = core.node_id
    core.votes[core.node_id] = True
    for node in sorted(core.members):
        if any(node in voters for voters in core.voters):
            core.say(
                MessageType.PRE_VOTE if pre else MessageType.VOTE,
                node,
                durable=not pre,  # a vote is asked for only when our own vote for ourselves is durable
                term=core.term + 1 if pre else core.term,
                log_index=core.log.last_index,
                log_term=core.log.last_term,
                transfer=transfer,
            )
    count_votes(core)


def count_votes(core: RaftCore) -> None:
    """Moves on when a majority granted, gives up when none can be reached any more."""
    granted = {node for node, vote in core.votes.items() if vote}
    if core.role is Role.CANDIDATE and core.outbox.durable != HardState(core.term, core.node_id):
        granted.discard(core.node_id)  # our own vote counts when it is on disk
    if has_quorum(core.voters, granted):
        if core.role is Role.PRE_CANDIDATE:
            campaign(core, pre=False)
        else:
            core.become_leader()
    elif is_lost(core.voters, {node for node, vote in core.votes.items() if not vote}):
        core.become_follower(core.term, 0)


def on_request(core: RaftCore, message: Message) -> None:
    """A VOTE in the current term, or a PRE_VOTE that is not behind it. A PRE_VOTE changes nothing here."""
    pre = message.type is MessageType.PRE_VOTE
    grant = (message.log_term, message.log_index) >= (core.log.last_term, core.log.last_index)
    if pre:
        grant = grant and message.term > core.term
    else:
        # The same candidate is answered the same way however often it asks.
        grant = grant and core.vote in (0, message.from_node) and core.leader in (0, message.from_node)
        if grant:
            core.vote = message.from_node
            core.elapsed = 0
    core.say(
        MessageType.PRE_VOTE_REPLY if pre else MessageType.VOTE_REPLY,
        message.from_node,
        durable=True,
        term=message.term if grant else core.term,
        reject=not grant,
    )


def on_reply(core: RaftCore, message: Message) -> None:
    """A PRE_VOTE_REPLY or VOTE_REPLY that is not of an old term."""
    pre = message.type is MessageType.PRE_VOTE_REPLY
    if core.role is not (Role.PRE_CANDIDATE if pre else Role.CANDIDATE):
        return
    if pre and not message.reject and message.term != core.term + 1:
        return  # of an earlier pre-vote
    core.votes.setdefault(message.from_node, not message.reject)
    count_votes(core)
