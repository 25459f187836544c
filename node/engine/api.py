"""What an engine is: the MVCC state machine that the replicated log is applied to.

Everything is a function of the applied entries: no clock, no randomness, no local setting, no hash order.
`oid`, `tid` and `serial` are 8 bytes; see `storage.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from raftstorage.node.engine.kv import KeyValueStore
from raftstorage.node.raft.types import Entry
from raftstorage.proto import storage_pb2 as pb

#: Conflicts in an outcome, at most: the first ones.
MAX_CONFLICTS = 100
#: No tid; the base serial of a new object.
Z64 = b"\0" * 8


class EngineError(Exception):
    """The state on disk is not what it must be (a checksum, a missing key, another node's directory)."""


class Packed(Exception):
    """What was asked for was packed away, or may have been. `packed`: tid of the pack."""

    def __init__(self, packed: bytes) -> None:
        super().__init__(f"packed to {packed.hex()}")
        self.packed = packed


class Interrupted(Exception):
    """The database was packed, or replaced by another node's copy: what a verification found means nothing."""


class EngineWriteError(EngineError):
    """The state could not be written. What is on disk is older, and sound."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of an object. `data` None: deleted here. `next_serial` None: it is the current one."""

    data: bytes | None
    serial: bytes
    next_serial: bytes | None


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack to `tid`. `collect`: its garbage is looked for; `collected`: all of it is known.

    `objects`: so many were garbage so far, and had `size` bytes.
    """

    pack_id: bytes = b""
    tid: bytes = b""
    collect: bool = False
    collected: bool = False
    objects: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Conflict:
    """An object whose committed serial is not the expected one; `reading`: it came from a Check."""

    oid: bytes
    serial: bytes
    expected: bytes
    reading: bool = False


class Oids(Protocol):
    """Many oids, read when they are asked for. To iterate over all may take long; over one page, about 1 ms."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...
    @property
    def page_count(self) -> int: ...
    def pages(self, first: int = 0) -> Iterator[tuple[bytes, ...]]:
        """All of them in stored order, from page number `first` on. Entries may be applied in between."""

    @property
    def last(self) -> tuple[bytes, ...]:
        """The last page, held in memory: the records in the entry that committed the transaction."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of one entry, equal on every node.

    `tid`: of the committed transaction (of the first attempt for a transaction id seen before); None when it
    was refused or was no commit. `oids`: what it changed, in stored order, empty for a repeated id; a transaction
    that came in fragments has Oids. `staged`: what a fragment holds; nothing of it can be seen yet, or ever if
    the fragment is dropped. `conflicts`: why it was refused, up to MAX_CONFLICTS.
    `refused`: another reason (a stale given tid, a malformed command).
    `missing`: the object whose blob was not uploaded, or not whole, when that is why it was refused.
    `first_oid`: answer to an AllocateCommand. `membership`: a MEMBERSHIP entry's data. `pack`: as it is after a
    PackCommand or a CollectCommand that counts.
    `uploaded`: answer to a BlobCommand, refused or not: so many bytes of the upload are there.
    """

    index: int
    transaction_id: bytes = b""
    tid: bytes | None = None
    oids: tuple[bytes, ...] | Oids = ()
    staged: tuple[bytes, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    refused: str = ""
    first_oid: bytes | None = None
    repeated: bool = False
    membership: bytes = b""
    pack: Pack | None = None
    missing: bytes = b""
    uploaded: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """What a checkpoint holds: the state after the entry `index` of `term`; `membership` as in Engine."""

    index: int
    term: int
    membership: bytes


class Position(NamedTuple):
    """Where reading transactions goes on: at `tid`; `skip` is the engine's affair, but for its sign: above 0, some
    of that transaction's records were answered already."""

    tid: bytes
    skip: int = 0


def add_page(transactions: list[pb.CommittedTransaction], page: list[pb.CommittedTransaction], skip: int) -> None:
    """Adds a page of `Engine.transactions`, which was asked for with `skip`, to those before it."""
    goes_on = skip > 0 and bool(page) and page[0].tid == transactions[-1].tid  # else it was packed away meanwhile
    if goes_on:
        transactions[-1].records.extend(page[0].records)
    transactions += page[goes_on:]


class Verification(Protocol):
    """A look at all that can be seen as of the transaction `tid`. Counts and `problems` rise with each step.

    `problems`: each for a person; whoever reads them takes them away. `digest`: in the end, equal on all nodes
    whose `packed` is; b"" when something could not be read.
    """

    tid: bytes
    packed: bytes
    records: int
    bytes_read: int
    blobs: int
    problems: list[str]
    digest: bytes

    def step(self) -> bool:
        """About a millisecond of work; False: that was all. Interrupted: it has to begin again."""


#: A transaction's tid and the oids it changed, in stored order.
Changed = tuple[bytes, tuple[bytes, ...] | Oids]


class Engine(Protocol):
    """An engine is used from one thread, but for `flush`. Entries are applied in log order, each once.

    `apply` takes some milliseconds for an entry that keeps to FRAGMENT_BYTES and FRAGMENT_ITEMS of `fragments`.
    It writes data and applied index in one atomic batch. A crash loses a tail of applied entries, never
    part of one: the driver replays the log from `applied_index + 1`.
    """

    @property
    def applied_index(self) -> int: ...
    @property
    def applied_term(self) -> int:
        """Term of the entry at `applied_index`; 0 in an empty database, and when an older version applied it."""

    @property
    def durable_index(self) -> int:
        """An applied index that a crash does not take back: all that is known to be on disk, and no more."""

    @property
    def membership(self) -> bytes:
        """Data of the newest MEMBERSHIP entry that was applied; b"" when there was none."""

    @property
    def last_tid(self) -> bytes:
        """Tid of the newest committed transaction; Z64 in an empty database."""

    @property
    def congested(self) -> bool:
        """Would `apply` wait for the disk, perhaps for seconds? That ends by itself."""

    def apply(self, entry: Entry) -> Applied:
        """Applies what a COMMAND holds (a serialized Command); keeps a MEMBERSHIP's data; a NOOP changes nothing.

        ValueError when its index is not applied_index + 1. Bad commands never raise: they are `refused`.
        """

    # All reading sees what a pack has left: deletions newer than `packed`, and data that is current or whose next
    # revision is newer than `packed`. How much of the rest is removed from disk already changes no answer.

    @property
    def packed(self) -> bytes:
        """Tid of the newest pack; b"": there was none."""

    @property
    def pack(self) -> Pack:
        """The newest pack, as the log has it."""

    @property
    def removes(self) -> bool:
        """`pack_step` has something left to do."""

    def pack_state(self) -> pb.PackState:
        """How far the newest pack is on this node. "marking": its garbage is not known yet."""

    def pack_step(self, budget: int) -> bool:
        """Removes from disk a little of what no one can see since the newest pack; False: there is nothing left.

        Looks at up to `budget` records or transactions: 100 take about 1 ms. Goes on where it was when the
        database is opened again. Not part of `apply`.
        """

    def load_before(self, oid: bytes, tid: bytes, most: int | None = None) -> Revision | None:
        """The newest revision below `tid`; None when the object is younger. KeyError: unknown oid.

        None too when its data is kept apart and has more than `most` bytes: it is not read.

        Packed: there is none, and `tid` is not above `packed`: there may have been one.
        """

    def load_serial(self, oid: bytes, serial: bytes) -> bytes:
        """That revision's data. KeyError when there is none, or it has no data, or it was packed away."""

    def pieces(self, oid: bytes, serial: bytes) -> Iterator[bytes]:
        """As `load_serial`, in pieces of up to CHUNK_BYTES that are read when they are asked for."""

    def current_serial(self, oid: bytes) -> bytes | None:
        """Serial of the newest revision, a deletion's too; None for an unknown oid."""

    def unchanged(self, start: bytes, budget: int) -> tuple[list[bytes], bytes]:
        """Oids >= `start` with a current revision not newer than `packed`, and where to go on; b"": nowhere.

        Looks at up to `budget` objects.
        """

    def pieces_at_pack(self, oid: bytes) -> Iterator[bytes] | None:
        """As `pieces`, of the revision not newer than the newest pack that it left; None: there is none."""

    def current_page(self, start: bytes, before: bytes, max_bytes: int) -> tuple[list[pb.FoundRecord], bytes]:
        """The newest records below `before` (b"": of all) of oids >= `start`, and where to go on; b"": nowhere.

        Deleted objects are left out. With up to `max_bytes`, or a single larger one; fewer, or none, after some
        work. Packed: `before` is not above `packed`.
        """

    def transaction_log(self, before: bytes, count: int) -> tuple[list[pb.CommittedTransaction], bytes]:
        """Up to `count` transactions below `before` (b"": all) without records, newest first, and where to go on.

        b"": nowhere. Fewer, or none, after some work; what to go on with is the engine's affair then, or a tid.
        """

    def history(self, oid: bytes, size: int, before: bytes = ...) -> tuple[list[pb.Revision], bool]:
        """Up to `size` revisions below the tid `before` (default: all), newest first; True when more follow.

        Stops early after some work: go on with the last one's tid. KeyError: no such revision.
        """

    def transaction_tid(self, transaction_id: bytes) -> bytes | None:
        """The tid that this transaction id was committed with, if it was (and is not long ago)."""

    def transactions(
        self, start: bytes, stop: bytes | None, max_bytes: int, skip: int = 0
    ) -> tuple[list[pb.CommittedTransaction], Position | None]:
        """A page of transactions start <= tid <= stop with records, and where to go on; None: there are no more.

        Whole transactions with up to `max_bytes`, fewer or none when they have very many records, or a part of one
        that has more: `skip` of the position is above 0 then, and the next page goes on with its records. At least
        one record is read, however large. `start` and `skip` are those of a position, or `skip` is 0. What a pack
        left nothing of is left out.
        """

    def changed_since(self, tid: bytes, limit: int) -> list[Changed]:
        """(tid, oids) of up to `limit` transactions above `tid`, rising. Reads no record data.

        Of what is not newer than `packed`, some may be missing that cannot be seen any more, but not the newest.
        Fewer than `limit` do not mean that there are no more: stops early after some work, but not before one.
        """

    def conflicts(self, transaction: pb.Transaction) -> list[Conflict]:
        """What `apply` would find now, all: base serials and checks against current serials. Changes nothing.

        Some of a transaction's records and checks may be asked for at a time.
        """

    def missing_upload(self, records: Iterable[pb.NewRecord]) -> bytes | None:
        """The first object whose blob `apply` would not find now, or not whole. Changes nothing."""

    def upload_size(self, upload_id: bytes) -> int | None:
        """So many bytes are there; None: no such upload, or a transaction has taken it."""

    def stale_uploads(self, stamp: int) -> bool:
        """Are there uploads that no chunk came for since `stamp` (milliseconds)? Some were perhaps taken."""

    def load_blob(self, oid: bytes, serial: bytes, offset: int, max_bytes: int) -> tuple[bytes, int, int]:
        """Bytes of that revision's blob from `offset` on, its size, its CRC32C. KeyError: it has none."""

    def approximate_size(self) -> tuple[int, int]:
        """(bytes on disk, number of objects), both approximate."""

    def digest(self) -> bytes:
        """SHA-256 over all that can be seen, for comparing replicas at one applied index. Slow."""

    def verification(self, tid: bytes, references: bool) -> Verification:
        """Reads everything, and compares checksums; with `references` also whether what current records refer to
        is there. What is applied meanwhile changes nothing of what it sees. Packed: `tid` is below the newest
        pack's."""

    def flush(self) -> None:
        """Makes durable what was applied when it was called, and raises `durable_index` to that.

        May run in another thread while entries are applied. Needed before the log is cut, and else for nothing.
        """

    def checkpoint(self, directory: Path) -> Checkpointed:
        """A durable copy of the state as it is now in a new folder, which a store of the same kind can open.

        Files of the copy and the original that hold the same are one (hard links). Quick right after a `flush`.
        """

    def adopt(self, store: KeyValueStore) -> KeyValueStore:
        """Goes on with the state in `store`; returns the store it had, for the caller to close.

        EngineError when `store` cannot be used; nothing has changed then.
        """

    def close(self) -> None: ...
