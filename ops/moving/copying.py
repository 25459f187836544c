"""One database copied into another: the first time all of it, later what is new, always after a look whether what
is there already is the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raftstorage.ops.errors import CommandError
from ZODB.blob import is_blob_record
from ZODB.POSException import POSKeyError

from .comparing import Counts, Side, compare
from .current import CurrentRevisions
from .packed import Different
from .places import Place, Target, last_records
from .showing import Bars

Z64 = b"\0" * 8
#: So many transactions that both have are compared before more are added, if a window of time holds as many.
COMPARED = 50
#: Ticks of a tid in a second, and how many seconds back the windows reach in which those are looked for.
_TICKS = (1 << 32) // 60
_WINDOWS = (1, 60, 3600, 24 * 3600, 365 * 24 * 3600)


@dataclass
class Outcome:
    """What one run did. `problems`: what did not come over, each for a person; the copy holds all the rest."""

    had: bytes = Z64
    last: bytes = Z64
    copied: Counts = field(default_factory=Counts)
    compared: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def copy(
    source: Place, target: Target, bars: Bars, *, current_only: bool = False, verify: bool | None = None
) -> Outcome:
    """Brings what `source` has up to now, and `target` does not have yet.

    `current_only`: the revisions that are current then, with their transactions, and no others. `verify`: compare
    everything in the end (True), nothing (False), or what this run has brought (None). CommandError: the target is
    no earlier state of the source (nothing was written), or the comparison found a difference. What any other
    error leaves in the target is whole transactions, and the same again goes on behind them.
    """
    outcome = Outcome(had=target.last(), last=source.last())
    for place in (source, target):
        if not place.keeps_history:
            outcome.notes.append(
                f"{place.name} keeps no history: of each object the newest revision, and of transactions neither "
                "user nor description"
            )
    if outcome.last == Z64:
        raise CommandError(f"{source.name} is empty")
    if outcome.had > outcome.last:
        raise CommandError(
            f"{target.name} has transactions up to {outcome.had.hex()}, {source.name} only up to "
            f"{outcome.last.hex()}: it is no earlier state of it. Nothing was written",
            2,
        )
    if outcome.had != Z64:
        _check_common(source, target, outcome.had, current_only)
    start = after(outcome.had)
    if start <= outcome.last:
        transactions = source.transactions(start, outcome.last)
        if current_only:
            # What an earlier run brought may have been deleted since.
            current = _current(source, outcome.last, bars)
            transactions = current.of(transactions, deletions=outcome.had != Z64)
        checked = _Checked(source, transactions, outcome)
        with bars.bytes("copying", source.size() if outcome.had == Z64 else None) as advance:
            target.take(checked, source.open_blob, lambda: advance(checked.settled()))
        outcome.problems += [str(each) for each in source.damage if not each.harmless]
        outcome.notes += [str(each) for each in source.damage if each.harmless]
    if verify is not False and (verify or start <= outcome.last):
        _verify(source, target, Z64 if verify else start, outcome, bars, current_only)
    return outcome


def after(tid: bytes) -> bytes:
    return (int.from_bytes(tid) + 1).to_bytes(8)


def _current(place: Place, last: bytes, bars: Bars) -> CurrentRevisions:
    with bars.bytes("looking for what is current", place.size()) as advance:
        return CurrentRevisions(
            place.transactions(Z64, last), lambda each: advance(sum(len(r.data or b"") for r in each))
        )


class _Checked:
    """The transactions on their way, counted, each one above the one before it."""

    def __init__(self, source: Place, transactions: Iterator[Any], outcome: Outcome) -> None:
        self._source = source
        self._transactions = transactions
        self._outcome = outcome
        self._sizes: deque[Counts] = deque()

    def __iter__(self) -> Iterator[Any]:
        last = self._outcome.had
        for transaction in self._transactions:
            if transaction.tid <= last:
                raise CommandError(
                    f"{self._source.name}: transaction {transaction.tid.hex()} is not above the one before it"
                )
            last = transaction.tid
            self._sizes.append(self._look_at(transaction))
            yield transaction

    def _look_at(self, transaction: Any) -> Counts:
        counts = Counts(transactions=1)
        for record in last_records(transaction).values():
            counts.records += 1
            counts.bytes += len(record.data or b"")
            if is_blob_record(record.data):
                counts.blobs += self._has_blob(record, transaction.tid)
        return counts

    def _has_blob(self, record: Any, tid: bytes) -> bool:
        name = f"object {record.oid.hex()} of transaction {tid.hex()}"
        if self._source.open_blob is None:
            raise CommandError(
                f"{self._source.name}: {name} is a blob, and what came before it is there: "
                "give --blob-dir, or a storage with blobs"
            )
        try:
            self._source.open_blob(record.oid, tid).close()
        except POSKeyError:
            self._outcome.problems.append(f"{name} is a blob whose file is missing; its record came over")
            return False
        return True

    def settled(self) -> int:
        """The oldest one is in the target: the bytes of its records."""
        counts = self._sizes.popleft()
        copied = self._outcome.copied
        copied.transactions += 1
        copied.records += counts.records
        copied.blobs += counts.blobs
        copied.bytes += counts.bytes
        return counts.bytes


def _check_common(source: Place, target: Place, had: bytes, current_only: bool) -> None:
    """CommandError unless the first and the last ones that both have are equal."""
    first = next(target.transactions(Z64, had))
    equal = 0
    for start, stop in ((first.tid, first.tid), (_window(target, had), had)):
        try:
            equal += compare(
                Side(source, source.transactions(start, stop)),
                Side(target, target.transactions(start, stop), partial=current_only),
            ).transactions
        except Different as error:
            raise CommandError(
                f"{target.name} is not empty, and no earlier state of {source.name}: {error}. Nothing was written",
                2,
            ) from None
    if not equal and not _anything_common(source.transactions(Z64, had), target.transactions(Z64, had)):
        raise CommandError(
            f"{target.name} is not empty, and has no transaction that {source.name} has, too. Nothing was written",
            2,
        )


def _anything_common(some: Iterator[Any], others: Iterator[Any]) -> bool:
    """Where both were packed, or hold only what was current, the first and the last ones may say nothing."""
    one, other = next(some, None), next(others, None)
    while one is not None and other is not None and one.tid != other.tid:
        if one.tid < other.tid:
            one = next(some, None)
        else:
            other = next(others, None)
    return one is not None and other is not None


def _window(target: Place, had: bytes) -> bytes:
    """From where on there are COMPARED transactions up to `had`, or a few seconds more."""
    for seconds in _WINDOWS:
        start = max(1, int.from_bytes(had) - seconds * _TICKS).to_bytes(8)
        if sum(1 for _ in zip(range(COMPARED), target.transactions(start, had), strict=False)) == COMPARED:
            break
    newest: deque[bytes] = deque(maxlen=COMPARED)
    newest.extend(each.tid for each in target.transactions(start, had))
    return newest[0]


def _verify(source: Place, target: Place, start: bytes, outcome: Outcome, bars: Bars, current_only: bool) -> None:
    mine, theirs = (place.transactions(start, outcome.last) for place in (source, target))
    if current_only:
        # What an earlier run brought may have been replaced since: on both sides only what is current counts.
        mine = _current(source, outcome.last, bars).of(mine)
        theirs = _current(target, outcome.last, bars).of(theirs)
    size = source.size() if start == Z64 or outcome.had == Z64 else outcome.copied.bytes
    with bars.bytes("comparing", size) as advance:
        try:
            outcome.compared = compare(Side(source, mine), Side(target, theirs), advance)
        except Different as error:
            raise CommandError(f"the copy is not equal: {error}") from None
    if outcome.compared.blobs_unseen:
        outcome.notes.append(
            f"{outcome.compared.blobs_unseen} blobs were not compared: one side was opened without them"
        )
