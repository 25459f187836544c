"""What packs may take, said once more from the log alone: which revisions are left, and what was garbage.

No engine in here: the log's entries, and which of its commits came about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.history import Committed
from tests.simulation.records import named, unwrap
from tests.simulation.world import Violation

Z64 = bytes(8)


@dataclass
class Pack:
    pack_id: bytes = b""
    tid: bytes = b""
    collect: bool = False
    over: bool = False  # no more garbage may be named


@dataclass
class Replay:
    """`committed(identity)`: the tid that a transaction has in the end, if it was committed."""

    committed: Callable[[bytes], bytes | None]
    truth: list[Committed] = field(default_factory=list)  # whatever was packed away since
    revisions: dict[bytes, dict[bytes, bytes | None]] = field(
        default_factory=dict
    )  # by oid and tid; None: deleted
    pack: Pack = field(default_factory=Pack)
    packed: set[bytes] = field(default_factory=set)  # every time that was packed to
    collected: set[bytes] = field(default_factory=set)
    _fragments: dict[bytes, list[pb.Transaction]] = field(default_factory=dict)

    def run(self, entries: Iterable[Entry]) -> None:
        """Violation: something was collected that is needed."""
        for entry in entries:
            if entry.kind is not EntryKind.COMMAND or not entry.data:
                continue
            command = pb.Command.FromString(entry.data)
            match command.WhichOneof("kind"):
                case "fragment":
                    part = command.fragment
                    parts = self._fragments.setdefault(part.transaction_id, [])
                    if part.number == 0:
                        parts.clear()
                    parts.append(pb.Transaction.FromString(part.transaction))
                case "commit":
                    self._commit(command.commit)
                case "pack":
                    self._pack(command.pack)
                case "collect":
                    self._collect(entry.index, command.collect)

    def _commit(self, commit: pb.CommitCommand) -> None:
        fragments = self._fragments.pop(commit.transaction_id, [])
        if self.committed(commit.transaction_id) != commit.tid:
            return
        transaction = pb.Transaction.FromString(commit.transaction)
        records: dict[bytes, bytes | None] = {}
        for part in [*fragments, transaction]:
            for record in part.records:
                records[record.oid] = None if record.no_data else (records.get(record.oid) or b"") + record.data
        plain = {oid: None if data is None else unwrap(data) for oid, data in records.items()}
        self.truth.append(Committed(commit.tid, transaction.description, plain))
        for oid, data in plain.items():
            self.revisions.setdefault(oid, {})[commit.tid] = data

    @property
    def _last(self) -> bytes:
        return self.truth[-1].tid if self.truth else Z64

    def _pack(self, command: pb.PackCommand) -> None:
        tid = min(command.tid, self._last)
        again = tid == self.pack.tid and command.collect and not self.pack.collect
        if tid > (self.pack.tid or Z64) or again:
            self.pack = Pack(command.pack_id, tid, command.collect)
            self.packed.add(tid)

    def seen(self, oid: bytes) -> dict[bytes, bytes | None]:
        """Revisions that are left."""
        every = self.revisions.get(oid, {})
        old = [tid for tid in every if tid <= self.pack.tid][-1:]
        return {
            tid: data for tid, data in every.items() if tid > self.pack.tid or (tid in old and data is not None)
        }

    def _collect(self, index: int, command: pb.CollectCommand) -> None:
        if command.pack_id != self.pack.pack_id or not self.pack.collect or self.pack.over:
            return
        self.pack.over = command.last
        oids = [command.oids[at : at + 8] for at in range(0, len(command.oids), 8)]
        needed = self._needed() if oids else set()
        for oid in oids:
            newest = list(self.seen(oid))[-1:]
            if newest and newest[0] <= self.pack.tid:
                if oid in needed:
                    raise Violation(f"entry {index} collects {oid.hex()}, which is needed")
                self.revisions[oid][newest[0]] = None
                self.collected.add(oid)

    def _needed(self) -> set[bytes]:
        """What can be reached from the root as of the pack, and from all that is newer."""
        packed, needed = self.pack.tid, set[bytes]()
        todo = [Z64]
        for oid, every in self.revisions.items():
            newer = [data for tid, data in every.items() if tid > packed]
            todo += [each for data in newer if data is not None for each in named(data)]
            todo += [oid] if newer else []
        while todo:
            oid = todo.pop()
            if oid in needed:
                continue
            needed.add(oid)
            todo += [
                each for tid, data in self.seen(oid).items() if tid <= packed and data for each in named(data)
            ]
        return needed

    def left(self) -> list[Committed]:
        """What can be seen of the truth."""
        found = []
        for each in self.truth:
            records = {oid: data for oid, data in each.records.items() if each.tid in self.seen(oid)}
            if records or each.tid > self.pack.tid:
                found.append(Committed(each.tid, each.identity, records))
        return found


def check_left(replay: Replay, name: str, found: Sequence[pb.CommittedTransaction]) -> None:
    """Violation: a node shows something else than the packs have left."""
    expected = replay.left()
    shown = [
        Committed(
            each.tid,
            each.description,
            {record.oid: None if record.no_data else unwrap(record.data) for record in each.records},
        )
        for each in found
    ]
    if shown != expected:
        some = next((a or b for a, b in _pairs(expected, shown) if a != b), None)
        tid = some.tid.hex() if some is not None else "?"
        raise Violation(f"{name} does not show what packs have left: {len(shown)} transactions, first other {tid}")


def _pairs(
    one: Sequence[Committed], two: Sequence[Committed]
) -> Iterable[tuple[Committed | None, Committed | None]]:
    for at in range(max(len(one), len(two))):
        yield (one[at] if at < len(one) else None, two[at] if at < len(two) else None)
