"""`raftstorage log`: the transactions of a database, newest first, and new ones as they are committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from raftstorage.client.cluster import Call
from raftstorage.client.storage.errors import as_zodb
from raftstorage.proto import storage_pb2 as pb

from .names import time_of
from .records import plain

if TYPE_CHECKING:
    from raftstorage.client import ClientStorage

Z64, LAST = b"\0" * 8, b"\xff" * 8
PAGE = 500
MOST_REVISIONS = 10_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which transactions: by a part of the user's name, from tid `since` to `until`, that changed `oid`."""

    user: str = ""
    since: bytes = Z64
    until: bytes = LAST
    oid: bytes | None = None

    def fits(self, transaction: Any) -> bool:
        return self.since <= transaction.tid <= self.until and self.user in text(transaction.user)


def text(value: bytes) -> str:
    return value.decode(errors="replace")


def newest(storage: ClientStorage, wanted: Wanted, count: int | None) -> Iterator[Any]:
    """Up to `count` transactions (None: all), newest first, each with tid, user, description, extension (bytes).

    POSKeyError for an unknown oid. Of one object, the newest MOST_REVISIONS are looked at.
    """
    source = _heads(storage, wanted) if wanted.oid is None else _revisions(storage, wanted.oid)
    found = 0
    for each in source:
        if each.tid < wanted.since or found == count:
            return
        if wanted.fits(each):
            found += 1
            yield each


def _heads(storage: ClientStorage, wanted: Wanted) -> Iterator[Any]:
    last = storage.lastTransaction()
    before = b"" if wanted.until == LAST else (int.from_bytes(wanted.until) + 1).to_bytes(8)
    while True:
        call = Call("transaction_log", pb.TransactionLog(before=before, count=PAGE, at_least=last))
        with as_zodb():
            page = storage.cluster.read(call, last).heads
        yield from page.transactions
        before = page.before
        if not before:
            return


def _revisions(storage: ClientStorage, oid: bytes) -> Sequence[Any]:
    last = storage.lastTransaction()
    call = Call("history", pb.History(oid=oid, size=MOST_REVISIONS, at_least=last))
    with as_zodb(oid):
        return storage.cluster.read(call, last).history.revisions


class Follower:
    """What is committed from now on, in tid order and without a gap, over failovers too."""

    def __init__(self, storage: ClientStorage) -> None:
        self._storage = storage
        self._news: SimpleQueue[tuple[bytes, frozenset[bytes]]] = SimpleQueue()
        storage.registerDB(self)
        self.begins_behind = storage.lastTransaction()

    def invalidate(self, tid: bytes, oids: Sequence[bytes]) -> None:
        """Called by the storage, as a database's is."""
        self._news.put((tid, frozenset(oids)))

    def transform_record_data(self, data: bytes) -> bytes:
        return data

    untransform_record_data = transform_record_data

    def follow(self, wanted: Wanted) -> Iterator[Any]:
        """Waits for each; ends when `wanted.until` is over."""
        while True:
            tid, oids = self._news.get()
            if tid <= self.begins_behind:
                continue
            if tid > wanted.until:
                return
            if wanted.oid is None or wanted.oid in oids:
                one = Wanted(wanted.user, max(tid, wanted.since), tid)
                yield from newest(self._storage, one, 1)


def as_json(transaction: Any) -> dict[str, Any]:
    """Ready for `json.dumps`. An extension that is more than plain values is told as hexadecimal digits."""
    found: dict[str, Any] = {
        "tid": transaction.tid.hex(),
        "time": time_of(transaction.tid),
        "user": text(transaction.user),
        "description": text(transaction.description),
    }
    if transaction.extension:
        found["extension"] = extension(transaction.extension)
    return found


def extension(pickled: bytes) -> Any:
    """Its values, each as JSON has it or as Python shows it; or the bytes in hexadecimal digits."""
    try:
        values = plain(pickled)
    except ValueError:
        return pickled.hex()
    return jsonable(values)


def jsonable(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {str(key): jsonable(each) for key, each in value.items()}
        case list() | tuple():
            return [jsonable(each) for each in value]
        case bytes():
            return text(value)
    return repr(value)


def printable(line: str) -> str:
    """Without what would do something to a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line)


def line(transaction: Any) -> str:
    """One transaction in one line."""
    description = " ".join(text(transaction.description).split())
    user = text(transaction.user).strip() or "-"
    return printable(f"{transaction.tid.hex()}  {time_of(transaction.tid)}  {user}  {description}".rstrip())
