"""What an engine must do, said with plain dictionaries; and a machine that holds engines against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.engine.api import Z64, Applied, Conflict, Position, Revision, add_page
from raftstorage.node.engine.state import MAX_ALLOCATION, RETENTION, StateMachine
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.blob_model import UploadsModel, blob_commands, blobs, check_blobs, crc, fits
from tests.unit.engine.commands import entry, p64

HALF, LAST = 1 << 63, b"\xff" * 8
OIDS = [*range(5), HALF - 1, HALF, HALF + 3, 2 * HALF - 1]


def u64(value: bytes) -> int:
    return int.from_bytes(value, "big")


@dataclass(frozen=True)
class Kept:
    """One revision in the model."""

    serial: bytes
    data: bytes | None
    blob: bytes | None = None


class Model(UploadsModel):
    """What an engine must do, said once more with dictionaries."""

    def __init__(self, retention: int) -> None:
        super().__init__()
        self.retention = retention
        self.index = 0
        self.last = Z64
        self.next_oid = 1
        self.revisions: dict[bytes, list[Kept]] = {}
        self.transactions: list[pb.CommittedTransaction] = []
        self.ids: dict[bytes, tuple[bytes, int]] = {}

    def serial(self, oid: bytes) -> bytes:
        return self.revisions[oid][-1].serial if oid in self.revisions else Z64

    def conflicts(self, transaction: pb.Transaction) -> list[Conflict]:
        asked = [] if transaction.tid else [(each.oid, each.base_serial, False) for each in transaction.records]
        asked += [(each.oid, each.serial, True) for each in transaction.checks]
        return [
            Conflict(oid, self.serial(oid), expected or Z64, reading)
            for oid, expected, reading in asked
            if self.serial(oid) != (expected or Z64)
        ]

    def well_formed(self, commit: pb.CommitCommand, transaction: pb.Transaction) -> bool:
        oids = [each.oid for each in transaction.records]
        serials = [each.base_serial for each in transaction.records] + [each.serial for each in transaction.checks]
        serials += [each.data_tid for each in transaction.records]
        return (
            len(commit.transaction_id) == 16
            and len(commit.tid) == 8
            and transaction.tid in (b"", commit.tid)
            and (not transaction.tid or u64(commit.tid) < HALF)
            and len(transaction.status) <= 1
            and all(map(fits, transaction.records))
            and len(set(oids)) == len(oids)
            and all(len(oid) == 8 for oid in [*oids, *(each.oid for each in transaction.checks)])
            and all(u64(oid) < HALF or u64(oid) < self.next_oid for oid in oids)
            and all(serial == b"" or len(serial) == 8 for serial in serials)
        )

    def apply(self, data: bytes) -> tuple[str, Applied]:
        """What it is, and the outcome; a refusal's text is the engine's own affair."""
        self.index += 1
        try:
            kind, outcome = self.decide(data)
        except DecodeError:
            kind, outcome = "malformed", Applied(self.index, refused="?")
        self.forget()
        return kind, outcome

    def forget(self) -> None:
        """Transaction ids, at an index."""
        for identity, (_tid, index) in list(self.ids.items()):
            if index == self.index - self.retention:
                del self.ids[identity]

    def decide(self, data: bytes) -> tuple[str, Applied]:
        command = pb.Command.FromString(data)
        if not data:
            return "nothing", Applied(self.index)
        kind = command.WhichOneof("kind")
        if kind == "allocate":
            first, count = self.next_oid, command.allocate.count
            if not 1 <= count <= MAX_ALLOCATION or first + count >= 2 * HALF:
                return "bad count", Applied(self.index, refused="?")
            self.next_oid += count
            return "allocated", Applied(self.index, first_oid=p64(first))
        if kind == "blob":
            return self.chunk(command.blob)
        if kind == "expire_uploads":
            return self.expire(command.expire_uploads)
        if kind != "commit":
            return "unknown", Applied(self.index, refused="?")
        commit = command.commit
        identity, tid = commit.transaction_id, commit.tid
        if identity in self.ids:
            return "repeated", Applied(self.index, identity, tid=self.ids[identity][0], repeated=True)
        refused = Applied(self.index, identity, refused="?")
        try:
            transaction = pb.Transaction.FromString(commit.transaction)
        except DecodeError:
            return "malformed", refused
        if not self.well_formed(commit, transaction):
            return "malformed", refused
        if tid <= self.last:
            return "stale tid", refused
        if (missing := self.missing(transaction)) is not None:
            return "no upload", Applied(self.index, identity, refused="?", missing=missing)
        conflicts = self.conflicts(transaction)
        if conflicts:
            return "conflict", Applied(self.index, identity, conflicts=tuple(conflicts))
        self.commit(identity, tid, transaction)
        return "committed", Applied(self.index, identity, tid=tid, oids=tuple(r.oid for r in transaction.records))

    def commit(self, identity: bytes, tid: bytes, transaction: pb.Transaction) -> None:
        kept = pb.CommittedTransaction(tid=tid, status=transaction.status or b" ", user=transaction.user)
        kept.description, kept.extension = transaction.description, transaction.extension
        for record in transaction.records:
            data = None if record.no_data else record.data
            blob = self.take(record)
            self.revisions.setdefault(record.oid, []).append(Kept(tid, data, blob))
            data_tid = record.data_tid if record.data_tid != Z64 else b""
            added = kept.records.add(oid=record.oid, data=data or b"", no_data=data is None, data_tid=data_tid)
            if blob is not None:
                added.blob.CopyFrom(pb.Blob(size=len(blob), crc32c=crc(blob)))
            self.next_oid = max(self.next_oid, u64(record.oid) + 1)
        self.transactions.append(kept)
        self.ids[identity] = (tid, self.index)
        self.last = tid


# ---- what is applied ----------------------------------------------------------------------------------------

identities = [b"%016d" % number for number in range(12)]
texts = st.sampled_from([b"", b"", b"text", b"\xff\x00"])
#: What is wrong with a command; mostly nothing.
flaws = st.sampled_from(
    [""] * 20
    + ["base", "base", "check", "stale tid", "repeated", "oid", "long oid", "twice", "status", "serial"]
    + ["tid", "given tid", "given late", "data_tid", "identity", "body"]
)


@st.composite
def commands(draw: st.DrawFn, model: Model) -> bytes:
    """A commit that fits the model's state, more or less."""
    flaw = draw(flaws)

    def serial(oid: bytes, wrong: bool) -> bytes:
        current = u64(model.serial(oid))
        if wrong:
            return draw(st.sampled_from([p64(max(0, current - 1)), p64(current + 1), b""]))
        return p64(current) if current or draw(st.booleans()) else b""

    step = draw(st.sampled_from([1, 1, 2, 7, 50, 1 << 40]))
    if flaw in ("stale tid", "given late"):
        step = draw(st.sampled_from([0, -1])) if flaw == "stale tid" else HALF
    tid = p64(max(0, min(u64(model.last) + step, 2 * HALF - 1)))
    transaction = pb.Transaction(user=draw(texts), description=draw(texts), status=draw(texts)[:1])
    if flaw.startswith("given") or draw(st.integers(0, 4)) == 4:
        transaction.tid = p64(7) if flaw == "given tid" else tid
    good = [number for number in OIDS if number < max(HALF, model.next_oid)]
    for oid in map(p64, draw(st.lists(st.sampled_from(good), min_size=flaw != "", max_size=4, unique=True))):
        no_data = draw(st.integers(0, 9)) == 9
        record = transaction.records.add(oid=oid, base_serial=serial(oid, flaw == "base"), no_data=no_data)
        record.data = draw(st.binary(max_size=30))
        record.data_tid = draw(st.sampled_from([b"", model.last]))
        if not no_data and draw(st.integers(0, 2)) == 2:
            record.blob.CopyFrom(draw(blobs(model, record)))
    for oid in map(p64, draw(st.lists(st.sampled_from(OIDS), max_size=2))):
        transaction.checks.add(oid=oid, serial=serial(oid, flaw == "check"))
    if flaw in ("oid", "long oid"):
        oid = draw(st.binary(max_size=9)) if flaw == "oid" else p64(draw(st.sampled_from(OIDS[-3:])))
        transaction.records.add(oid=oid) if draw(st.booleans()) else transaction.checks.add(oid=oid)
    elif flaw == "twice" and transaction.records:
        transaction.records.add().CopyFrom(transaction.records[0])
    elif flaw == "status":
        transaction.status = b"pp"
    elif flaw == "tid":
        tid = draw(st.binary(max_size=9))
    elif flaw == "data_tid" and transaction.records:
        transaction.records[0].data_tid = b"123"
    elif flaw == "serial":
        transaction.checks.add(oid=p64(1), serial=b"1")
    body = transaction.SerializeToString()
    if flaw == "body":
        body = draw(mangled(body))
    fresh = [each for each in identities if each not in model.ids] or [b"%016d" % (100 + model.index)]
    names = {"repeated": identities, "identity": [b"", b"short", b"%017d" % 1]}.get(flaw, fresh)
    commit = pb.CommitCommand(transaction_id=draw(st.sampled_from(names)), tid=tid, transaction=body)
    return pb.Command(commit=commit).SerializeToString()


