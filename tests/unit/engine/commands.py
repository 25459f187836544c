"""Commands in the log's form, and applying them."""

from __future__ import annotations

from raftstorage.node.engine.api import Z64, Applied, Engine, Position, add_page
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb


def allocate(count: int) -> bytes:
    return pb.Command(allocate=pb.AllocateCommand(count=count)).SerializeToString()


def entry(index: int, command: bytes, term: int = 1) -> Entry:
    return Entry(term, index, EntryKind.COMMAND if command else EntryKind.NOOP, command)


def everything(engine: Engine, max_bytes: int = 1 << 30) -> list[pb.CommittedTransaction]:
    """All that was committed."""
    found: list[pb.CommittedTransaction] = []
    at: Position | None = Position(Z64)
    while at is not None:
        tid, skip = at
        page, at = engine.transactions(tid, None, max_bytes, skip)
        add_page(found, page, skip)
    return found


def feed(engine: StateMachine, *commands: bytes) -> list[Applied]:
    return [engine.apply(entry(engine.applied_index + 1, command)) for command in commands]
