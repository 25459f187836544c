"""What clients are told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.invalidations import check
from tests.simulation.history import Event
from tests.unit.checks.histories import committed, history, opened, read, told

X, Y = 1, 2

TRUTH = [committed(5, {X: b"1", Y: b"1"}), committed(6, {X: b"2"}), committed(7, {Y: b"3"})]


def test_good() -> None:
    check(
        history(
            opened(1),
            opened(2, 0, 5),
            told(1, 1, 5, Y, X),
            read(1, 2, 3, 5, {}),
            told(2, 3, 6, X),
            told(1, 3, 6, X),
            told(1, 3, 7, Y),
            read(1, 3, 4, 6, {}),  # chosen between the two
            opened(1, 5, 6),  # again, elsewhere
            read(1, 6, 7, 6, {}),
            told(1, 8, 7, Y),
        ),
        TRUTH,
    )


BAD: dict[str, tuple[Sequence[Event], str]] = {
    "skipped": (
        (opened(1), told(1, 1, 5, X, Y), told(1, 2, 7, Y)),
        "tid 0000000000000006 between them, which changed oids 0000000000000001, was skipped",
    ),
    "the first skipped": ((opened(1), told(1, 1, 6, X)), "came after tid 0{16}: tid 0{15}5 between them"),
    "out of order": ((opened(1, 0, 5), told(1, 1, 7, Y), told(1, 2, 6, X)), "was skipped"),
    "late": (
        (opened(1, 0, 5), told(1, 1, 6, X), told(1, 2, 7, Y), told(1, 3, 6, X)), "told twice or out of order"
    ),
    "twice": ((opened(1, 0, 5), told(1, 1, 6, X), told(1, 2, 6, X)), "told twice or out of order"),
    "what it had when it opened": ((opened(1, 0, 6), told(1, 1, 6, X)), "told twice or out of order"),
    "an oid left out": ((opened(1), told(1, 1, 5, X)), "named oids 0{15}1; changed were 0{15}1, 0{15}2"),
    "an oid too many": ((opened(1, 0, 5), told(1, 1, 6, X, Y)), "named oids 0{15}1, 0{15}2; changed were 0{15}1$"),
    "an oid twice": ((opened(1, 0, 5), told(1, 1, 6, X, X)), "named oids"),
    "what is not committed": ((opened(1), told(1, 1, 8, X)), "0008, is not in the truth"),
    "a read ahead": (
        (opened(1, 0, 5), read(1, 1, 2, 6, {}), told(1, 3, 6, X)),
        "snapshot 0000000000000006 runs ahead of what the client was told, tid 0000000000000005",
    ),
    "a read behind": (
        (opened(1, 0, 5), told(1, 1, 6, X), read(1, 2, 3, 5, {})), "falls behind tid 0{15}6, which .* told before"
    ),
    "a read from before it opened": ((opened(1, 0, 6), read(1, 2, 3, 5, {})), "falls behind tid 0{15}6"),
    "told before it opened": ((told(1, 1, 5, X, Y), opened(1)), "comes before the client opened"),
    "told to another client": (
        (opened(1, 0, 5), opened(2, 0, 5), told(1, 1, 6, X), read(2, 2, 3, 6, {})), "client 2's read .* runs ahead"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    events, message = BAD[case]
    with pytest.raises(Broken, match=message):
        check(history(*events), TRUTH)
