"""What one of two databases lacks because it was packed, told from what it has lost.

A pack up to a tid keeps, of each object, the revision that was current then, and all newer ones; it forgets
objects that were deleted by then, or that nothing referred to. Whoever lacks anything else has lost it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

from BTrees.QQBTree import QQBTree
from ZODB.serialize import referencesf
from zodbpickle.pickle import PickleError

from .places import Place, last_records

#: What reading something else than a record may raise.
_NO_RECORD = (
    PickleError, zlib.error, ValueError, EOFError, IndexError, KeyError, AttributeError, TypeError
)  # fmt: skip
#: What may come of reading something that is no record.
_NO_RECORD = (
    PickleError, zlib.error, ValueError, EOFError, IndexError, KeyError, AttributeError, TypeError
)  # fmt: skip
_ZLIB = b".z"  # in front of a record that zc.zlibstorage compressed


class Different(Exception):
    """Says what differs, and where."""


@dataclass(slots=True)
class _Found:
    """Why objects are needed of which a revision is missing, by oid: as what was there at the pack says, or what
    came later. The latter says nothing of an object that is there again: a FileStorage gives the oids of garbage
    to new objects, and undoing brings back what was garbage at the pack."""

    needed: dict[int, str] = field(default_factory=dict)
    needed_later: dict[int, str] = field(default_factory=dict)
    older: dict[int, str] = field(default_factory=dict)
    newer: set[int] = field(default_factory=set)


class Missing:
    """Records that `place` does not have and the place `having` has: noted one after the other, judged in the end.

    16 bytes of memory and a little more for each object whose newest such record nothing has replaced yet.
    """

    def __init__(self, place: Place, having: str) -> None:
        self._place = place
        self._having = having
        self._packed = b""
        self._newest = QQBTree()  # oid -> 2 * tid, and 1 more when it is no deletion

    def note(self, tid: bytes, record: Any, text: str) -> None:
        """Different, with `text`, when no pack reaches so far."""
        self.note_transaction(tid, text)
        has_data = record.data is not None
        self._newest[int.from_bytes(record.oid)] = 2 * int.from_bytes(tid) + has_data

    def note_transaction(self, tid: bytes, text: str) -> None:
        """A transaction that is missing altogether, perhaps with nothing in it. Different, as `note`."""
        if not self._packed or tid > self._packed:
            self._packed = self._place.packed()
        if tid > self._packed:
            raise Different(text)

    def found(self, tid: bytes, oid: bytes) -> None:
        """Both have this record, which may be what replaced a missing one before the pack."""
        if self._newest and tid <= self._packed:
            self._newest.pop(int.from_bytes(oid), None)

    def judge(self) -> None:
        """Different when one of them must be there. Reads the place once, if there are any."""
        if not self._newest:
            return
        found = _Found()
        for transaction in self._place.transactions():
            tid = int.from_bytes(transaction.tid)
            for record in last_records(transaction).values():
                self._look_at(int.from_bytes(record.oid), tid, record.data, found)
        if self._newest.get(0, 0) % 2:
            found.needed[0] = "it is the root"
        later = {oid: why for oid, why in found.needed_later.items() if oid not in found.newer}
        older = {oid: why for oid, why in found.older.items() if oid not in found.newer}
        for oid, why in (older | later | found.needed).items():
            if oid in self._newest:
                tid_text = (self._newest[oid] // 2).to_bytes(8).hex()
                raise Different(
                    f"{self._having} has object {oid.to_bytes(8).hex()} of transaction {tid_text}, "
                    f"{self._place.name} has not, and no pack should have taken it: {why}"
                )

    def _look_at(self, oid: int, tid: int, data: bytes | None, found: _Found) -> None:
        """A record that is there."""
        packed = tid <= int.from_bytes(self._packed)
        missing = self._newest.get(oid)
        if missing is not None:
            if tid < missing // 2:
                found.older[oid] = f"an older revision is there, {tid.to_bytes(8).hex()}"
            elif packed:
                del self._newest[oid]
            else:
                found.newer.add(oid)
        needed = found.needed if packed else found.needed_later
        for each in references(data):
            target = int.from_bytes(each)
            if self._newest.get(target, 0) % 2:
                needed.setdefault(target, f"object {oid.to_bytes(8).hex()} refers to it")


def references(data: bytes | None) -> list[bytes]:
    """The oids that a record refers to; none of what is no record of ZODB's."""
    try:
        if data and data.startswith(_ZLIB):
            data = zlib.decompress(data[len(_ZLIB) :])
        return referencesf(data) if data else []
    except _NO_RECORD:
        return []
