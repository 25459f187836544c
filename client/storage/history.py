"""What an object was: its revisions, and its state at a tid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persistent.TimeStamp import TimeStamp
from raftstorage.proto import storage_pb2 as pb
from ZODB import POSException
from ZODB._compat import loads

from ..cluster import Call, Cluster
from ..cluster.errors import RequestRefused
from .errors import PackedAway, as_zodb
from .reading import LONGEST_HISTORY, Reader, after

Z64 = b"\0" * 8
MAX_TID = b"\x7f" + b"\xff" * 7


class Histories:
    """For a storage with `cluster` and the methods of a ClientStorage."""

    cluster: Cluster
    lastTransaction: Callable[[], bytes]  # noqa: N815
    loadBefore: Callable[[bytes, bytes], tuple[bytes, bytes, bytes | None] | None]  # noqa: N815

    lastPack: Callable[[], bytes]  # noqa: N815

    def history(self, oid: bytes, size: int = 1) -> list[dict[str, Any]]:
        """The newest `size` revisions, newest first, deletions included; see IStorage. POSKeyError (a KeyError)
        for an unknown oid.

        Whatever a transaction's extension holds is in its entry too; of a deletion the size is 0.
        """
        last = self.lastTransaction()
        with as_zodb(oid):
            call = Call("history", pb.History(oid=oid, size=max(1, min(size, LONGEST_HISTORY)), at_least=last))
            revisions = self.cluster.read(call, last).history.revisions
        found = []
        for revision in revisions:
            entry: dict[str, Any] = dict(loads(revision.extension)) if revision.extension else {}
            entry.update(
                time=TimeStamp(revision.tid).timeTime(),
                tid=revision.tid,
                serial=revision.tid,
                user_name=revision.user,
                description=revision.description,
                size=revision.size,
            )
            found.append(entry)
        return found[: max(0, size)]

    def loadAt(self, oid: bytes, at: bytes) -> tuple[bytes | None, bytes, bytes | None]:  # noqa: N802
        """(data, serial, next serial or None) as of `at`, that tid's changes included (ZODB#323).

        Of a deleted object data is None, and serial the deletion's; of one that was not there yet, or never, data
        is None and serial zeros. No POSKeyError. ReadConflictError when it was packed away.
        """
        before = after(at)
        try:
            found = self.loadBefore(oid, before)
        except PackedAway:
            raise
        except POSException.POSKeyError:
            gone = Reader(self.cluster, self.cluster.feed.last).before([oid], before)[oid]
            return None, gone.serial or Z64, None
        if found is not None:
            return found
        if at < self.lastPack():
            raise POSException.ReadConflictError("what was then was packed away", oid=oid)
        return None, Z64, None

    def _packed_away(self, oid: bytes) -> None:
        """A revision of `oid` was packed away: PackedAway when the object is gone, too."""
        last = self.cluster.feed.last
        call = Call("load_before", pb.LoadBefore(oid=oid, before=MAX_TID, at_least=last))
        try:
            with as_zodb(oid, but={pb.NO_SUCH_OBJECT}):
                self.cluster.read(call, last)
        except RequestRefused:
            raise PackedAway(oid=oid) from None
