"""What a commit, whole or in fragments, does to the state."""

from __future__ import annotations

from collections.abc import Mapping

from raftstorage.node.engine.api import Z64, Applied, Conflict
from raftstorage.node.engine.blobs import NoUpload
from raftstorage.node.engine.checking import Refused, check_form, check_pieces, parsed
from raftstorage.node.engine.fragments import Staging
from raftstorage.node.engine.kv import Change
from raftstorage.node.engine.layout import (
    INLINE_BYTES,
    PAGE_OIDS,
    STAGING_KEY,
    Head,
    StoredBlob,
    Stub,
    chunk_key,
    chunk_keys,
    cut,
    page_key,
    read_stub,
    seal,
)
from raftstorage.node.engine.leftovers import Leftovers
from raftstorage.proto import storage_pb2 as pb

Serials = Mapping[bytes, bytes | None]


class Commits(Leftovers):
    """Decides on commits. Changes of the store are collected, those of the attributes made at once."""

    _next_oid: int
    _objects: int

    # ---- commands ------------------------------------------------------------------------------------

    def _commit(self, index: int, commit: pb.CommitCommand, changes: list[Change]) -> Applied:
        """The end of a transaction. If it had fragments, `_staging` is what they left."""
        identity, tid = commit.transaction_id, commit.tid
        first = self.transaction_tid(identity)
        if first is not None:
            return Applied(index, identity, tid=first, repeated=True)
        staging = self._staging or Staging(identity, tid, index)
        try:
            if staging.missing:
                raise NoUpload(staging.missing)
            if staging.refused:
                raise Refused(staging.refused)
            if staging.count != commit.fragments:
                raise Refused("its fragments are not in the entries before it")
            transaction = parsed(commit.transaction)
            check_form(identity, tid, transaction, self._next_oid)
            check_pieces(staging, transaction, last=True)
            self._check_tid(tid)
            current = self._serials(transaction, staging)
            blobs = self._blobs_of(transaction.records)
        except Refused as why:
            return Applied(index, identity, refused=str(why), missing=_missing(why))
        staging.note(self._conflicts(transaction, current))
        conflicts = staging.conflicts(restoring=bool(transaction.tid))
        if conflicts:
            return Applied(index, identity, conflicts=conflicts)
        oids = self._write(staging, transaction, current, blobs, 0, changes)
        info = pb.CommittedTransaction(
            tid=tid,
            status=transaction.status or b" ",
            user=transaction.user,
            description=transaction.description,
            extension=transaction.extension,
        )
        for record in transaction.records[len(transaction.records) - len(oids) :]:
            data_tid = record.data_tid if record.data_tid != Z64 else b""
            info.records.add(oid=record.oid, no_data=record.no_data, data_tid=data_tid)
        head = Head(info, staging.first, staging.pages, staging.paged)
        changes.append(("transactions", tid, head.sealed()))
        order = index.to_bytes(8, "big")
        changes.append(("ids", identity, seal(tid + order)))
        changes.append(("id_order", order, seal(identity)))
        self._objects += staging.objects
        self._next_oid = max(self._next_oid, staging.highest + 1)
        self._last_tid = tid
        if self._staging is not None:  # what its fragments wrote shows now
            self._staging = None
            changes.append(("meta", STAGING_KEY, None))
        return Applied(index, identity, tid=tid, oids=self._changed(head) if head.pages else oids)

    def _fragment(self, index: int, fragment: pb.FragmentCommand, changes: list[Change]) -> Applied:
        """A piece of a transaction; the next one of `_staging`, or the first of another."""
        identity, tid = fragment.transaction_id, fragment.tid
        staging = self._staging
        if staging is None:
            if fragment.number:
                return Applied(index, identity, refused="a fragment that goes on with nothing")
            if len(identity) != 16 or len(tid) != 8:
                return Applied(index, identity, refused="a fragment of a bad transaction id or tid")
            staging = self._staging = Staging(identity, tid, index)
        tid = staging.tid
        staging.count += 1
        oids: tuple[bytes, ...] = ()
        if not staging.refused:
            try:
                transaction = parsed(fragment.transaction)
                if any(each.name not in ("records", "checks") for each, _ in transaction.ListFields()):
                    raise Refused("malformed transaction: a fragment with more than records and checks")
                check_form(identity, tid, transaction, self._next_oid)
                check_pieces(staging, transaction, last=False)
                self._check_tid(tid)
                current = self._serials(transaction, staging)
                blobs = self._blobs_of(transaction.records)
            except Refused as why:
                self._let_go(staging, changes)
                staging.refused, staging.pages, staging.missing = str(why), 0, _missing(why)
            else:
                staging.note(self._conflicts(transaction, current))
                oids = self._write(staging, transaction, current, blobs, staging.first, changes)
                for at in range(0, len(oids), PAGE_OIDS):
                    page = seal(b"".join(oids[at : at + PAGE_OIDS]))
                    changes.append(("pages", page_key(staging.first, staging.pages), page))
                    staging.pages += 1
                staging.paged += len(oids)
        changes.append(("meta", STAGING_KEY, seal(staging.encode())))
        return Applied(index, identity, staged=oids, refused=staging.refused, missing=staging.missing)

    def _check_tid(self, tid: bytes) -> None:
        if tid <= self._last_tid:
            raise Refused(f"tid {tid.hex()} is not above {self._last_tid.hex()}")

    # ---- conflicts -----------------------------------------------------------------------------------

    def _serials(self, transaction: pb.Transaction, staging: Staging) -> dict[bytes, bytes | None]:
        """Current serials of the records' oids; None for one whose data goes on, which was looked at before.

        Refused: an oid that an earlier fragment had.
        """
        found: dict[bytes, bytes | None] = {}
        oids = [record.oid for record in transaction.records]
        keys = self._store.all_at_or_before("records", [oid + staging.tid for oid in oids])
        for oid, key in zip(oids, keys, strict=True):
            if key is None or key[:8] != oid or oid == staging.unfinished:
                found[oid] = None
            elif key[8:] <= self._last_tid and not self._dropped:
                gone = key[8:] <= self._pack.tid and self._has_no_data(key)
                found[oid] = None if gone else key[8:]
            else:
                if key[8:] == staging.tid and self._is_of(key, staging):
                    raise Refused("malformed transaction: an oid twice")
                found[oid] = self.current_serial(oid)
        return found

    def _is_of(self, key: bytes, staging: Staging) -> bool:
        sealed = self._store.get("records", key)
        return sealed is not None and read_stub(key, sealed).fragment == staging.first

    def conflicts(self, transaction: pb.Transaction) -> list[Conflict]:
        """See `api.Engine.conflicts`. A transaction that brings its own tid is a restore: no base serials."""
        if transaction.tid:
            return self._conflicts(transaction, {})
        return self._conflicts(
            transaction, {record.oid: self.current_serial(record.oid) for record in transaction.records}
        )

    def _conflicts(self, transaction: pb.Transaction, current: Serials) -> list[Conflict]:
        """`current`: serials of the records' oids."""
        found = []
        if not transaction.tid:
            for record in transaction.records:
                serial, expected = current[record.oid] or Z64, record.base_serial or Z64
                if serial != expected:
                    found.append(Conflict(record.oid, serial, expected))
        for check in transaction.checks:
            serial, expected = self.current_serial(check.oid) or Z64, check.serial or Z64
            if serial != expected:
                found.append(Conflict(check.oid, serial, expected, reading=True))
        return found

    # ---- writing -------------------------------------------------------------------------------------

    def _write(
        self,
        staging: Staging,
        transaction: pb.Transaction,
        current: Serials,
        blobs: Mapping[bytes, StoredBlob],
        fragment: int,
        changes: list[Change],
    ) -> tuple[bytes, ...]:
        """Puts records into `changes` and their counts into `staging`; returns the oids that are new in it."""
        oids = []
        for record in transaction.records if self._dropped else ():
            if record.oid != staging.unfinished:
                self._write_over(record.oid + staging.tid, changes)
        for record in transaction.records:
            oid, data, key = record.oid, record.data, record.oid + staging.tid
            blob = blobs.get(oid)
            if blob is not None:
                self._take(blob, fragment, changes)
            if oid == staging.unfinished:
                self._write_more(key, data, blob, changes)
            else:
                oids.append(oid)
                if record.no_data:
                    stub = Stub(True, record.data_tid, fragment)
                elif record.more or len(data) > INLINE_BYTES:
                    chunks = _put(key, 0, data, changes)
                    stub = Stub(False, record.data_tid, fragment, None, len(data), chunks, blob)
                else:
                    stub = Stub(False, record.data_tid, fragment, data, blob=blob)
                changes.append(("records", key, stub.sealed()))
                staging.objects += current[oid] is None
                staging.highest = max(staging.highest, int.from_bytes(oid, "big"))
            staging.unfinished = oid if record.more else b""
        return tuple(oids)

    def _write_more(self, key: bytes, data: bytes, blob: StoredBlob | None, changes: list[Change]) -> None:
        """Lengthens the data of a record that an earlier fragment began."""
        stub = read_stub(key, self._needed("records", key))
        chunks = stub.chunks + _put(key, stub.chunks, data, changes)
        stub = stub._replace(size=stub.size + len(data), chunks=chunks, blob=blob)
        changes.append(("records", key, stub.sealed()))

    def _write_over(self, key: bytes, changes: list[Change]) -> None:
        """Removes what a dropped record has apart, whose key is about to be used again."""
        sealed = self._store.get("records", key)
        if sealed is not None and key not in self._being_cleaned:
            stub = read_stub(key, sealed)
            changes += [("data", each, None) for each in chunk_keys(key, stub)]
            self._give_back(stub, changes)


def _missing(why: Refused) -> bytes:
    return why.oid if isinstance(why, NoUpload) else b""


def _put(key: bytes, number: int, data: bytes, changes: list[Change]) -> int:
    """Chunks of `data` from `number` on; returns how many."""
    chunks = list(cut(data))
    for position, chunk in enumerate(chunks, number):
        changes.append(("data", chunk_key(key, position), seal(chunk)))
    return len(chunks)
