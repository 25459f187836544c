"""What one read sees, and what one client sees read by read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.snapshots import check
from tests.simulation.history import Event
from tests.unit.checks.histories import commit, committed, history, opened, read, word

X, Y = 1, 2

TRUTH = [committed(5, {X: b"1", Y: b"1"}), committed(6, {X: b"2"}), committed(7, {Y: b"3"})]
OLD = {X: (b"1", 5), Y: (b"1", 5)}
NEW = {X: (b"2", 6), Y: (b"3", 7)}


def test_good() -> None:
    check(
        history(
            opened(1),
            read(1, 1, 2, 0, {X: None, Y: None}),
            read(1, 3, 4, 5, OLD),
            commit(1, 5, 6, {X: b"2"}, {X: 5}, tid=6),
            opened(2, 6, 5),
            read(2, 7, 8, 5, OLD),
            read(1, 7, 8, 6, {X: (b"2", 6), Y: (b"1", 5)}),
            read(1, 9, 10, 7, NEW),
        ),
        TRUTH,
    )


def test_reads_that_overlap_are_not_compared() -> None:
    check(history(opened(1), read(1, 1, 3, 7, NEW), read(1, 2, 4, 5, OLD)), TRUTH)


def test_a_read_that_began_before_the_commit_ended_need_not_see_it() -> None:
    check(history(opened(1), commit(1, 1, 5, {X: b"2"}, {X: 5}, tid=6), read(1, 4, 6, 5, OLD)), TRUTH)


def test_others_may_be_where_a_client_opens() -> None:
    check(history(opened(1, 0, 3)), TRUTH, frozenset({word(3)}))


BAD: dict[str, tuple[Sequence[Event], str]] = {
    "read skew": (
        (opened(1), read(1, 1, 2, 5, {X: (b"1", 5), Y: (b"3", 7)})),
        "at snapshot 0{15}5 saw oid 0{15}2 as b'3' of tid 0{15}7; the truth there is b'1' of tid 0{15}5",
    ),
    "half of a commit": ((opened(1), read(1, 1, 2, 5, {X: (b"1", 5), Y: None})), "as no object; the truth"),
    "an object too early": ((opened(1), read(1, 1, 2, 0, {X: (b"1", 5)})), "the truth there is no object"),
    "other data": ((opened(1), read(1, 1, 2, 5, {X: (b"9", 5)})), "saw .* b'9'"),
    "another serial": ((opened(1), read(1, 1, 2, 7, {X: (b"2", 7)})), "the truth there is b'2' of tid 0{15}6"),
    "a value that changes within one snapshot": (
        (opened(1), read(1, 1, 2, 5, OLD), read(1, 3, 4, 5, {X: (b"2", 6)})),
        "saw oid 0000000000000001 as b'2'",
    ),
    "snapshots that go back": (
        (opened(1), read(1, 1, 2, 7, NEW), read(1, 3, 4, 5, OLD)), "monotonic reads: client 1's read"
    ),
    "one's own commit not seen": (
        (opened(1), commit(1, 1, 2, {X: b"2"}, {X: 5}, tid=6), read(1, 3, 4, 5, OLD)),
        "read your writes: .* falls behind tid 0000000000000006",
    ),
    "one's own commit not seen at the same instant": (
        (opened(1), commit(1, 1, 2, {X: b"2"}, {X: 5}, tid=6), read(1, 2, 3, 5, OLD)), "read your writes"
    ),
    "forgotten when opened again": (
        (opened(1), read(1, 1, 2, 7, NEW), opened(1, 3, 5), read(1, 4, 5, 5, OLD)), "monotonic reads"
    ),
    "a snapshot that never was": ((opened(1), read(1, 1, 2, 9, NEW)), "that tid is not in the truth, nor"),
    "opened at a tid that never was": ((opened(1, 0, 9),), "client 1's opening at 0.0000 .* not in the truth"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    events, message = BAD[case]
    with pytest.raises(Broken, match=message):
        check(history(*events), TRUTH)
