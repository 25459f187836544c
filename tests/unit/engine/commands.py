"""Commands in the log's form, and applying them."""

from __future__ import annotations

from raftstorage.node.engine.api import Z64, Applied, Engine, Position, add_page
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb


def p64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def allocate(count: int) -> bytes:
    return pb.Command(allocate=pb.AllocateCommand(count=count)).SerializeToString()


def run(identity: bytes, tid: bytes, bodies: list[bytes], rest: bytes) -> list[bytes]:
    """The commands of one transaction."""
    entries = [
        pb.Command(fragment=pb.FragmentCommand(transaction_id=identity, tid=tid, number=number, transaction=body))
        for number, body in enumerate(bodies)
    ]
    commit = pb.CommitCommand(transaction_id=identity, tid=tid, transaction=rest, fragments=len(bodies))
    return [each.SerializeToString() for each in [*entries, pb.Command(commit=commit)]]


def change(*writes: int, base: int = 0, size: int = 4, checks: tuple[int, ...] = ()) -> pb.Transaction:
    made = pb.Transaction()
    for oid in writes:
        made.records.add(oid=p64(oid), base_serial=p64(base), data=b"%d" % (oid % 10) * size)
    for oid in checks:
        made.checks.add(oid=p64(oid), serial=p64(base))
    return made


def in_fragments(identity: bytes, tid: int, *parts: pb.Transaction, user: bytes = b"") -> list[bytes]:
    """Every part but the last is a fragment."""
    rest = pb.Transaction(user=user)
    rest.MergeFrom(parts[-1])
    return run(identity, p64(tid), [part.SerializeToString() for part in parts[:-1]], rest.SerializeToString())


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