@st.composite
def mangled(draw: st.DrawFn, data: bytes) -> bytes:
    at = draw(st.integers(0, len(data)))
    some = draw(st.binary(max_size=12))
    return draw(
        st.sampled_from([data[:at], data[:at] + some + data[at:], data[:at] + some + data[at + len(some) :], some])
    )


counts = st.sampled_from([0, 1, 3, 4096, MAX_ALLOCATION, MAX_ALLOCATION + 1, 2 * HALF - 1])


def allocate(count: int) -> bytes:
    return pb.Command(allocate=pb.AllocateCommand(count=count)).SerializeToString()


class EngineMachine(RuleBasedStateMachine):
    """`engines`: those that must all do what the model does."""

    engines: list[StateMachine]

    def made(self, retention: int) -> list[StateMachine]:
        return [MemoryEngine(retention)]

    @initialize(retention=st.sampled_from([3, 8, RETENTION]))
    def begin(self, retention: int) -> None:
        self.model = Model(retention)
        self.engines = self.made(retention)

    def feed(self, data: bytes) -> None:
        kind, expected = self.model.apply(data)
        event(kind)
        self.expect(data, kind, expected)

    def expect(self, data: bytes, kind: str, expected: Applied) -> None:
        for engine in self.engines:
            outcome = engine.apply(entry(self.model.index, data))
            assert bool(outcome.refused) == bool(expected.refused), (kind, outcome)
            # Of several reasons to refuse fragments it is the first one that is told.
            names = set(Applied.__slots__) - {"refused", *(["missing"] if kind == "malformed" else [])}
            known, wanted = [{name: getattr(each, name) for name in names} for each in (outcome, expected)]
            assert known == wanted
            with pytest.raises(ValueError, match="cannot follow"):
                engine.apply(entry(self.model.index, data))

    @rule(data=st.data(), count=st.integers(1, 6))
    def commit(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.feed(data.draw(commands(self.model)))

    @rule(data=st.data(), count=st.integers(1, 4))
    def upload(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.feed(data.draw(blob_commands(self.model)))

    @rule(data=st.data())
    def meaningless(self, data: st.DataObject) -> None:
        self.feed(data.draw(st.one_of(st.binary(max_size=60), mangled(data.draw(commands(self.model))))))

    @rule(count=counts)
    def allocate(self, count: int) -> None:
        self.feed(allocate(count))

    @rule(data=st.data())
    def ask_for_conflicts(self, data: st.DataObject) -> None:
        command = pb.Command.FromString(data.draw(commands(self.model)))
        try:
            transaction = pb.Transaction.FromString(command.commit.transaction)
        except DecodeError:
            return
        if self.model.well_formed(command.commit, transaction):
            for engine in self.engines:
                assert engine.conflicts(transaction) == self.model.conflicts(transaction)

    @rule(start=st.integers(-1, 9), stop=st.integers(-1, 9), size=st.sampled_from([0, 1, 60, 150, 1 << 20]))
    def page(self, start: int, stop: int, size: int) -> None:
        every = self.model.transactions
        tids = [Z64, *(each.tid for each in every), LAST]
        low, high = tids[start % len(tids)], None if stop < 0 else tids[stop % len(tids)]
        expected = [each for each in every if low <= each.tid and (high is None or each.tid <= high)]
        for engine in self.engines:
            got: list[pb.CommittedTransaction] = []
            at: Position | None = Position(low)
            while at is not None:
                tid, skip = at
                page, at = engine.transactions(tid, high, size, skip)
                assert page or at is None
                assert len(page) <= 1 or sum(len(r.data) for each in page for r in each.records) <= size
                add_page(got, page, skip)
            assert got == expected

    @rule(after=st.integers(-1, 9), limit=st.integers(0, 9))
    def changed_since(self, after: int, limit: int) -> None:
        every = self.model.transactions
        tids = [Z64, *(each.tid for each in every), LAST]
        tid = tids[after % len(tids)]
        expected = [(each.tid, tuple(r.oid for r in each.records)) for each in every if each.tid > tid]
        for engine in self.engines:
            assert engine.changed_since(tid, limit) == expected[:limit]

    @invariant()
    def reads_answer_as_the_model(self) -> None:
        for engine in getattr(self, "engines", []):
            self.check(engine, self.model)
        assert len({engine.digest() for engine in getattr(self, "engines", [])}) <= 1

    def check(self, engine: StateMachine, model: Model) -> None:
        assert (engine.applied_index, engine.last_tid) == (model.index, model.last)
        assert engine.approximate_size()[1] == len(model.revisions)
        for number in range(13):
            identity = b"%016d" % number
            assert engine.transaction_tid(identity) == model.ids.get(identity, (None,))[0]
        check_blobs(engine, model)
        infos = {each.tid: each for each in model.transactions}
        for oid in map(p64, OIDS):
            self.check_object(engine, oid, model.revisions.get(oid, []), infos)

    def check_object(self, engine: StateMachine, oid: bytes, revisions: Sequence[Kept], infos: Any) -> None:
        if not revisions:
            assert engine.current_serial(oid) is None
            for unknown in (lambda: engine.load_before(oid, LAST), lambda: engine.history(oid, 1)):
                with pytest.raises(KeyError):
                    unknown()
            return
        serials = [each.serial for each in revisions]
        assert engine.current_serial(oid) == serials[-1]
        for position, each in enumerate(revisions):
            following = serials[position + 1] if position + 1 < len(serials) else None
            assert engine.load_before(oid, following or LAST) == Revision(each.data, each.serial, following)
            assert engine.load_before(oid, p64(u64(each.serial) + 1)) == Revision(
                each.data, each.serial, following
            )
            if each.data is None:
                with pytest.raises(KeyError):
                    engine.load_serial(oid, each.serial)
            else:
                assert engine.load_serial(oid, each.serial) == each.data
        assert engine.load_before(oid, serials[0]) is None
        before = p64(u64(serials[-1]) - 1)
        if before not in serials:
            with pytest.raises(KeyError):
                engine.load_serial(oid, before)
        expected = [
            pb.Revision(
                tid=each.serial,
                user=infos[each.serial].user,
                description=infos[each.serial].description,
                extension=infos[each.serial].extension,
                size=len(each.data or b""),
            )
            for each in reversed(revisions)
        ]
        for size in (1, len(revisions), 10_000):
            assert engine.history(oid, size) == (expected[:size], len(expected) > size)

    def teardown(self) -> None:
        for engine in getattr(self, "engines", []):
            engine.close()
