"""The MVCC state machine over an ordered key-value store; both engines are this class."""

from __future__ import annotations

import threading
from pathlib import Path

from google.protobuf.message import DecodeError
from raftstorage.node.engine.api import Applied, Checkpointed, EngineError
from raftstorage.node.engine.kv import FAMILIES, Change, KeyValueStore
from raftstorage.node.engine.layout import FORMAT, MEMBERSHIP_KEY, STATE_KEY, State, read_state, seal, unseal
from raftstorage.node.engine.listing import Listing
from raftstorage.node.engine.packing import Packing
from raftstorage.node.engine.verifying import Verifying
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb

#: A transaction id is remembered for this many log entries: far longer than a client keeps asking.
RETENTION = 1 << 20
#: Largest block of oids in one command.
MAX_ALLOCATION = 1 << 20


class StateMachine(Packing, Listing, Verifying):
    """An `api.Engine` over any KeyValueStore."""

    def __init__(self, store: KeyValueStore, retention: int = RETENTION) -> None:
        self._store = store
        self._retention = retention
        self._durable = threading.Lock()  # flush() may be called in another thread than all else
        try:
            self._read()
        except BaseException:
            store.close()
            raise

    def _read(self) -> None:
        """Takes everything from the store, which was just opened."""
        sealed = self._store.get("meta", STATE_KEY)
        if sealed is None:
            if any(True for family in FAMILIES for _ in self._store.scan(family, b"")):
                raise EngineError("the database has contents, but no record of what was applied to it")
            state = State()
        else:
            state, form = read_state(sealed)
            if form != FORMAT:
                self._store.write([("meta", STATE_KEY, state.sealed())])
        membership = self._store.get("meta", MEMBERSHIP_KEY)
        self._membership = b"" if membership is None else unseal("meta", MEMBERSHIP_KEY, membership)
        self._read_staging()
        self._read_packing()
        self._counts = {}
        self._applied_index, self._applied_term, self._last_tid, self._next_oid, self._objects = state
        self._durable_index = self._applied_index  # a store that was just opened holds what it has on disk

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

    @property
    def congested(self) -> bool:
        """See `api.Engine.congested`."""
        return self._store.congested

    def apply(self, entry: Entry) -> Applied:
        """See `api.Engine.apply`."""
        index = entry.index
        if index != self._applied_index + 1:
            raise ValueError(f"entry {index} cannot follow applied entry {self._applied_index}")
        self._counts.clear()  # what it held is written
        cleaning, left = self._clean()
        changes: list[Change] = []
        outcome = self._decide(entry, changes)
        expired = index - self._retention
        if expired > 0:
            key = expired.to_bytes(8, "big")
            old = self._store.get("id_order", key)
            if old is not None:
                changes += [("id_order", key, None), ("ids", unseal("id_order", key, old), None)]
        state = State(index, entry.term, self._last_tid, self._next_oid, self._objects)
        changes.append(("meta", STATE_KEY, state.sealed()))
        self._store.write(cleaning + changes)
        self._cleaned(left)
        # Last: a flush() in another thread takes it for what the store holds.
        self._applied_index, self._applied_term = index, entry.term
        return outcome

    def _decide(self, entry: Entry, changes: list[Change]) -> Applied:
        index = entry.index
        command: pb.Command | None = pb.Command()
        if entry.kind is EntryKind.COMMAND:
            try:
                command = pb.Command.FromString(entry.data)
            except DecodeError:
                command = None
        if command is None or (self._staging is not None and not self._staging.goes_on(command)):
            self._drop(changes)
        if entry.kind is EntryKind.MEMBERSHIP:
            changes.append(("meta", MEMBERSHIP_KEY, seal(entry.data)))
            self._membership = entry.data
            return Applied(index, membership=entry.data)
        if entry.kind is not EntryKind.COMMAND or not entry.data:
            return Applied(index)
        if command is None:  # the error's text depends on the protobuf version, an outcome must not
            return Applied(index, refused="malformed command")
        match command.WhichOneof("kind"):
            case "commit":
                outcome = self._commit(index, command.commit, changes)
                if outcome.tid is None or outcome.repeated:
                    self._drop(changes)
                return outcome
            case "fragment":
                return self._fragment(index, command.fragment, changes)
            case "allocate":
                return self._allocate(index, command.allocate.count)
            case "pack":
                return self._apply_pack(index, command.pack, changes)
            case "collect":
                return self._apply_collect(index, command.collect, changes)
            case "blob":
                return self._blob(index, command.blob, changes)
            case "expire_uploads":
                return self._expire(index, command.expire_uploads, changes)
        return Applied(index, refused="a command of a kind that this version does not know")

    def _allocate(self, index: int, count: int) -> Applied:
        if not 1 <= count <= MAX_ALLOCATION:
            return Applied(index, refused=f"{count} oids asked for; 1 to {MAX_ALLOCATION} can be had at once")
        first = self._next_oid
        if first + count >= 1 << 64:
            return Applied(index, refused="no oids are left")
        self._next_oid += count
        return Applied(index, first_oid=first.to_bytes(8, "big"))

    # ---- on disk -------------------------------------------------------------------------------------

    def flush(self) -> None:
        """See `api.Engine.flush`."""
        with self._durable:
            store, index = self._store, self._applied_index
        try:
            store.flush()
        except EngineError:
            if store is self._store:
                raise
            return  # it was given away, and its owner closes it as it likes
        self._is_durable(store, index)

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
            before = dict(self.__dict__)
            old, self._store = self._store, store
            try:
                self._read()
            except BaseException:
                self.__dict__.update(before)
                raise
        return old

    def approximate_size(self) -> tuple[int, int]:
        """See `api.Engine.approximate_size`."""
        return self._store.bytes_used(), self._objects - self._removal.vanished

    def close(self) -> None:
        """Releases the store."""
        self._store.close()
