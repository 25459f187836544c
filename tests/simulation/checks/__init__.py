"""Whether a history keeps what a client is promised. Each check is a function that raises `Broken`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.simulation.checks.bank import Parse, amount
from tests.simulation.checks.bank import check as check_bank
from tests.simulation.checks.errors import Broken
from tests.simulation.checks.invalidations import check as check_invalidations
from tests.simulation.checks.linearizability import check as check_linearizability
from tests.simulation.checks.lists import check as check_lists
from tests.simulation.checks.snapshots import check as check_snapshots
from tests.simulation.checks.truth import check as check_truth
from tests.simulation.history import Committed, History, Told

__all__ = ["Broken", "Checked", "check_all"]


@dataclass(frozen=True)
class Checked:
    """How much was checked, so that callers can demand enough of it."""

    acknowledged: int
    refused: int
    unknown: int
    reads: int
    linearizable: int
    told: int


def check_all(
    history: History,
    truth: Sequence[Committed],
    *,
    accounts: Sequence[bytes] = (),
    total: int = 0,
    lists: Sequence[bytes] = (),
    others: frozenset[bytes] = frozenset(),
    parse: Parse = amount,
    collected: frozenset[bytes] = frozenset(),
    gone: frozenset[bytes] = frozenset(),
) -> Checked:
    """All checks. `others`: tids in the truth of transactions that no client here made, before what these did.

    `collected`: oids of garbage that packs have removed. `gone`: tids of which they have left nothing.
    """
    check_truth(history, truth, others)
    check_snapshots(history, truth, others, collected)
    check_invalidations(history, truth, gone)
    check_linearizability(history, truth)
    check_bank(history, truth, accounts, total, parse)
    check_lists(history, truth, lists, others)
    return count(history)


def count(history: History) -> Checked:
    outcomes = Counter(commit.outcome for commit in history.commits())
    reads = history.reads()
    return Checked(
        outcomes["acknowledged"],
        outcomes["refused"],
        outcomes["unknown"],
        len(reads),
        sum(read.linearizable for read in reads),
        sum(isinstance(event, Told) for event in history.events),
    )
