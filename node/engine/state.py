"""The MVCC state machine over an ordered key-value store; both engines are this class.

Layout, every value ending in the CRC32C of all before it:

    records       oid + tid            -> flags (1: no data), data's tid, data
    transactions  tid                  -> CommittedTransaction without the records' data
    ids           transaction id       -> tid, log index
    id_order      log index            -> transaction id
    meta          "state"              -> format, applied index, its term, last tid, next oid, objects
                  "membership"         -> data of the newest MEMBERSHIP entry; not there when there was none

Format 1 had no term and no membership; it is rewritten when it is opened.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
from google.protobuf.message import DecodeError
from raftstorage.node.engine.api import Z64, Applied, Checkpointed, Conflict, EngineError, Revision
from raftstorage.node.engine.kv import FAMILIES, Change, KeyValueStore
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb

#: A transaction id is remembered for this many log entries: far longer than a client keeps asking.
RETENTION = 1 << 20
#: Largest block of oids in one command.
MAX_ALLOCATION = 1 << 20
FORMAT = 2
#: Oids from here on can be stored only after they were given out, and no given tid may be above: a client that
#: names the last oid or tid of all must not leave none for the others.
GIVEN_OUT_ONLY = 1 << 63

_FORMAT = struct.Struct(">I")
_STATE = struct.Struct(">IQQ8sQQ")
_STATE_1 = struct.Struct(">IQ8sQQ")
_STATE_KEY = b"state"
_MEMBERSHIP_KEY = b"membership"
_RECORD_HEAD = struct.Struct(">B8s")
_NO_DATA = 1
_MAX = b"\xff" * 8


def _seal(value: bytes) -> bytes:
    return value + int(google_crc32c.value(value)).to_bytes(4, "big")


def _open(family: str, key: bytes, sealed: bytes) -> bytes:
    value = sealed[:-4]
    if len(sealed) < 4 or int(google_crc32c.value(value)) != int.from_bytes(sealed[-4:], "big"):
        raise EngineError(f"checksum of {family} {key.hex()} does not fit: the stored value is damaged")
    return value


class StateMachine:
    """An `api.Engine` over any KeyValueStore."""

    def __init__(self, store: KeyValueStore, retention: int = RETENTION) -> None:
        self._store = store
        self._retention = retention
        self._durable = threading.Lock()  # flush() may be called in another thread than all else
        try:
            self._read_state()
        except BaseException:
            store.close()
            raise

    def _read_state(self) -> None:
        self._applied_index = self._applied_term = self._durable_index = 0
        self._last_tid = Z64
        self._next_oid = 1  # 0 is the root object
        self._objects = 0
        self._membership = b""
        sealed = self._store.get("meta", _STATE_KEY)
        if sealed is None:
            if any(True for family in FAMILIES for _ in self._store.scan(family, b"")):
                raise EngineError("the database has contents, but no record of what was applied to it")
            return
        value = _open("meta", _STATE_KEY, sealed)
        (form,) = _FORMAT.unpack_from(value)
        if form == 1:
            _form, self._applied_index, self._last_tid, self._next_oid, self._objects = _STATE_1.unpack(value)
            self._store.write([self._state(self._applied_index, 0)])
        elif form == FORMAT:
            (_form, self._applied_index, self._applied_term, self._last_tid, self._next_oid, self._objects) = (
                _STATE.unpack(value)
            )
        else:
            raise EngineError(f"the database has format {form}; this version knows formats up to {FORMAT}")
        membership = self._store.get("meta", _MEMBERSHIP_KEY)
        if membership is not None:
            self._membership = _open("meta", _MEMBERSHIP_KEY, membership)
        self._durable_index = self._applied_index  # a store that was just opened holds what it has on disk

    def _state(self, index: int, term: int) -> Change:
        state = _STATE.pack(FORMAT, index, term, self._last_tid, self._next_oid, self._objects)
        return "meta", _STATE_KEY, _seal(state)

    @property
    def applied_index(self) -> int:
        return self._applied_index

    @property
    def applied_term(self) -> int:
        return self._applied_term

    @property
    def durable_index(self) -> int:
        return self._durable_index

    @property
    def membership(self) -> bytes:
        return self._membership

    @property
    def last_tid(self) -> bytes:
        return self._last_tid

    # ---- applying ------------------------------------------------------------------------------------

    def apply(self, entry: Entry) -> Applied:
        """See `api.Engine.apply`."""
        index = entry.index
        if index != self._applied_index + 1:
            raise ValueError(f"entry {index} cannot follow applied entry {self._applied_index}")
        changes: list[Change] = []
        if entry.kind is EntryKind.COMMAND:
            outcome = self._decide(index, entry.data, changes)
        elif entry.kind is EntryKind.MEMBERSHIP:
            outcome = Applied(index, membership=entry.data)
            changes.append(("meta", _MEMBERSHIP_KEY, _seal(entry.data)))
            self._membership = entry.data
        else:
            outcome = Applied(index)
        expired = index - self._retention
        if expired > 0:
            key = expired.to_bytes(8, "big")
            old = self._store.get("id_order", key)
            if old is not None:
                changes += [("id_order", key, None), ("ids", _open("id_order", key, old), None)]
        changes.append(self._state(index, entry.term))
        self._store.write(changes)
        # Last: a flush() in another thread takes it for what the store holds.
        self._applied_index, self._applied_term = index, entry.term
        return outcome

    def _decide(self, index: int, data: bytes, changes: list[Change]) -> Applied:
        if not data:
            return Applied(index)
        try:
            command = pb.Command.FromString(data)
            kind = command.WhichOneof("kind")
            if kind == "commit":
                return self._commit(index, command.commit, changes)
        except DecodeError:  # its text depends on the protobuf version, an outcome must not
            return Applied(index, refused="malformed command")
        if kind != "allocate":
            return Applied(index, refused="a command of a kind that this version does not know")
        count = command.allocate.count
        if not 1 <= count <= MAX_ALLOCATION:
            return Applied(index, refused=f"{count} oids asked for; 1 to {MAX_ALLOCATION} can be had at once")
        first = self._next_oid
        if first + count >= 1 << 64:
            return Applied(index, refused="no oids are left")
        self._next_oid += count
        return Applied(index, first_oid=first.to_bytes(8, "big"))

    def _commit(self, index: int, commit: pb.CommitCommand, changes: list[Change]) -> Applied:
        identity, tid = commit.transaction_id, commit.tid
        first = self.transaction_tid(identity)
        if first is not None:
            return Applied(index, identity, tid=first, repeated=True)
        try:
            transaction = pb.Transaction.FromString(commit.transaction)
        except DecodeError:
            return Applied(index, identity, refused="malformed transaction")
        why = self._malformed(commit, transaction)
        if why:
            return Applied(index, identity, refused=f"malformed transaction: {why}")
        if tid <= self._last_tid:
            return Applied(index, identity, refused=f"tid {tid.hex()} is not above {self._last_tid.hex()}")
        oids = tuple(record.oid for record in transaction.records)
        current = {oid: self.current_serial(oid) for oid in oids}
        conflicts = tuple(self._conflicts(transaction, current))
        if conflicts:
            return Applied(index, identity, conflicts=conflicts)
        info = pb.CommittedTransaction(
            tid=tid,
            status=transaction.status or b" ",
            user=transaction.user,
            description=transaction.description,
            extension=transaction.extension,
        )
        for record in transaction.records:
            info.records.add(oid=record.oid, no_data=record.no_data, data_tid=record.data_tid)
            head = _RECORD_HEAD.pack(_NO_DATA if record.no_data else 0, record.data_tid.rjust(8, b"\0"))
            data = b"" if record.no_data else record.data
            changes.append(("records", record.oid + tid, _seal(head + data)))
            if current[record.oid] is None:
                self._objects += 1
            self._next_oid = max(self._next_oid, int.from_bytes(record.oid, "big") + 1)
        changes.append(("transactions", tid, _seal(info.SerializeToString(deterministic=True))))
        order = index.to_bytes(8, "big")
        changes.append(("ids", identity, _seal(tid + order)))
        changes.append(("id_order", order, _seal(identity)))
        self._last_tid = tid
        return Applied(index, identity, tid=tid, oids=oids)

    def _malformed(self, commit: pb.CommitCommand, transaction: pb.Transaction) -> str:
        """Why it cannot be applied, whatever the state; empty when it can."""
        oids = {record.oid for record in transaction.records}
        numbers = [int.from_bytes(oid, "big") for oid in oids]
        if len(commit.transaction_id) != 16:
            return "a transaction id has 16 bytes"
        if len(commit.tid) != 8 or (transaction.tid and transaction.tid != commit.tid):
            return "bad tid"
        if transaction.tid and int.from_bytes(transaction.tid, "big") >= GIVEN_OUT_ONLY:
            return "a given tid that is too large"
        if len(transaction.status) > 1:
            return "a status has one byte"
        if len(oids) != len(transaction.records):
            return "an oid twice"
        if any(len(oid) != 8 for oid in oids) or any(len(check.oid) != 8 for check in transaction.checks):
            return "an oid has 8 bytes"
        if numbers and max(numbers) >= max(GIVEN_OUT_ONLY, self._next_oid):
            return "an oid that was not given out"
        serials = [each.base_serial for each in transaction.records]
        serials += [each.data_tid for each in transaction.records]
        serials += [each.serial for each in transaction.checks]
        if any(len(serial) not in (0, 8) for serial in serials):
            return "a serial has 8 bytes"
        return ""

    def conflicts(self, transaction: pb.Transaction) -> list[Conflict]:
        """See `api.Engine.conflicts`. A transaction that brings its own tid is a restore: no base serials."""
        if transaction.tid:
            return self._conflicts(transaction, {})
        return self._conflicts(
            transaction, {record.oid: self.current_serial(record.oid) for record in transaction.records}
        )

    def _conflicts(self, transaction: pb.Transaction, current: dict[bytes, bytes | None]) -> list[Conflict]:
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

    # ---- reading -------------------------------------------------------------------------------------

    def _record(self, key: bytes, sealed: bytes) -> tuple[bytes | None, bytes]:
        """(data or None, tid whose data it repeats)."""
        value = _open("records", key, sealed)
        flags, data_tid = _RECORD_HEAD.unpack_from(value)
        return (None if flags & _NO_DATA else value[_RECORD_HEAD.size :]), data_tid

    def load_before(self, oid: bytes, tid: bytes) -> Revision | None:
        """See `api.Engine.load_before`."""
        if len(oid) != 8 or len(tid) != 8:  # other lengths would split into another oid and tid
            raise KeyError(oid)
        following: bytes | None
        if tid == Z64:
            found, following = None, self._first_key(oid)
        else:
            bound = (int.from_bytes(tid, "big") - 1).to_bytes(8, "big")
            found, following = self._store.around("records", oid + bound)
        younger = following is not None and following[:8] == oid
        if found is None or found[0][:8] != oid:
            if younger:
                return None
            raise KeyError(oid)
        key, sealed = found
        data, _data_tid = self._record(key, sealed)
        return Revision(data, key[8:], following[8:] if younger and following is not None else None)

    def _first_key(self, oid: bytes) -> bytes | None:
        return next((key for key, _ in self._store.scan("records", oid + Z64)), None)

    def load_serial(self, oid: bytes, serial: bytes) -> bytes:
        """See `api.Engine.load_serial`."""
        key = oid + serial
        sealed = self._store.get("records", key) if len(oid) == len(serial) == 8 else None
        data = None if sealed is None else self._record(key, sealed)[0]
        if data is None:
            raise KeyError((oid, serial))
        return data

    def current_serial(self, oid: bytes) -> bytes | None:
        """See `api.Engine.current_serial`."""
        found = self._store.at_or_before("records", oid + _MAX)
        return found[8:] if found is not None and found[:8] == oid else None

    def history(self, oid: bytes, size: int) -> list[pb.Revision]:
        """See `api.Engine.history`."""
        revisions = []
        pairs = self._store.scan_back("records", oid + _MAX)
        for key, sealed in itertools.islice(pairs, size):
            if key[:8] != oid:
                break
            data, _data_tid = self._record(key, sealed)
            info = self._transaction(key[8:])
            revisions.append(
                pb.Revision(
                    tid=info.tid,
                    user=info.user,
                    description=info.description,
                    extension=info.extension,
                    size=len(data or b""),
                )
            )
        if not revisions:
            raise KeyError(oid)
        return revisions

    def transaction_tid(self, transaction_id: bytes) -> bytes | None:
        """See `api.Engine.transaction_tid`."""
        sealed = self._store.get("ids", transaction_id)
        return None if sealed is None else _open("ids", transaction_id, sealed)[:8]

    def _transaction(self, tid: bytes) -> pb.CommittedTransaction:
        sealed = self._store.get("transactions", tid)
        if sealed is None:
            raise EngineError(f"transaction {tid.hex()} is missing")
        return pb.CommittedTransaction.FromString(_open("transactions", tid, sealed))

    def _infos(self, start: bytes) -> Iterator[pb.CommittedTransaction]:
        for key, sealed in self._store.scan("transactions", start):
            yield pb.CommittedTransaction.FromString(_open("transactions", key, sealed))

    def transactions(
        self, start: bytes, stop: bytes | None, max_bytes: int
    ) -> tuple[list[pb.CommittedTransaction], bool]:
        """See `api.Engine.transactions`."""
        page: list[pb.CommittedTransaction] = []
        size = 0
        for info in self._infos(start):
            if stop is not None and info.tid > stop:
                break
            size += info.ByteSize()
            for record in info.records:
                if size > max_bytes and page:
                    return page, True
                if not record.no_data:
                    record.data = self._stored(record.oid, info.tid)
                    size += len(record.data)
            if size > max_bytes and page:
                return page, True
            page.append(info)
        return page, False

    def _stored(self, oid: bytes, tid: bytes) -> bytes:
        """Data of a record that a transaction says it has."""
        try:
            return self.load_serial(oid, tid)
        except KeyError:
            raise EngineError(f"record {oid.hex()} of transaction {tid.hex()} is missing") from None

    def changed_since(self, tid: bytes, limit: int) -> list[tuple[bytes, tuple[bytes, ...]]]:
        """See `api.Engine.changed_since`."""
        if tid == _MAX:
            return []
        above = (int.from_bytes(tid, "big") + 1).to_bytes(8, "big")
        return [
            (info.tid, tuple(record.oid for record in info.records))
            for info in itertools.islice(self._infos(above), limit)
        ]

    def approximate_size(self) -> tuple[int, int]:
        """See `api.Engine.approximate_size`."""
        return self._store.bytes_used(), self._objects

    def digest(self) -> bytes:
        """See `api.Engine.digest`."""
        total = hashlib.sha256()
        for family in FAMILIES:
            total.update(family.encode())
            for key, value in self._store.scan(family, b""):
                total.update(len(key).to_bytes(4, "big") + key + len(value).to_bytes(4, "big") + value)
        return total.digest()

    # ---- on disk -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """See `api.Engine.flush`."""
        store, index = self._holding()
        store.flush()
        self._is_durable(store, index)

    def _holding(self) -> tuple[KeyValueStore, int]:
        """The store, and an index up to which it holds everything."""
        with self._durable:
            return self._store, self._applied_index

    def _is_durable(self, store: KeyValueStore, index: int) -> None:
        with self._durable:
            if store is self._store:  # else another one was adopted meanwhile
                self._durable_index = max(self._durable_index, index)

    def checkpoint(self, directory: Path) -> Checkpointed:
        """See `api.Engine.checkpoint`."""
        self._store.checkpoint(directory)
        self._is_durable(self._store, self._applied_index)
        return Checkpointed(self._applied_index, self._applied_term, self._membership)

    def adopt(self, store: KeyValueStore) -> KeyValueStore:
        """See `api.Engine.adopt`."""
        with self._durable:
            old, self._store = self._store, store
            try:
                self._read_state()
            except BaseException:
                self._store = old
                self._read_state()
                raise
        return old

    def close(self) -> None:
        """Releases the store."""
        self._store.close()
