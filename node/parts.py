"""Large transactions that come in parts: what is held of one, and how the parts are gathered. Pure.

Each part is made into the log's entry when it comes, so that proposing the whole copies next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from raftstorage.node.engine.api import Z64
from raftstorage.node.failures import busy, failure
from raftstorage.proto import HISTORY_LEVEL, PART_OBJECTS
from raftstorage.proto import storage_pb2 as pb

#: Memory that a record or a check takes beside its data: two keys in dictionaries, about.
OBJECT_BYTES = 200
#: A part must bring something: this many are enough for the largest transaction there can be.
MOST_PARTS = 4096
MOST_CHECKS = 1_000_000
#: Blobs that a vote looks for; applying looks for all.
MOST_BLOBS = 256
_SHARDS = 16
#: Transactions under way at once in one session, given up ones included.
MOST_GATHERINGS = 64

Parsed = pb.Transaction | pb.Failure


class Serials(Mapping[bytes, bytes]):
    """Objects and serials, in no promised order. In several dictionaries: one takes 50 ms to grow at a million."""

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: tuple[dict[bytes, bytes], ...] = tuple({} for _ in range(_SHARDS))

    def add(self, oid: bytes, serial: bytes) -> bool:
        """False when the object is there already."""
        shard = self._shards[oid[-1] % _SHARDS]
        if oid in shard:
            return False
        shard[oid] = serial
        return True

    def __getitem__(self, oid: bytes) -> bytes:
        return self._shards[oid[-1] % _SHARDS][oid]

    def __contains__(self, oid: object) -> bool:
        return isinstance(oid, bytes) and oid in self._shards[oid[-1] % _SHARDS]

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self._shards)

    def __len__(self) -> int:
        return sum(map(len, self._shards))


class History:
    """What of a transaction is undo or delete, so that it matters if it restores: oids, the first of a kind."""

    __slots__ = ("_nameless", "_newer")

    def __init__(self) -> None:
        self._newer = b""
        self._nameless = b""

    def note(self, record: pb.NewRecord) -> None:
        if not self._newer and (record.no_data or record.data_tid.strip(b"\0")):
            self._newer = record.oid
        if not self._nameless and record.no_data and not record.base_serial.strip(b"\0"):
            self._nameless = record.oid

    def problem(self, level: int) -> pb.Failure | None:
        """Why a transaction with these that does not restore is refused. `level`: the cluster's feature level."""
        if self._newer and level < HISTORY_LEVEL:
            return failure(pb.UNSUPPORTED, "not all members of the cluster know undo and deletes yet", self._newer)
        if self._nameless:
            return failure(pb.INVALID, "no_data must name the revision that it deletes", self._nameless)
        return None


