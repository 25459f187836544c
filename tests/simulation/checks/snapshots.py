"""What reads saw against the truth.

ZODB's IMVCCStorage: a connection sees one snapshot, `loadBefore` gives the newest revision in it. The session
guarantees are those that Jepsen names monotonic reads and read your writes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.index import Z64, Highest, Index, name, show
from tests.simulation.history import Commit, Committed, History, Opened, Read


def check(
    history: History,
    truth: Sequence[Committed],
    others: frozenset[bytes] = frozenset(),
    collected: frozenset[bytes] = frozenset(),
) -> None:
    """`collected`: oids of garbage that packs have removed: whoever looks for it may find nothing."""
    index = Index(truth)
    check_known(history, index, others)
    for read in history.reads():
        check_values(read, index, collected)
    check_sessions(history)


def check_known(history: History, index: Index, others: frozenset[bytes]) -> None:
    """A client opens at a committed tid (zeros: nothing is committed) and reads at one, or where it opened."""
    opened: dict[int, bytes] = {}
    for event in history.events:
        if isinstance(event, Opened):
            if event.tid != Z64 and event.tid not in index.positions and event.tid not in others:
                raise Broken(f"{name(event)}: that tid is not in the truth")
            opened[event.client] = event.tid
        elif isinstance(event, Read) and event.snapshot != opened.get(event.client):
            if event.snapshot in index.positions:
                continue
            raise Broken(f"{name(event)}: that tid is not in the truth, nor did the client open at it")


def check_values(read: Read, index: Index, collected: frozenset[bytes]) -> None:
    """Snapshot isolation: every value is that of the one snapshot."""
    for oid, seen in read.values.items():
        if seen is None and oid in collected:
            continue
        promised = index.at(oid, read.snapshot)
        if seen != promised:
            raise Broken(f"{name(read)} saw oid {oid.hex()} as {show(seen)}; the truth there is {show(promised)}")


def check_sessions(history: History) -> None:
    """Monotonic reads and read your writes: what begins when something ended does not fall behind it.

    Of the same instant, the order of the events decides; what overlaps is not compared.
    """
    ended: dict[int, Highest] = defaultdict(Highest)
    for event in history.events:
        if isinstance(event, Read):
            check_follows(event, ended[event.client])
            ended[event.client].add(event.ended, event.snapshot, event)
        elif isinstance(event, Commit) and event.tid is not None and event.ended is not None:
            ended[event.client].add(event.ended, event.tid, event)


def check_follows(read: Read, ended: Highest) -> None:
    found = ended.until(read.begun)
    if found is not None and read.snapshot < found[0]:
        rule = "read your writes" if isinstance(found[1], Commit) else "monotonic reads"
        raise Broken(f"{rule}: {name(read)} falls behind tid {found[0].hex()}, which {name(found[1])} had before")
