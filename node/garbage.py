"""Which objects are garbage: found by a leader that follows references. Pure; in small steps.

Garbage is what cannot be reached from the root as of the pack, nor from anything newer. The leader proposes what
it did not reach; no node removes what was changed since the pack. What commits refer to while it looks counts as
reached from the moment they are proposed: before an entry that names garbage, the log has only commits that were
looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from raftstorage.node.engine.api import Z64, Engine
from raftstorage.node.engine.references import scan
from raftstorage.node.engine.wrapped import unwrap
from raftstorage.node.raft.types import NotLeader
from raftstorage.proto import storage_pb2 as pb

#: About how many objects one entry collects: applying it takes some milliseconds.
BATCH = 250
#: Objects looked at in one step of collecting: up to 1 ms.
STEP = 32
#: Bytes of proposed commits that wait to be looked at. With more, they are read from the database later.
MOST_PENDING = 32 << 20

_PAGE_BITS = 10
_PAGE_MASK = (1 << _PAGE_BITS) - 1


class Marks:
    """A set of oids, a bit for each, and which of them were not visited yet."""

    def __init__(self) -> None:
        self._marked: dict[int, int] = {}
        self._grey: dict[int, int] = {}
        self.visited = 0

    def add(self, oid: bytes) -> None:
        number = int.from_bytes(oid, "big")
        page, bit = number >> _PAGE_BITS, 1 << (number & _PAGE_MASK)
        marked = self._marked.get(page, 0)
        if not marked & bit:
            self._marked[page] = marked | bit
            self._grey[page] = self._grey.get(page, 0) | bit

    def __contains__(self, oid: bytes) -> bool:
        number = int.from_bytes(oid, "big")
        return bool(self._marked.get(number >> _PAGE_BITS, 0) >> (number & _PAGE_MASK) & 1)

    def take(self) -> bytes | None:
        """One that was not visited, which it is now; neighbours one after the other."""
        if not self._grey:
            return None
        page, grey = next(iter(self._grey.items()))
        lowest = grey & -grey
        if grey == lowest:
            del self._grey[page]
        else:
            self._grey[page] = grey ^ lowest
        self.visited += 1
        return (page << _PAGE_BITS | lowest.bit_length() - 1).to_bytes(8, "big")


class Unreadable(Exception):
    """Why garbage cannot be told from what is needed."""


class Collector:
    """Looks for the garbage of the engine's newest pack, on a leader. `last_index`: of the log, when it begins.

    Somebody has to tell it of every entry that is proposed from then on (`proposed`), and call `step`.
    """

    def __init__(self, engine: Engine, propose: Callable[[bytes], int], last_index: int) -> None:
        self._engine = engine
        self._propose = propose
        self.pack = engine.pack
        self._marks = Marks()
        self._tid = self.pack.tid  # all transactions up to it were looked at, or are not newer than the pack
        self._barrier = last_index
        self._pending: deque[tuple[int, bytes]] = deque()
        self._pending_bytes = 0
        self._behind = True  # entries up to the barrier are to be read from the engine
        self._work = self._run()
        self._looked = 0
        #: Objects, about.
        self.total = engine.approximate_size()[1]
        self._collecting = False
        self.problem = ""
        self.over = False
        #: The log takes nothing now: leadership is being handed over, and it may come to nothing. Try again soon.
        self.refused = False

    def state(self) -> tuple[str, int]:
        """Phase, and how many objects were done in it."""
        return ("collecting", self._looked) if self._collecting else ("marking", self._marks.visited)

    def proposed(self, index: int, data: Sequence[bytes]) -> None:
        """Entries from `index` on."""
        self._pending.extend(enumerate(data, index))
        self._pending_bytes += sum(map(len, data))
        if self._pending_bytes > MOST_PENDING:
            self._barrier = index + len(data) - 1
            self._behind = True
            self._pending.clear()
            self._pending_bytes = 0

    def step(self) -> bool:
        """Up to a millisecond of work. False: it has to wait for entries to be applied, or is over."""
        try:
            return next(self._work)
        except StopIteration:
            self.over = True
            return False

    # Generators that yield after each bit of work, False when there is none before something is applied.

    def _run(self) -> Iterator[bool]:
        try:
            yield from self._settle()
            if self._engine.pieces_at_pack(Z64) is None:
                raise Unreadable("there was no root object at the time packed to")
            self._marks.add(Z64)
            yield from self._settle()
            self._collecting = True
            yield from self._collect()
        except Unreadable as why:
            self.problem = f"garbage was not collected: {why}"
            while not self._propose_garbage([], last=True):
                yield False

    def _settle(self) -> Iterator[bool]:
        """Returns when all that is marked was visited, and all that was proposed looked at."""
        while True:
            if self._behind:
                yield from self._catch_up()
            elif self._pending:
                index, data = self._pending.popleft()
                self._pending_bytes -= len(data)
                yield from self._look_at(index, data)
            else:
                oid = self._marks.take()
                if oid is None:
                    return
                pieces = self._engine.pieces_at_pack(oid)
                if pieces is not None:
                    yield from self._read(oid, pieces)
                yield True

    def _catch_up(self) -> Iterator[bool]:
        """What was committed since the pack, up to the barrier."""
        while page := self._engine.changed_since(self._tid, 100):
            for tid, oids in page:
                yield from self._visit(tid, oids)
                self._tid = tid
            yield True
        if self._engine.applied_index >= self._barrier:
            self._behind = False
        else:
            yield False

    def _visit(self, tid: bytes, oids: Iterable[bytes]) -> Iterator[bool]:
        for oid in oids:
            try:
                pieces = self._engine.pieces(oid, tid)
            except KeyError:
                continue  # a deletion
            yield from self._read(oid, pieces)
            yield True

    def _look_at(self, index: int, data: bytes) -> Iterator[bool]:
        """A command that was proposed."""
        commit = pb.Command.FromString(data).commit
        if commit.fragments:  # it came in pieces: read when it is there
            while self._engine.applied_index < index:
                yield False
            for tid, oids in self._engine.changed_since(before(commit.tid), 1):
                if tid == commit.tid:
                    yield from self._visit(tid, oids)
            return
        for record in pb.Transaction.FromString(commit.transaction).records:
            if not record.no_data:
                yield from self._read(record.oid, iter((record.data,)))
        yield True

    def _read(self, oid: bytes, pieces: Iterator[bytes]) -> Iterator[bool]:
        parts: list[bytes] = []
        for part in pieces:
            if parts:
                yield True
            parts.append(part)
        inside: list[bytes] = []
        found: list[bytes] = []
        try:
            for _ in unwrap(b"".join(parts), inside):
                yield True
            for _ in scan(inside[0], found):
                yield True
        except ValueError as error:
            raise Unreadable(f"the references of object {oid.hex()} cannot be read ({error})") from None
        for each in found:
            self._marks.add(each)

    def _collect(self) -> Iterator[bool]:
        start, garbage, proposed = b"", list[bytes](), 0
        while True:
            oids, start = self._engine.unchanged(start, STEP)
            self._looked += STEP
            garbage += [oid for oid in oids if oid not in self._marks]
            if len(garbage) >= BATCH or not start:
                while self._engine.applied_index < proposed:
                    yield False
                yield from self._settle()
                # From here on to the proposal nothing else happens.
                while (garbage := [oid for oid in garbage if oid not in self._marks]) or not start:
                    if index := self._propose_garbage(garbage, last=not start):
                        proposed = index
                        break
                    yield False
                    yield from self._settle()
                garbage = []
                if not start:
                    return
            yield True

    def _propose_garbage(self, oids: list[bytes], last: bool) -> int:
        """Its index; 0: it was refused."""
        command = pb.CollectCommand(pack_id=self.pack.pack_id, oids=b"".join(oids), last=last)
        try:
            index = self._propose(pb.Command(collect=command).SerializeToString())
        except NotLeader:
            self.refused = True
            return 0
        self.refused = False
        return index


def before(tid: bytes) -> bytes:
    return (int.from_bytes(tid, "big") - 1).to_bytes(8, "big")
