"""What a follower, or a learner, does with its leader's messages. Functions over a RaftCore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .messages import TELLS_COMMIT
from .types import Message, MessageType, RaftInvariantError, Role

if TYPE_CHECKING:
    from .core import RaftCore


def accept_leader(core: RaftCore, message: Message) -> bool:
    """Follows the sender, the leader of the current term; False for a second one, which there cannot be."""
    if core.role is Role.LEADER or core.leader not in (0, message.from_node):
        return False
    if core.leader == 0:
        core.become_follower(core.term, message.from_node)
    core.elapsed = 0
    return True


def on_heartbeat(core: RaftCore, message: Message) -> None:
    """The leader never tells a commit index here above what it knows this log to have."""
    core.commit_to(min(message.commit, core.log.last_index))
    core.say(MessageType.HEARTBEAT_REPLY, message.from_node, context=message.context)


def on_append(core: RaftCore, message: Message) -> None:
    """Takes entries where the logs agree; else says where they may. RaftInvariantError: committed ones differ."""
    log = core.log
    previous, previous_term, entries = message.log_index, message.log_term, message.entries
    known = core.commit_index - previous
    if known > 0:
        # An old message, or the leader does not know yet how far we are: what is committed is never looked at
        # again, let alone cut.
        if known > len(entries):
            core.say(MessageType.APPEND_REPLY, message.from_node, durable=True, log_index=core.commit_index)
            return
        if entries[known - 1].term != log.term(core.commit_index):
            raise RaftInvariantError(
                f"leader {message.from_node} has entry {core.commit_index} of term {entries[known - 1].term}; "
                f"committed here with term {log.term(core.commit_index)}"
            )
        previous, previous_term, entries = core.commit_index, entries[known - 1].term, entries[known:]
    if not log.matches(previous, previous_term):
        hint = max(log.last_with_term_at_most(previous, previous_term), log.base)
        core.say(
            MessageType.APPEND_REPLY,
            message.from_node,
            durable=True,
            reject=True,
            log_index=previous,
            hint_index=hint,
            hint_term=log.term(hint),
        )
        return
    for position, entry in enumerate(entries):
        if not log.matches(entry.index, entry.term):
            # Only a real conflict cuts the log: an old, shorter message must not (paper 5.3).
            if entry.index <= log.last_index:
                core.truncate(entry.index)
            core.append(entries[position:])
            break
    last = previous + len(entries)
    core.commit_to(min(message.commit, last))
    if entries or message.context != TELLS_COMMIT:
        core.say(MessageType.APPEND_REPLY, message.from_node, durable=True, log_index=last)
