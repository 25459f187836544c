"""Raft messages on the wire, and those that may not get through to the core."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftstorage.node.raft.types import Entry, EntryKind, Message, MessageType
from raftstorage.node.service.codec import decode, encode, size_of
from raftstorage.proto import raft_pb2 as pb

NUMBERS = st.integers(0, (1 << 64) - 1)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(MessageType))
    index = draw(st.integers(0, 1 << 40))
    entries: tuple[Entry, ...] = ()
    if kind is MessageType.APPEND:
        parts = draw(st.lists(st.tuples(NUMBERS, st.sampled_from(EntryKind), st.binary(max_size=50)), max_size=5))
        entries = tuple(Entry(term, index + 1 + i, each, data) for i, (term, each, data) in enumerate(parts))
    rest = [draw(NUMBERS), draw(st.booleans()), draw(NUMBERS), draw(NUMBERS), draw(NUMBERS), draw(st.booleans())]
    return Message(kind, 1, 2, draw(NUMBERS), index, draw(NUMBERS), entries, *rest)  # type: ignore[arg-type]


@given(messages())
def test_what_goes_over_the_wire_comes_back_equal(message: Message) -> None:
    wire = pb.RaftMessage.FromString(encode(message).SerializeToString())
    assert decode(wire, from_node=1, to_node=2) == message
    assert len(encode(message).SerializeToString()) <= size_of(message)


APPEND = Message(MessageType.APPEND, 1, 2, 3, 4, 3, (Entry(3, 5, EntryKind.COMMAND, b"x"),))


def test_the_numbers_are_those_of_the_wire() -> None:
    assert {each.name: each.value for each in MessageType} | {"TYPE_UNSPECIFIED": 0} == dict(
        pb.RaftMessage.Type.items()
    )
    assert {each.name: each.value for each in EntryKind} | {"KIND_UNSPECIFIED": 0} == dict(
        pb.LogEntry.Kind.items()
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda wire: setattr(wire, "type", 0),
        lambda wire: setattr(wire, "type", 99),
        lambda wire: setattr(wire, "from_node", 3),
        lambda wire: setattr(wire, "to_node", 3),
        lambda wire: setattr(wire, "type", pb.RaftMessage.VOTE),
        lambda wire: setattr(wire, "log_index", 5),
        lambda wire: setattr(wire.entries[0], "kind", 0),
        lambda wire: setattr(wire.entries[0], "kind", 17),
        lambda wire: setattr(wire.entries[0], "index", 6),
    ],
)
def test_nonsense_stops_here(spoil: Callable[[pb.RaftMessage], None]) -> None:
    wire = encode(APPEND)
    assert decode(wire, from_node=1, to_node=2) == APPEND
    spoil(wire)
    assert decode(wire, from_node=1, to_node=2) is None
