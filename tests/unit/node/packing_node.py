"""An engine behind a log, with a packer at work beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raftstorage.node.engine import MemoryEngine
from raftstorage.node.engine.api import Z64
from raftstorage.node.packing import Packer
from raftstorage.node.raft.types import Entry, EntryKind, NotLeader
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import p64, run

ONE, TWO = b"1" * 16, b"2" * 16


def record(*oids: int, size: int = 0) -> bytes:
    """A ZODB record that refers to `oids`."""
    refs = b"".join(b"C\x08" + p64(oid) + b"Q" for oid in oids)
    return b"\x80\x03cmodule\nClass\nq\x00.\x80\x03]q\x01(C%c" % size + b"x" * size + refs + b"e."


class Node:
    """An engine behind a log: entries wait in it until `apply`."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.log: list[Entry] = []
        self.term = 1
        self.leads = True
        self.collected: set[int] = set()  # named in the log as garbage
        self.replies: list[pb.Event] = []
        self.packer = Packer(self.engine, self.propose, lambda: self.term, lambda: self.last_index)
        self.now = 1_700_000_000.0
        self._tid = 100

    @property
    def last_index(self) -> int:
        return self.engine.applied_index + len(self.log)

    def propose(self, data: bytes) -> int:
        return self.propose_many([data])

    def propose_many(self, data: Sequence[bytes]) -> int:
        if not self.leads:
            raise NotLeader("no")
        first = self.last_index + 1
        self.log += [Entry(self.term, first + at, EntryKind.COMMAND, each) for at, each in enumerate(data)]
        self.packer.proposed(first, data)
        for each in data:
            garbage = pb.Command.FromString(each).collect.oids
            self.collected |= {int.from_bytes(garbage[at : at + 8], "big") for at in range(0, len(garbage), 8)}
        return first

    def apply(self, most: int = 1 << 30) -> None:
        some, self.log = self.log[:most], self.log[most:]
        for entry in some:
            self.packer.applied([(entry, self.engine.apply(entry))])

    def write(self, objects: dict[int, Iterable[int]], pieces: int = 0, apply: bool = True) -> bytes:
        """Proposes a transaction; an object refers to those it is mapped to. Returns its tid."""
        self._tid += 1
        tid = p64(self._tid)
        transaction = pb.Transaction()
        for oid, refs in objects.items():
            base = self.engine.current_serial(p64(oid)) or Z64
            transaction.records.add(oid=p64(oid), base_serial=base, data=record(*refs))
        body = transaction.SerializeToString()
        self.propose_many(run(tid * 2, tid, [body] if pieces else [], b"" if pieces else body))
        if apply:
            self.apply()
        return tid

    def delete(self, *oids: int) -> None:
        self._tid += 1
        tid, transaction = p64(self._tid), pb.Transaction()
        for oid in oids:
            base = self.engine.current_serial(p64(oid)) or Z64
            transaction.records.add(oid=p64(oid), base_serial=base, no_data=True)
        self.propose_many(run(tid * 2, tid, [], transaction.SerializeToString()))
        self.apply()

    def pack(self, name: bytes = ONE, tid: bytes | None = None, collect: bool = True) -> pb.Event | None:
        """The answer, if it came at once."""
        asked = pb.Pack(pack_id=name, tid=tid or self.engine.last_tid, collect=collect)
        self.packer.pack(asked, self.now, self.replies.append)
        return self.replies.pop() if self.replies else None

    def finish(self) -> None:
        """Steps and applies until nothing is left to do."""
        for _ in range(10_000):
            if not self.packer.step():
                if not self.log:
                    break
                self.apply()
        assert not self.packer.work and not self.log

    def objects(self) -> set[int]:
        """Those that can be read."""
        found, start = set(), b""
        while True:
            page, start = self.engine.current_page(start, b"", 1 << 20)
            found |= {int.from_bytes(each.oid, "big") for each in page}
            if not start:
                return found


def leading() -> Node:
    """One that leads."""
    made = Node()
    made.packer.became_ready()
    return made
