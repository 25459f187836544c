"""Which messages make sense. What does not is dropped before it can change anything."""

from __future__ import annotations

from .types import Message, MessageType

#: Terms and indexes stay below this, so that nothing a peer sends can push them out of 64 bits.
LIMIT = 1 << 62
#: No cluster holds so many elections while a node is away. Else one message could use all terms up, for good.
MOST_TERMS_AHEAD = 1 << 32

#: An APPEND with this context and no entries only tells the commit index: it is answered only when refused.
TELLS_COMMIT = 1

LEADERS_MESSAGES = frozenset({MessageType.APPEND, MessageType.HEARTBEAT, MessageType.TIMEOUT_NOW})
CANDIDATES_REQUESTS = frozenset({MessageType.PRE_VOTE, MessageType.VOTE})

_NEEDS_TERM = LEADERS_MESSAGES | CANDIDATES_REQUESTS


def is_sane(message: Message) -> bool:
    """Could a correct core have sent this? Numbers in range, no term above the sender's, entries in sequence."""
    term, log_term = message.term, message.log_term
    if not (
        (1 if message.type in _NEEDS_TERM else 0) <= term < LIMIT
        and 0 <= message.log_index < LIMIT
        and 0 <= message.commit < LIMIT
        and 0 <= message.hint_index < LIMIT
        and 0 <= log_term <= term
        and 0 <= message.hint_term <= term
    ):
        return False
    if message.type is not MessageType.APPEND:
        return not message.entries
    if (message.log_index == 0) != (log_term == 0):
        return False
    index = message.log_index
    for entry in message.entries:
        index += 1
        if entry.index != index or not max(log_term, 1) <= entry.term <= term:
            return False
        log_term = entry.term
    return True
