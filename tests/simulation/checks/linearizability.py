"""Real time: what ended is seen by what begins later.

Herlihy & Wing's linearizability of commits and linearizable reads, in two ways: by the order of the tids, and by
a search for an order oid by oid that knows nothing of the truth. Where two things happen at the same instant,
neither ended before the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tests.simulation.checks import registers
from tests.simulation.checks.errors import Broken
from tests.simulation.checks.index import Highest, name
from tests.simulation.history import Commit, Committed, Event, History, Opened, Read, Told


def check(history: History, truth: Sequence[Committed]) -> None:
    known = everything_known(history)
    check_commits(history, known, {each.identity: each.tid for each in truth})
    check_reads(history, known)
    registers.check(history)


def facts(events: Sequence[Event]) -> Iterator[tuple[float, bytes, Event]]:
    """(time, tid, event): from then on somebody knows that `tid` is committed."""
    for event in events:
        match event:
            case Opened() | Told():
                yield event.at, event.tid, event
            case Read():
                yield event.ended, event.snapshot, event
            case Commit():
                if event.tid is not None and event.ended is not None:
                    yield event.ended, event.tid, event


def everything_known(history: History) -> Highest:
    known = Highest()
    for time, tid, event in sorted(facts(history.events), key=lambda fact: fact[0]):
        known.add(time, tid, event)
    return known


def check_reads(history: History, known: Highest) -> None:
    """A linearizable read sees every commit that was acknowledged to anybody, and whatever else anybody saw."""
    for read in history.reads():
        if read.linearizable:
            found = known.before(read.begun)
            if found is not None and found[0] > read.snapshot:
                raise Broken(
                    f"a stale read: {name(read)} misses tid {found[0].hex()}; before it was {name(found[1])}"
                )


def check_commits(history: History, known: Highest, tids: Mapping[bytes, bytes]) -> None:
    """A commit gets a higher tid than all that was known before it began; `tids`: in the truth."""
    for commit in history.commits():
        tid = tids.get(commit.identity, commit.tid)
        if tid is None or commit.outcome == "refused":
            continue
        found = known.before(commit.begun)
        if found is not None and found[0] >= tid:
            raise Broken(
                f"real time: {name(commit)} has tid {tid.hex()}; before it began, tid {found[0].hex()} was known: "
                f"{name(found[1])}"
            )
