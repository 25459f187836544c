"""Reading everything that can be seen, as of one transaction, a bit at a time, and comparing checksums.

Later transactions change nothing of what is looked at. A pack does, or another database in place of this one: then
it has to begin again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import google_crc32c
from raftstorage.node.engine.api import EngineError, Interrupted, Packed
from raftstorage.node.engine.digest import Digesting
from raftstorage.node.engine.layout import Stub, blob_key, read_head, read_stub
from raftstorage.node.engine.references import scan
from raftstorage.node.engine.wrapped import unwrap

#: Records looked at, and bytes read, in one step: about a millisecond.
STEP_ITEMS = 50
STEP_BYTES = 256 << 10
#: Problems that are told one by one; those above are only counted.
MOST_PROBLEMS = 1000
_PAGE_BITS = 10


class Walk:
    """An `api.Verification`. Packed: `tid` is below the newest pack's, and the state was another one then."""

    def __init__(self, state: Verifying, tid: bytes, references: bool) -> None:
        if tid < state.packed:
            raise Packed(state.packed)
        self.tid = tid
        self.packed = state.packed
        self.records = self.bytes_read = self.blobs = 0
        self.problems: list[str] = []
        self.found = 0  # so many problems in all
        self.digest = b""
        self._state = state
        self._references = references
        self._from = (state._pack, state._store)
        self._total = hashlib.sha256()
        self._items = self._read = 0  # in this step
        self._recent = 0  # records of transactions above the pack
        self._known: dict[int, int] = {}  # objects that are there, a bit for each
        self._unreadable = 0
        self._broken = False
        self._work = self._run()

    def step(self) -> bool:
        """See `api.Verification`."""
        pack, store = self._from
        if self._state._pack is not pack or self._state._store is not store:
            raise Interrupted
        self._items = self._read = 0
        return next(self._work, False)

    # Generators that yield True when so much was done that others should have their turn.

    def _run(self) -> Iterator[bool]:
        try:
            yield from self._all_records()
            yield from self._all_transactions()
        except EngineError as error:  # not of one record: the store cannot be read through
            self._problem(f"the database cannot be read through: {error}")
            return
        if self._unreadable:
            self._problem(
                f"{self._unreadable} current records are not ZODB's (a client encrypts them?): what they refer to "
                "is not known"
            )
        self.digest = self._total.digest() if not self._broken else b""

    def _damaged(self, text: str) -> None:
        self._broken = True
        self._problem(text)

    def _problem(self, text: str) -> None:
        self.found += 1
        if self.found <= MOST_PROBLEMS:
            self.problems.append(text)
        elif self.found == MOST_PROBLEMS + 1:
            self.problems.append("there is more that is wrong")

    def _spent(self, size: int = 0) -> bool:
        self._items += 1
        self._read += size
        return self._items >= STEP_ITEMS or self._read >= STEP_BYTES

    def _feed(self, *parts: bytes) -> None:
        for part in parts:
            self._total.update(len(part).to_bytes(8, "big"))
            self._total.update(part)

    # ---- records -------------------------------------------------------------------------------------

    def _all_records(self) -> Iterator[bool]:
        """Of the revisions of an object that are not newer than the pack the last one is seen, if it has data."""
        held: tuple[bytes, Stub] | None = None  # looked at when it is known what follows it
        key = b""
        while True:
            for at, sealed in self._state._store.scan("records", key):
                if at == key:
                    continue
                key = at
                try:
                    stub = read_stub(at, sealed)
                except EngineError as error:
                    self._damaged(str(error))
                    continue
                if at[8:] <= self.tid and stub.fragment not in self._state._dropped:
                    if held is not None:
                        yield from self._left_behind(*held, at)
                    held = at, stub
                if self._spent(len(sealed)):
                    break
            else:
                if held is not None:
                    yield from self._left_behind(*held, b"")
                return
            yield True

    def _left_behind(self, key: bytes, stub: Stub, following: bytes) -> Iterator[bool]:
        """A revision, when the key of the next one is known."""
        current = key[:8] != following[:8]
        old = key[8:] <= self.packed
        if old and (stub.no_data or (not current and following[8:] <= self.packed)):
            return
        self._recent += not old
        yield from self._look_at(key, stub, current)

    def _look_at(self, key: bytes, stub: Stub, current: bool) -> Iterator[bool]:
        name = f"object {key[:8].hex()} of transaction {key[8:].hex()}"
        self.records += 1
        blob = stub.blob
        self._feed(key, b"-" if stub.no_data else b"+", stub.size.to_bytes(8, "big"))
        pieces = []
        try:
            for piece in () if stub.no_data else self._state._pieces(key, stub):
                self._total.update(piece)
                self.bytes_read += len(piece)
                pieces.append(piece)
                if self._spent(len(piece)):
                    yield True
            if blob is not None:
                self._feed(blob.size.to_bytes(8, "big"), blob.crc32c.to_bytes(4, "big"))
                yield from self._look_at_blob(name, blob.number, blob.size, blob.crc32c)
        except EngineError as error:
            self._damaged(f"{name}: {error}")
            return
        data = b"".join(pieces)
        if len(data) != (0 if stub.no_data else stub.size):
            self._problem(f"{name} has {len(data)} bytes, not {stub.size}")
        elif current and self._references and not stub.no_data:
            yield from self._follow(name, data)

    def _look_at_blob(self, name: str, number: int, size: int, crc32c: int) -> Iterator[bool]:
        checksum = read = 0
        chunk = self._state.blob_chunk_bytes
        for index in range(-(-size // chunk)):
            piece = self._state._chunk(number, index)
            if len(piece) != min(chunk, size - read):
                raise EngineError(f"blobs {blob_key(number, index).hex()} has {len(piece)} bytes")
            checksum = google_crc32c.extend(checksum, piece)
            read += len(piece)
            self.bytes_read += len(piece)
            if self._spent(len(piece)):
                yield True
        self.blobs += 1
        if checksum != crc32c:
            self._problem(f"{name}: the checksum of its blob does not fit")

    # ---- references ----------------------------------------------------------------------------------

    def _follow(self, name: str, data: bytes) -> Iterator[bool]:
        found: list[bytes] = []
        inside: list[bytes] = []
        try:
            for _ in unwrap(data, inside):
                yield True
            for _ in scan(inside[0], found):
                yield True
        except ValueError:
            self._unreadable += 1
            return
        for oid in dict.fromkeys(found):
            if not self._is_there(oid):
                self._problem(f"{name} refers to {oid.hex()}, which is not there")
            if self._spent():
                yield True

    def _is_there(self, oid: bytes) -> bool:
        number = int.from_bytes(oid, "big")
        page, bit = number >> _PAGE_BITS, 1 << (number & ((1 << _PAGE_BITS) - 1))
        if self._known.get(page, 0) & bit:
            return True
        key = self._state._newest(oid, self.tid)
        if key is None:
            return False
        try:
            if self._state._has_no_data(key):
                return False
        except EngineError:
            return True  # it is damaged, which is told of itself
        self._known[page] = self._known.get(page, 0) | bit
        return True

    # ---- transactions --------------------------------------------------------------------------------

    def _all_transactions(self) -> Iterator[bool]:
        """Those that a pack may have taken records of are read, too, but are not in the digest."""
        named = 0
        key = b""
        while True:
            for tid, sealed in self._state._store.scan("transactions", key):
                if tid == key:
                    continue
                if tid > self.tid:
                    break
                key = tid
                try:
                    head = read_head(tid, sealed)
                except EngineError as error:
                    self._damaged(str(error))
                    named = -1  # how many it names is not known
                    continue
                if tid > self.packed:
                    info = head.info
                    self._feed(tid, info.status, info.user, info.description, info.extension)
                    if named >= 0:
                        named += head.paged + len(info.records)
                if self._spent(len(sealed)):
                    yield True
                    break
            else:
                break
            if tid > self.tid:
                break
        if named not in (-1, self._recent):
            self._problem(f"transactions name {named} records, and {self._recent} are there")


class Verifying(Digesting):
    """What a `Walk` needs of the state."""

    def verification(self, tid: bytes, references: bool) -> Walk:
        """See `api.Engine.verification`."""
        return Walk(self, tid, references)
