"""Raft messages to and from protobuf. What a peer sends is checked here before the core sees it."""

from __future__ import annotations

from raftstorage.node.raft.types import Entry, EntryKind, Message, MessageType
from raftstorage.proto import raft_pb2 as pb

_TYPES = {int(kind): kind for kind in MessageType}
_KINDS = {int(kind): kind for kind in EntryKind}

#: A message's size on the wire beside its entries' data, at most (for queue bounds, not for protocol).
_MESSAGE_OVERHEAD = 128
_ENTRY_OVERHEAD = 32


def size_of(message: Message) -> int:
    """About how many bytes `message` takes on the wire."""
    size = _MESSAGE_OVERHEAD
    for entry in message.entries:
        size += len(entry.data) + _ENTRY_OVERHEAD
    return size


def encode(message: Message) -> pb.RaftMessage:
    return pb.RaftMessage(
        type=message.type.value,  # type: ignore[arg-type]  # the stubs know no plain numbers
        from_node=message.from_node,
        to_node=message.to_node,
        term=message.term,
        log_index=message.log_index,
        log_term=message.log_term,
        entries=[
            pb.LogEntry(
                kind=entry.kind.value,  # type: ignore[arg-type]
                term=entry.term,
                index=entry.index,
                data=entry.data,
            )
            for entry in message.entries
        ],
        commit=message.commit,
        reject=message.reject,
        hint_index=message.hint_index,
        hint_term=message.hint_term,
        context=message.context,
        transfer=message.transfer,
    )


def decode(wire: pb.RaftMessage, *, from_node: int, to_node: int) -> Message | None:
    """The message, or None for one that may not go into the core.

    Refused: a type or an entry kind unknown here, a sender that is not the stream's peer, another receiver, and
    entries in anything but an APPEND or not consecutive behind `log_index`.
    """
    kind = _TYPES.get(wire.type)
    if kind is None or wire.from_node != from_node or wire.to_node != to_node:
        return None
    entries: tuple[Entry, ...] = ()
    if wire.entries:
        if kind is not MessageType.APPEND:
            return None
        decoded = []
        index = wire.log_index
        for entry in wire.entries:
            index += 1
            entry_kind = _KINDS.get(entry.kind)
            if entry_kind is None or entry.index != index:
                return None
            decoded.append(Entry(entry.term, index, entry_kind, entry.data))
        entries = tuple(decoded)
    return Message(
        kind,
        from_node,
        to_node,
        wire.term,
        wire.log_index,
        wire.log_term,
        entries,
        wire.commit,
        wire.reject,
        wire.hint_index,
        wire.hint_term,
        wire.context,
        wire.transfer,
    )
