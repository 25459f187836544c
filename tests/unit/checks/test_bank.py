"""Accounts whose sum stays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.simulation.checks.bank import check
from tests.simulation.checks.errors import Broken
from tests.simulation.history import Committed, Event
from tests.unit.checks.histories import committed, history, read, word

A, B, OTHER = 1, 2, 3
ACCOUNTS = (word(A), word(B))
CREATED = [committed(5, {A: b"4|a"}), committed(6, {B: b"6", OTHER: b"no number"})]
TRUTH = [*CREATED, committed(7, {A: b"3|b", B: b"7|b"}), committed(8, {A: b"-1|c", B: b"11"})]


def test_good() -> None:
    events = (
        read(1, 1, 2, 0, {A: None, B: None}),
        read(1, 1, 2, 5, {A: (b"4|a", 5), B: None}),
        read(1, 3, 4, 6, {A: (b"4|a", 5), B: (b"6", 6), OTHER: (b"no number", 6)}),
        read(1, 5, 6, 8, {A: (b"-1|c", 8), B: (b"11", 8)}),
        read(1, 7, 8, 8, {A: (b"100", 8)}),  # does not cover all
    )
    check(history(*events), TRUTH, ACCOUNTS, 10)


def test_without_accounts_there_is_nothing_to_check() -> None:
    check(history(), TRUTH, (), 0)


def test_numbers_may_be_written_in_another_way() -> None:
    truth = [committed(5, {A: b"\\x0a", B: b"\\x00"})]
    check(history(), truth, ACCOUNTS, 10, lambda data: int(data[2:], 16))


BAD: dict[str, tuple[Sequence[Event], list[Committed], str]] = {
    "read skew": (
        (read(2, 1, 2, 7, {A: (b"4|a", 5), B: (b"7|b", 7)}),),
        TRUTH,
        "client 2's read .* saw accounts that hold 11, not 10: 0{15}1: b'4|a' of tid 0{15}5, ",
    ),
    "an account gone": ((read(2, 1, 2, 7, {A: (b"4|a", 5), B: None}),), TRUTH, "saw no account 0{15}2"),
    "no number seen": ((read(2, 1, 2, 7, {A: (b"x", 5), B: (b"6", 6)}),), TRUTH, "no number at client 2's read"),
    "half a transfer": ((), [*CREATED, committed(7, {A: b"3"})], "hold 9 after tid 0{15}7, not 10"),
    "lost update": (
        (), [*TRUTH, committed(9, {A: b"2|d", B: b"7|d"})], "the accounts hold 9 after tid 0{15}9"
    ),
    "created with too much": ((), [committed(5, {A: b"4", B: b"7"})], "hold 11 after tid 0{15}5"),
    "no number": ((), [*TRUTH, committed(9, {A: b""})], "account 0{15}1 holds no number at tid 0{15}9: b''"),
    "never created, but seen": (
        (read(2, 1, 2, 7, {A: (b"1", 5), B: (b"6", 6)}),), [], "hold 7, not 10"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    events, truth, message = BAD[case]
    with pytest.raises(Broken, match=message):
        check(history(*events), truth, ACCOUNTS, 10)
