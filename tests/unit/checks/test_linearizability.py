"""Real time, by the order of the tids."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.linearizability import check
from tests.simulation.history import Committed, Event
from tests.unit.checks.histories import commit, committed, history, opened, read, told

X, Y = 1, 2

TRUTH = [committed(5, {X: b"1"}), committed(6, {Y: b"2"}), committed(7, {Y: b"3"})]
FIRST = commit(1, 1, 2, {X: b"1"}, tid=5)


def test_good() -> None:
    check(
        history(
            FIRST,
            read(2, 3, 4, 0, {X: None}),  # stale, but does not say that it is not
            read(2, 2, 4, 0, {X: None}, linearizable=True),  # at the instant when the commit ended
            read(3, 3, 4, 5, {X: (b"1", 5), Y: None}, linearizable=True),
            commit(2, 4, 6, {Y: b"2"}, tid=6),
            read(1, 5, 7, 5, {X: (b"1", 5), Y: None}, linearizable=True),  # while that commit goes on
            read(3, 8, 9, 6, {X: (b"1", 5), Y: (b"2", 6)}, linearizable=True),
            commit(2, 10, None, {Y: b"3"}, {Y: 6}, number=7),
        ),
        TRUTH,
    )


BAD: dict[str, tuple[Sequence[Event], list[Committed], str]] = {
    "a stale read": (
        (FIRST, read(2, 3, 4, 0, {}, linearizable=True)),
        TRUTH[:1],
        "a stale read: client 2's linearizable read .* misses tid 0{15}5; before it was client 1's commit",
    ),
    "a read older than another": (
        (FIRST, read(2, 1, 2, 5, {}, linearizable=True), read(3, 3, 4, 0, {}, linearizable=True)),
        TRUTH[:1],
        "a stale read: client 3's",
    ),
    "a read older than another of an unfinished commit": (
        (read(2, 2, 3, 5, {}, linearizable=True), read(3, 4, 5, 0, {}, linearizable=True)),
        TRUTH[:1],
        "misses tid 0{15}5; before it was client 2's linearizable read",
    ),
    "a read older than what another client was told": (
        (told(1, 1, 5, X), read(3, 2, 3, 0, {}, linearizable=True)), TRUTH[:1], "it was what client 1 was told"
    ),
    "a read older than where another client opened": (
        (opened(1, 1, 5), read(3, 2, 3, 0, {}, linearizable=True)), TRUTH[:1], "before it was client 1's opening"
    ),
    "commits against real time": (
        (commit(2, 1, 2, {Y: b"2"}, tid=6), commit(1, 3, 4, {X: b"1"}, tid=5)),
        TRUTH[:2],
        "real time: client 1's commit .* has tid 0{15}5; before it began, tid 0{15}6 was known: client 2's commit",
    ),
    "a commit of unknown outcome against real time": (
        (commit(2, 1, 2, {Y: b"2"}, tid=6), commit(1, 3, None, {X: b"1"}, number=5)),
        TRUTH[:2],
        r"real time: client 1's commit .* \(unknown\) has tid 0{15}5",
    ),
    "seen before it began": (
        (read(2, 1, 2, 5, {X: (b"1", 5)}), commit(1, 3, 4, {X: b"1"}, tid=5)),
        TRUTH[:1],
        "real time: client 1's .* tid 0{15}5 was known: client 2's read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    events, truth, message = BAD[case]
    with pytest.raises(Broken, match=message):
        check(history(*events), truth)