class Parts:
    """What has come of one transaction: the log's entries, and which objects it writes and checks at which serial.

    A record's data may come in several parts, up to `max_record_bytes`. `size`: bytes as they came; `weight`:
    bytes of memory, about.
    """

    __slots__ = (
        "_commands",
        "_first",
        "_going_on",
        "_going_on_size",
        "_history",
        "_max_record_bytes",
        "blobs",
        "checked",
        "identity",
        "size",
        "weight",
        "written",
    )

    def __init__(self, identity: bytes, max_record_bytes: int) -> None:
        self.identity = identity
        self._max_record_bytes = max_record_bytes
        self._going_on = b""  # oid of the record whose data the next part goes on with
        self._going_on_size = 0
        self._history = History()
        self.blobs: list[pb.NewRecord] = []  # oids and blobs of the first records that have such
        self.written = Serials()
        self.checked = Serials()
        self.size = 0
        self.weight = 0
        self._first = b""  # its entry is made last: it has the tid
        self._commands: list[bytes] = []

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, transaction: pb.Transaction, body: bytes) -> pb.Failure | None:
        """The next part: `transaction` is `body` parsed. A failure when it does not go with those before."""
        number = len(self._commands)
        problem = self._merge(transaction, len(body))
        if problem is None and number == 0:
            self._first = body
            self._commands.append(b"")
        elif problem is None:
            self._commands.append(fragment_command(self.identity, number, body))
        return problem

    def complete(self, rest: pb.Transaction, size: int, level: int) -> pb.Failure | None:
        """What came with the Vote or Commit, in `size` bytes. A failure as `add`'s. `level`: the cluster's."""
        if self._going_on:
            return failure(pb.INVALID, "the last part's record is not complete", self._going_on)
        if len(rest.records) + len(rest.checks) > PART_OBJECTS:
            return failure(pb.INVALID, f"more than {PART_OBJECTS} objects beside the parts")
        problem = None if rest.tid else self._history.problem(level)
        if problem is not None:
            return problem
        return self._merge(rest, size)

    def _merge(self, transaction: pb.Transaction, size: int) -> pb.Failure | None:
        """Takes over which objects it names."""
        written, checked = self.written, self.checked
        if self._going_on and not transaction.records:
            return failure(pb.INVALID, "the record before goes on, but not here", self._going_on)
        for record in transaction.records:
            if record.HasField("blob") and len(self.blobs) < MOST_BLOBS:
                self.blobs.append(pb.NewRecord(oid=record.oid, blob=record.blob))
            if self._going_on:
                problem = self._go_on(record)
                if problem is not None:
                    return problem
                continue
            if not written.add(record.oid, record.base_serial or Z64):
                return failure(pb.INVALID, "an oid is stored twice", record.oid)
            self._history.note(record)
            if record.more:
                self._going_on, self._going_on_size = record.oid, len(record.data)
        for check in transaction.checks:
            if not checked.add(check.oid, check.serial or Z64):
                return failure(pb.INVALID, "an oid is checked twice", check.oid)
        if len(checked) > MOST_CHECKS:
            return failure(pb.INVALID, f"more than {MOST_CHECKS} checks")
        self.size += size
        self.weight += size + OBJECT_BYTES * (len(transaction.records) + len(transaction.checks))
        return None

    def _go_on(self, record: pb.NewRecord) -> pb.Failure | None:
        """More data of the record that the part before ended with."""
        oid, most = self._going_on, self._max_record_bytes
        if record.oid != oid or record.base_serial or record.no_data or record.data_tid:
            return failure(pb.INVALID, "what goes on must have the oid and more data, and nothing else", oid)
        self._going_on_size += len(record.data)
        if self._going_on_size > most:
            return failure(
                pb.TOO_LARGE, f"the record has {self._going_on_size} bytes or more; {most} are allowed", oid
            )
        if not record.more:
            self._going_on = b""
        return None

    def commands(self, tid: bytes) -> list[bytes]:
        """The entries that go before the CommitCommand with `tid`."""
        return [fragment_command(self.identity, 0, self._first, tid), *self._commands[1:]]

    def forget_data(self) -> None:
        """The log has it. The objects' names stay."""
        self._first = b""
        self._commands = []


