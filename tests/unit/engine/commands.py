"""Commands in the log's form, and applying them."""

from __future__ import annotations

from raftstorage.node.engine.api import Applied
from raftstorage.node.engine.state import StateMachine
from raftstorage.proto import storage_pb2 as pb


def allocate(count: int) -> bytes:
    return pb.Command(allocate=pb.AllocateCommand(count=count)).SerializeToString()


def feed(engine: StateMachine, *commands: bytes) -> list[Applied]:
    return [engine.apply(engine.applied_index + 1, command) for command in commands]
