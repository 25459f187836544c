"""What users were told: every change, whole, once, in order, and before anybody reads at it.

ZODB's IStorageWrapper.invalidate: a storage says which oids a transaction changed, in the order of the tids; a
cache is right exactly if nothing is left out. Reads at a snapshot whose changes were not told would mix with what
is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.index import Highest, Index, name
from tests.simulation.history import Committed, History, Opened, Read, Told


@dataclass
class Listener:
    """A client since it opened: what it was told last, and when of what."""

    last: bytes
    told: Highest


def check(history: History, truth: Sequence[Committed], gone: frozenset[bytes] = frozenset()) -> None:
    """`gone`: tids of which packs have left nothing; who was away need not be told of them."""
    index = Index(truth)
    listeners: dict[int, Listener] = {}
    for event in history.events:
        if isinstance(event, Opened):
            listeners[event.client] = opened(event)
        elif isinstance(event, Told | Read):
            listener = listeners.get(event.client)
            if listener is None:
                raise Broken(f"the history is not sound: {name(event)} comes before the client opened")
            if isinstance(event, Told):
                check_told(event, listener, index, gone)
            else:
                check_read(event, listener)


def opened(event: Opened) -> Listener:
    told = Highest()
    told.add(event.at, event.tid, event)
    return Listener(event.tid, told)


def check_told(told: Told, listener: Listener, index: Index, gone: frozenset[bytes]) -> None:
    """The next tid of the truth, with its oids in any order."""
    if told.tid <= listener.last:
        raise Broken(f"{name(told)} came after tid {listener.last.hex()}: told twice or out of order")
    position = index.positions.get(told.tid)
    if position is None:
        raise Broken(f"{name(told)} is not in the truth")
    before = position
    while before and index.truth[before - 1].tid > listener.last and index.truth[before - 1].tid in gone:
        before -= 1
    if before and index.truth[before - 1].tid > listener.last:
        skipped = index.truth[before - 1]
        oids = ", ".join(oid.hex() for oid in skipped.records)
        raise Broken(
            f"{name(told)} came after tid {listener.last.hex()}: tid {skipped.tid.hex()} between them, "
            f"which changed oids {oids}, was skipped"
        )
    promised = sorted(index.truth[position].records)
    if sorted(told.oids) != promised:
        raise Broken(
            f"{name(told)} named oids {', '.join(oid.hex() for oid in told.oids)}; "
            f"changed were {', '.join(oid.hex() for oid in promised)}"
        )
    listener.last = told.tid
    listener.told.add(told.at, told.tid, told)


def check_read(read: Read, listener: Listener) -> None:
    """Its snapshot is the newest tid that was told, at some moment of the read."""
    if read.snapshot > listener.last:
        raise Broken(f"{name(read)} runs ahead of what the client was told, tid {listener.last.hex()}")
    found = listener.told.before(read.begun)
    if found is not None and read.snapshot < found[0]:
        raise Broken(f"{name(read)} falls behind tid {found[0].hex()}, which the client was told before")