def fragment_command(identity: bytes, number: int, body: bytes, tid: bytes = b"") -> bytes:
    """A serialized Command with one fragment. Put together by hand: `body` is copied once, not three times."""
    head = pb.FragmentCommand(transaction_id=identity, tid=tid, number=number).SerializeToString()
    head += b"\x22" + _varint(len(body))  # FragmentCommand.transaction
    return b"".join((b"\x1a", _varint(len(head) + len(body)), head, body))  # Command.fragment


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Bytes of one record, of one transaction, of all that one session gathers (as they came), and of all that is
    gathered here (memory). `seconds`: for the next part, or the Vote or Commit, to come."""

    record_bytes: int
    transaction_bytes: int
    session_bytes: int
    bytes: int
    seconds: float


class _Gathering:
    __slots__ = ("deadline", "parts", "refused")

    def __init__(self, identity: bytes, max_record_bytes: int) -> None:
        self.parts = Parts(identity, max_record_bytes)
        self.refused: pb.Failure | None = None  # and why; the parts are dropped
        self.deadline = 0.0


class PartGatherer:
    """Parts on their way, by owner (a session) and transaction id.

    What was refused stays refused with the same answer, for all later parts and for the Vote or Commit, until
    number 0 begins it again: the client hears the first answer first, and it is the true one.
    """

    def __init__(self, limits: PartLimits) -> None:
        self._limits = limits
        self._owners: dict[object, dict[bytes, _Gathering]] = {}
        self.weight = 0

    def add(
        self,
        owner: object,
        identity: bytes,
        number: int,
        body: bytes,
        parse: Callable[[bytes], Parsed],
        now: float,
    ) -> pb.Failure | None:
        """Takes a part; what `parse` finds in its body is held. Why it is refused, or None."""
        if number == 0:
            self.drop(owner, identity)
            full = self._begin(owner, identity)
            if full is not None:
                return full
        gathering = self._owners.get(owner, {}).get(identity)
        if gathering is None:
            return _gone()
        gathering.deadline = now + self._limits.seconds
        if gathering.refused is not None:
            return gathering.refused
        expected = len(gathering.parts)
        if number != expected:
            return self._refuse(gathering, failure(pb.INVALID, f"part {number} came in place of part {expected}"))
        problem = self._full(owner, gathering.parts, len(body))
        if problem is not None:
            return self._refuse(gathering, problem)
        parsed = parse(body)
        if isinstance(parsed, pb.Failure):
            return self._refuse(gathering, parsed)
        before = gathering.parts.weight
        problem = gathering.parts.add(parsed, body)
        self.weight += gathering.parts.weight - before
        return None if problem is None else self._refuse(gathering, problem)

    def take(self, owner: object, identity: bytes, count: int) -> Parts | pb.Failure:
        """What was gathered, for its Vote or Commit, which says how many there were. It is let go of here."""
        gathering = self._owners.get(owner, {}).get(identity)
        self.drop(owner, identity)
        if gathering is None:
            return _gone()
        if gathering.refused is not None:
            return gathering.refused
        if len(gathering.parts) != count:
            return failure(pb.INVALID, f"{len(gathering.parts)} parts came before, not {count}")
        return gathering.parts

    def refuse(self, owner: object, identity: bytes, number: int, why: pb.Failure, now: float) -> pb.Failure:
        """Gathers nothing (more) of this transaction: a part came that cannot be taken. Returns the answer."""
        if number == 0:
            self.drop(owner, identity)
            full = self._begin(owner, identity)
            if full is not None:
                return full
        gathering = self._owners.get(owner, {}).get(identity)
        if gathering is None:
            return why
        gathering.deadline = now + self._limits.seconds
        return gathering.refused or self._refuse(gathering, why)

    def refuse_all(self, why: pb.Failure) -> None:
        """Drops everything: this node can do nothing with it any more."""
        for gathering in self._all():
            if gathering.refused is None:
                self._refuse(gathering, why)

    def drop(self, owner: object, identity: bytes) -> None:
        """The transaction was aborted, or begins again."""
        mine = self._owners.get(owner)
        gathering = mine.pop(identity, None) if mine is not None else None
        if gathering is not None:
            self.weight -= gathering.parts.weight
        if not mine:
            self._owners.pop(owner, None)

    def closed(self, owner: object) -> None:
        """The session is gone."""
        for identity in list(self._owners.get(owner, ())):
            self.drop(owner, identity)

    def tick(self, now: float) -> None:
        """Drops what was not gone on with in time. It was perhaps no mistake: the client may begin again."""
        for owner, mine in list(self._owners.items()):
            for identity, gathering in list(mine.items()):
                if gathering.deadline > now:
                    continue
                if gathering.refused is not None:
                    self.drop(owner, identity)
                else:
                    gathering.deadline = now + self._limits.seconds
                    late = "the next part, or the vote or commit, did not come in time; send all again"
                    self._refuse(gathering, busy(late, retry_after_ms=0))

    def _all(self) -> Iterator[_Gathering]:
        for mine in self._owners.values():
            yield from mine.values()

    def _begin(self, owner: object, identity: bytes) -> pb.Failure | None:
        mine = self._owners.setdefault(owner, {})
        if len(mine) >= MOST_GATHERINGS:
            over = next((each for each, gathering in mine.items() if gathering.refused is not None), None)
            if over is None:
                return busy(f"{MOST_GATHERINGS} transactions of this session are coming in parts already")
            del mine[over]
        mine[identity] = _Gathering(identity, self._limits.record_bytes)
        return None

    def _full(self, owner: object, parts: Parts, size: int) -> pb.Failure | None:
        limits = self._limits
        if parts.size + size > limits.transaction_bytes:
            return failure(
                pb.TOO_LARGE,
                f"the transaction has more than the {limits.transaction_bytes} bytes that are allowed",
            )
        if len(parts) >= MOST_PARTS:
            return failure(pb.TOO_LARGE, f"the transaction has more than {MOST_PARTS} parts")
        if sum(each.parts.size for each in self._owners[owner].values()) + size > limits.session_bytes:
            return busy("this session has too much under way in parts")
        # Whoever has more than half is let through: were it sent again, it would fill the node once more.
        if self.weight + size > limits.bytes and parts.weight + size <= limits.bytes // 2:
            return busy("too much is coming in parts; try again")
        return None

    def _refuse(self, gathering: _Gathering, why: pb.Failure) -> pb.Failure:
        self.weight -= gathering.parts.weight
        gathering.parts = Parts(gathering.parts.identity, 0)
        gathering.refused = why
        return why


def _gone() -> pb.Failure:
    """Not INVALID: they may have been here, too long ago. An earlier attempt may be committed then, and the client
    must ask until it knows."""
    return busy("the parts before are not here, or not any more; send all again", retry_after_ms=0)
