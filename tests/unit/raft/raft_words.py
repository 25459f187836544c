"""Entries, messages and memberships in a few words, for traces and failures."""

from __future__ import annotations

from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import Entry, EntryKind, Message, MessageType, Persist


def show_membership(membership: Membership) -> str:
    """`{1,2,3}`, `{1,2 learner 3}`, joint: `{1,4 from 1,2,3}`."""
    parts = [",".join(map(str, sorted(membership.voters)))]
    for word, nodes in (("learner", membership.learners), ("from", membership.outgoing)):
        if nodes:
            parts.append(f"{word} {','.join(map(str, sorted(nodes)))}")
    return "{" + " ".join(parts).strip() + "}"


def show_entry(entry: Entry) -> str:
    match entry.kind:
        case EntryKind.NOOP:
            data = "noop"
        case EntryKind.MEMBERSHIP:
            data = show_membership(Membership.decode(entry.data))
        case EntryKind.COMMAND:
            data = entry.data.decode()
    return f"{entry.index}/{entry.term}:{data}"


def show_persist(persist: Persist) -> str:
    parts = [f"#{persist.ticket}"]
    if persist.hard_state is not None:
        parts.append(f"term {persist.hard_state.term} vote {persist.hard_state.vote or 'none'}")
    if persist.snapshot is not None:
        parts.append(f"base {persist.snapshot.index}/{persist.snapshot.term}")
    if persist.entries:
        parts.append("[" + " ".join(map(show_entry, persist.entries)) + "]")
    if persist.then_send:
        parts.append("then " + ", ".join(f"{m.type.name} to {m.to_node}" for m in persist.then_send))
    return " ".join(parts)


def show(message: Message) -> str:
    parts = [f"{message.from_node}->{message.to_node} {message.type.name} t{message.term}"]
    if message.type in (MessageType.APPEND, MessageType.VOTE, MessageType.PRE_VOTE):
        parts.append(f"after {message.log_index}/{message.log_term}")
    if message.entries:
        parts.append("[" + " ".join(map(show_entry, message.entries)) + "]")
    if message.type in (MessageType.APPEND, MessageType.HEARTBEAT):
        parts.append(f"commit {message.commit}")
    if message.reject:
        parts.append("refused")
    if message.type is MessageType.SNAPSHOT:
        parts.append(f"at {message.log_index}/{message.log_term}")
    if message.type in (MessageType.APPEND_REPLY, MessageType.READ_INDEX_REPLY):
        parts.append(f"at {message.log_index}")
    if message.type is MessageType.APPEND_REPLY and message.reject:
        parts.append(f"hint {message.hint_index}/{message.hint_term}")
    if message.context and message.type is not MessageType.APPEND:
        parts.append(f"for {message.context}")
    if message.transfer:
        parts.append("by order")
    return " ".join(parts)
