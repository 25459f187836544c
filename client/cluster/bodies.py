"""A transaction on its way to the leader: one body, or parts that are serialized one by one as they are sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias, overload

from raftstorage.proto import PART_BYTES, PART_OBJECTS
from raftstorage.proto import storage_pb2 as pb

#: A record or a check beside its data in a serialized Transaction, at most.
HEAD_BYTES = 48
#: More for a record that has a blob.
BLOB_BYTES = 48


class Record(NamedTuple):
    """As `NewRecord` in storage.proto; `data` is not copied before it is sent."""

    oid: bytes
    base_serial: bytes = b""
    data: bytes = b""
    no_data: bool = False
    data_tid: bytes = b""
    blob: pb.Blob | None = None

    @property
    def head_bytes(self) -> int:
        """Beside its data, at most."""
        return HEAD_BYTES if self.blob is None else HEAD_BYTES + BLOB_BYTES

    def add_to(self, transaction: pb.Transaction) -> None:
        transaction.records.add(
            oid=self.oid,
            base_serial=self.base_serial,
            data=self.data,
            no_data=self.no_data,
            data_tid=self.data_tid,
            blob=self.blob,
        )


class _Piece(NamedTuple):
    """What goes into one part: some records and checks, or a stretch of one record's data."""

    records: Sequence[Record] = ()
    checks: Sequence[tuple[bytes, bytes]] = ()
    begin: int = 0
    end: int = 0  # above 0: of the only record's data

    def add_to(self, transaction: pb.Transaction) -> None:
        for oid, serial in self.checks:
            transaction.checks.add(oid=oid, serial=serial)
        if not self.end:
            for record in self.records:
                record.add_to(transaction)
            return
        (whole,) = self.records
        data = memoryview(whole.data)[self.begin : self.end]
        last = self.end == len(whole.data)
        part = transaction.records.add(
            oid=whole.oid, data=bytes(data), more=not last, blob=whole.blob if last else None
        )
        if not self.begin:
            part.base_serial, part.data_tid = whole.base_serial, whole.data_tid


class Parts(Sequence[bytes]):
    """Serialized Transactions with some of the records and checks each; made anew whenever one is asked for, so
    that the records are in memory once. `sizes`: in bytes, at most."""

    def __init__(self, pieces: Sequence[_Piece], sizes: Sequence[int]) -> None:
        self._pieces = pieces
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, number: int) -> bytes: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[bytes]: ...
    def __getitem__(self, number: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(number, slice):
            return Parts(self._pieces[number], self.sizes[number])
        transaction = pb.Transaction()
        self._pieces[number].add_to(transaction)
        return transaction.SerializeToString()

    def __iter__(self) -> Iterator[bytes]:
        return (self[number] for number in range(len(self)))


NO_PARTS = Parts((), ())


class LargeBody(NamedTuple):
    """A serialized Transaction in several: `parts`, then `rest` with what is neither record nor check.

    `size`: bytes of all, at least.
    """

    rest: bytes
    parts: Parts
    size: int


#: What Vote and Commit carry.
Body: TypeAlias = bytes | LargeBody


def make_body(
    head: pb.Transaction,
    records: Mapping[bytes, Record],
    checks: Mapping[bytes, bytes],
    in_parts: bool,
    part_bytes: int = 0,
) -> Body:
    """`head` has neither records nor checks, and is changed. `records` and `checks` (serials) are by oid.

    `in_parts`: the cluster takes parts. Then a body above `part_bytes` is a LargeBody, with no part above that;
    0: PART_BYTES, which is the most that a node takes, and more than HEAD_BYTES and BLOB_BYTES is needed.
    """
    part_bytes = part_bytes or PART_BYTES
    if in_parts:
        size = head.ByteSize() + sum(len(record.data) for record in records.values())
        heads = sum(record.head_bytes for record in records.values()) + HEAD_BYTES * len(checks)
        if size + heads > part_bytes:
            pieces, sizes = _split(list(records.values()), checks, part_bytes)
            return LargeBody(head.SerializeToString(), Parts(pieces, sizes), size)
    for record in records.values():
        record.add_to(head)
    for oid, serial in checks.items():
        head.checks.add(oid=oid, serial=serial)
    return head.SerializeToString()


def _split(
    records: Sequence[Record], checks: Mapping[bytes, bytes], part_bytes: int
) -> tuple[list[_Piece], list[int]]:
    """Pieces in order, each as full as what follows lets it be, and their sizes."""
    pieces: list[_Piece] = []
    sizes: list[int] = []

    def put(piece: _Piece, size: int) -> None:
        pieces.append(piece)
        sizes.append(size)

    begin = 0
    size = 0
    for position, record in enumerate(records):
        weight = len(record.data) + record.head_bytes
        if position > begin and (size + weight > part_bytes or position - begin == PART_OBJECTS):
            put(_Piece(records[begin:position]), size)
            begin, size = position, 0
        size += weight
        if size > part_bytes:  # it begins a part, and is too large for it
            chunk = part_bytes - HEAD_BYTES  # a blob comes on top in the last one: a single record may be larger
            for start in range(0, len(record.data), chunk):
                end = min(len(record.data), start + chunk)
                put(_Piece([record], begin=start, end=end), end - start + record.head_bytes)
            begin, size = position + 1, 0
    if begin < len(records):
        put(_Piece(records[begin:]), size)
    left = iter(checks.items())
    while some := list(islice(left, min(PART_OBJECTS, part_bytes // HEAD_BYTES))):
        put(_Piece(checks=some), HEAD_BYTES * len(some))
    return pieces, sizes


def size_of(body: Body) -> int:
    """In bytes; of a large one at least."""
    return body.size if isinstance(body, LargeBody) else len(body)
