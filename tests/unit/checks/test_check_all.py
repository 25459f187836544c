"""All checks at once: none is left out, and they take little time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.simulation.checks import Broken, Checked, check_all
from tests.simulation.history import Committed, Event, History
from tests.unit.checks.histories import (
    ACCOUNTS,
    FIRST,
    LISTS,
    TOTAL,
    commit,
    committed,
    history,
    opened,
    read,
    run,
    told,
    word,
)

X, Y = 1, 2
ONE = commit(1, 1, 2, {X: b"1"}, tid=5)
TRUTH = [committed(5, {X: b"1"})]


def test_an_empty_history_is_good_and_shows_nothing() -> None:
    assert check_all(history(), []) == Checked(0, 0, 0, 0, 0, 0)


def test_what_was_checked_is_counted() -> None:
    events = (
        opened(1),
        ONE,
        told(1, 2, 5, X),
        read(1, 3, 4, 5, {X: (b"1", 5)}),
        read(1, 5, 6, 5, {X: (b"1", 5)}, linearizable=True),
        commit(1, 7, 8, {X: b"2"}, outcome="refused", number=2),
        commit(1, 9, None, {X: b"3"}, {X: 5}, number=3),
    )
    expected = Checked(acknowledged=1, refused=1, unknown=1, reads=2, linearizable=1, told=1)
    assert check_all(history(*events), TRUTH) == expected


BAD: dict[str, tuple[Sequence[Event], str]] = {
    "truth": ((), "no client made"),
    "snapshots": ((opened(1), ONE, told(1, 2, 5, X), read(1, 3, 4, 5, {X: None})), "the truth there is"),
    "invalidations": ((opened(1), ONE, read(1, 3, 4, 5, {})), "runs ahead"),
    "real time": ((opened(2), ONE, read(2, 3, 4, 0, {}, linearizable=True)), "a stale read"),
    "bank": ((ONE,), "the accounts hold 1 after"),
}


@pytest.mark.parametrize("case", BAD)
def test_none_is_left_out(case: str) -> None:
    events, message = BAD[case]
    with pytest.raises(Broken, match=message):
        check_all(history(*events), TRUTH, accounts=[word(X)], total=2)


def test_lists_are_not_left_out() -> None:
    events = (ONE, commit(1, 3, 4, {X: b"2"}, {X: 5}, tid=6))
    truth = [*TRUTH, committed(6, {X: b"2"})]
    check_all(history(*events), truth)
    with pytest.raises(Broken, match="incompatible order"):
        check_all(history(*events), truth, lists=[word(X)])


def test_registers_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they find, the order of the tids shows, too, once the truth is known."""
    seen: list[History] = []
    monkeypatch.setattr("tests.simulation.checks.registers.check", seen.append)
    whole = history(opened(1), ONE)
    check_all(whole, TRUTH)
    assert seen == [whole]


def seconds(events: Sequence[Event], truth: list[Committed]) -> float:
    begun = time.process_time()
    check_all(history(*events), truth, accounts=ACCOUNTS, total=TOTAL, lists=LISTS, others=frozenset({FIRST}))
    return time.process_time() - begun


def test_time_grows_with_the_history_and_not_faster() -> None:
    model = run("long", 6000, clients=6)
    assert len(model.history.events) >= 6000
    assert seconds(model.history.events, model.truth) < 5
