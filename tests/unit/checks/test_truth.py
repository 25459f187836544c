"""What the cluster has in the end, against what clients were answered."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.truth import check
from tests.simulation.history import Commit, Committed
from tests.unit.checks.histories import commit, committed, history, word

X, Y = 1, 2

FIRST = commit(1, 1, 2, {X: b"1", Y: b"1"}, tid=5)
SECOND = commit(2, 3, 4, {X: b"2"}, {X: 5}, checks={Y: 5}, tid=6)
UNKNOWN = commit(3, 5, None, {X: b"3", Y: b"3"}, {X: 6, Y: 5}, number=7)
REFUSED = commit(1, 6, 7, {X: b"4"}, {X: 5}, outcome="refused", number=8)
ALL = (FIRST, SECOND, UNKNOWN, REFUSED)

BOTH = [committed(5, {X: b"1", Y: b"1"}), committed(6, {X: b"2"})]
WITH_UNKNOWN = [*BOTH, committed(7, {X: b"3", Y: b"3"})]


@pytest.mark.parametrize("truth", [BOTH, WITH_UNKNOWN], ids=["unknown left out", "unknown committed"])
def test_good(truth: list[Committed]) -> None:
    check(history(*ALL), truth)


def test_others_need_no_client() -> None:
    truth = [committed(1, {X: b"0"}, 0), committed(2, {Y: b"0"}, 0), committed(6, {X: b"2"})]
    over = commit(2, 3, 4, {X: b"2"}, {X: 1}, checks={Y: 2}, tid=6)
    check(history(over), truth, frozenset({word(1), word(2)}))
    with pytest.raises(Broken, match="serial 0000000000000001 was current"):
        check(history(commit(2, 3, 4, {X: b"2"}, tid=6)), [truth[0], truth[2]], frozenset({word(1)}))


BAD: dict[str, tuple[Sequence[Commit], list[Committed], str]] = {
    "tids out of order": (ALL, BOTH[::-1], "tid 0000000000000005 after 0000000000000006"),
    "one tid twice": (ALL, [BOTH[0], BOTH[0]], "tids must rise strictly"),
    "doubled commit": (ALL, [*BOTH, committed(9, {X: b"1", Y: b"1"}, 5)], "is in the truth twice, with tids"),
    "doubled unknown commit": (
        ALL, [*WITH_UNKNOWN, committed(9, {X: b"3", Y: b"3"}, 7)], "0007 is in the truth twice"
    ),
    "lost commit": (ALL, BOTH[:1], "client 2's commit .* is not in the truth: an acknowledged commit is lost"),
    "another tid than promised": (
        ALL, [BOTH[0], committed(8, {X: b"2"}, 6)], "with another tid: 0000000000000008"
    ),
    "resurrected refused commit": (
        ALL, [*BOTH, committed(9, {X: b"4"}, 8)], "client 1's commit .* was refused, but the truth has it"
    ),
    "half commit": (ALL, [committed(5, {X: b"1"}), BOTH[1]], "not whole .* 0{15}2: b'1' was promised, None is"),
    "half unknown commit": (ALL, [*BOTH, committed(7, {X: b"3"})], r"client 3's .*\(unknown\) is not whole"),
    "other data": (ALL, [BOTH[0], committed(6, {X: b"9"})], "b'2' was promised, b'9' is there"),
    "more than was written": (ALL, [BOTH[0], committed(6, {X: b"2", Y: b"2"})], "None was promised, b'2' is"),
    "from nowhere": (ALL, [*BOTH, committed(9, {X: b"1"})], "but no client made its commit"),
    "lost update": (
        (FIRST, SECOND, commit(1, 3, 4, {X: b"4"}, {X: 5}, tid=7)),
        [*BOTH, committed(7, {X: b"4"})],
        "a lost update: client 1's .* at serial 0000000000000005, but serial 0000000000000006 was current",
    ),
    "created twice": (
        (FIRST, commit(2, 3, 4, {X: b"4"}, tid=7)),
        [BOTH[0], committed(7, {X: b"4"})],
        "at serial 0000000000000000, but serial 0000000000000005 was current",
    ),
    "over what is not there": (
        (commit(1, 1, 2, {X: b"1"}, {X: 3}, tid=5),), [committed(5, {X: b"1"})], "but serial 0000000000000000"
    ),
    "write skew in spite of checks": (
        (
            FIRST,
            commit(1, 3, 4, {X: b"2"}, {X: 5}, checks={Y: 5}, tid=6),
            commit(2, 3, 4, {Y: b"2"}, {Y: 5}, checks={X: 5}, tid=7),
        ),
        [*BOTH, committed(7, {Y: b"2"})],
        "write skew: client 2's .* relied on oid 0000000000000001",
    ),
    "one commit, two outcomes": ((FIRST, FIRST), BOTH, "two outcomes"),
    "acknowledged without a tid": (
        (commit(1, 1, 2, {X: b"1"}, outcome="acknowledged", number=1),), [], "not sound: .* with tid None"
    ),
    "a write without a base": (
        (commit(1, 1, 2, {X: b"1"}, {Y: 0}, tid=5),), [committed(5, {X: b"1"})], "not sound: .* has bases for"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    commits, truth, message = BAD[case]
    with pytest.raises(Broken, match=message):
        check(history(*commits), truth)
