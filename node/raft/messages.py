"""Which messages make sense. What does not is dropped before it can change anything."""

from __future__ import annotations

from .membership import Membership
from .types import EntryKind, Message, MessageType

#: Terms and indexes stay below this, so that nothing a peer sends can push them out of 64 bits.
LIMIT = 1 << 62
#: No cluster holds so many elections while a node is away. Else one message could use all terms up, for good.
MOST_TERMS_AHEAD = 1 << 32

#: An APPEND with this context and no entries only tells the commit index: it is answered only when refused.
TELLS_COMMIT = 1

LEADERS_MESSAGES = frozenset(
    {MessageType.APPEND, MessageType.HEARTBEAT, MessageType.TIMEOUT_NOW, MessageType.SNAPSHOT}
)
CANDIDATES_REQUESTS = frozenset({MessageType.PRE_VOTE, MessageType.VOTE})
#: The rest. They count only from members; a node's question and the requests above may come from one that is no
#: member here yet, or not known to be one any more.
REPLIES = frozenset(
    {
        MessageType.PRE_VOTE_REPLY,
        MessageType.VOTE_REPLY,
        MessageType.APPEND_REPLY,
        MessageType.HEARTBEAT_REPLY,
        MessageType.READ_INDEX,
    }
)

_NEEDS_TERM = LEADERS_MESSAGES | CANDIDATES_REQUESTS


def is_sane(message: Message) -> bool:
    """Could a correct core have sent this? Numbers in range, no term above the sender's, entries in sequence, and
    a membership where one belongs."""
    term, log_term = message.term, message.log_term
    if not (
        1 <= message.from_node < LIMIT
        and (1 if message.type in _NEEDS_TERM else 0) <= term < LIMIT
        and 0 <= message.log_index < LIMIT
        and 0 <= message.commit < LIMIT
        and 0 <= message.hint_index < LIMIT
        and 0 <= log_term <= term
        and 0 <= message.hint_term <= term
        and (message.hint_index == 0) == (message.hint_term == 0)
    ):
        return False
    if message.type is not MessageType.APPEND:
        if message.type is MessageType.SNAPSHOT and not (message.log_index and log_term):
            return False
        return not message.entries
    if (message.log_index == 0) != (log_term == 0):
        return False
    index = message.log_index
    for entry in message.entries:
        index += 1
        if entry.index != index or not max(log_term, 1) <= entry.term <= term:
            return False
        if entry.kind is EntryKind.MEMBERSHIP and not _is_membership(entry.data):
            return False
        log_term = entry.term
    return True


def _is_membership(data: bytes) -> bool:
    try:
        return bool(Membership.decode(data).members)
    except ValueError:
        return False
