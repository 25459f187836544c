"""What an engine must do, said with plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError
from hypothesis import strategies as st
from raftstorage.node.engine.api import Z64, Applied, Conflict, Pack, Packed, Revision
from raftstorage.node.engine.state import MAX_ALLOCATION
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.blob_model import UploadsModel, blobs, crc, fits
from tests.unit.engine.commands import p64

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
        self.pack = Pack()

    def seen(self, oid: bytes) -> list[Kept]:
        """Revisions that no pack took."""
        every, packed = self.revisions.get(oid, []), self.pack.tid
        current = [each for each in every if each.serial <= packed][-1:]
        return [each for each in current if each.data is not None] + [r for r in every if r.serial > packed]

    def serial(self, oid: bytes) -> bytes:
        return seen[-1].serial if (seen := self.seen(oid)) else Z64

    def load_before(self, oid: bytes, tid: bytes) -> Revision | None:
        seen = self.seen(oid)
        older = [each for each in seen if each.serial < tid]
        if older:
            after = seen[len(older)].serial if len(older) < len(seen) else None
            return Revision(older[-1].data, older[-1].serial, after)
        if tid <= self.pack.tid:
            raise Packed(self.pack.tid)
        if not seen:
            raise KeyError(oid)
        return None

    def seen_transactions(self) -> list[pb.CommittedTransaction]:
        found = []
        for each in self.transactions:
            left = pb.CommittedTransaction()
            left.CopyFrom(each)
            if each.tid <= self.pack.tid:
                left.status = b"p"
                del left.records[:]
            for record in each.records if each.tid <= self.pack.tid else []:
                if each.tid in [kept.serial for kept in self.seen(record.oid)]:
                    left.records.append(record)
            for record in left.records:
                hint = record.data_tid
                if hint and hint <= self.pack.tid and hint not in [r.serial for r in self.seen(record.oid)]:
                    record.data_tid = b""
            if left.records or each.tid > self.pack.tid:
                found.append(left)
        return found

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
        if kind == "pack":
            return self.decide_pack(command.pack)
        if kind == "collect":
            return self.decide_collect(command.collect)
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

    def decide_pack(self, command: pb.PackCommand) -> tuple[str, Applied]:
        if len(command.pack_id) != 16 or len(command.tid) != 8:
            return "bad pack", Applied(self.index, refused="?")
        tid, kind = min(command.tid, self.last), "pack to no later time"
        later = tid > (self.pack.tid or Z64)
        if later or (tid == self.pack.tid and command.collect and not self.pack.collect):
            self.pack = Pack(command.pack_id, tid, command.collect)
            kind = "pack" if later else "pack that collects now"
        return kind, Applied(self.index, pack=self.pack)

    def decide_collect(self, command: pb.CollectCommand) -> tuple[str, Applied]:
        if command.pack_id != self.pack.pack_id or not self.pack.collect or self.pack.collected:
            return "garbage of another pack", Applied(self.index, refused="?")
        oids = [command.oids[at : at + 8] for at in range(0, len(command.oids), 8)]
        if len(command.oids) % 8 or oids != sorted(set(oids)) or len(oids) > 1000:
            return "bad garbage", Applied(self.index, refused="?")
        objects, size = self.pack.objects, self.pack.size
        for oid in oids:
            current = self.seen(oid)
            if oid != Z64 and current and current[-1].serial <= self.pack.tid:
                objects, size = objects + 1, size + len(current[-1].data or b"")
                self.revisions[oid][-1] = Kept(current[-1].serial, None)
        self.pack = replace(self.pack, collected=command.last, objects=objects, size=size)
        return "garbage", Applied(self.index, pack=self.pack)

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
