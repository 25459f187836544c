"""How fast bytes may go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftstorage.node.snapshots.pace import TokenBucket


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    bucket = TokenBucket(100, 50)
    assert bucket.take(50, now=0) == 0
    assert bucket.take(100, now=0) == 1.0
    assert bucket.take(100, now=0) == 2.0
    assert bucket.take(0, now=2) == 0
    assert bucket.take(10, now=2) == pytest.approx(0.1)


def test_a_rest_is_worth_no_more_than_the_burst() -> None:
    bucket = TokenBucket(100, 50)
    bucket.take(50, now=0)
    assert bucket.take(50, now=1000) == 0
    assert bucket.take(50, now=1000) == 0.5


def test_no_rate_is_no_limit() -> None:
    bucket = TokenBucket(0, 0)
    assert [bucket.take(1 << 40, now=0) for _ in range(3)] == [0, 0, 0]


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(100, 50)
    bucket.take(50, now=10)
    assert bucket.take(100, now=0) == 1.0
    assert bucket.take(100, now=10) == 2.0


@pytest.mark.parametrize(("rate", "burst"), [(-1, 0), (1, -1)])
def test_nonsense_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError):
        TokenBucket(rate, burst)


@given(
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100)), min_size=1),
)
def test_never_more_than_the_burst_above_the_rate(rate: int, burst: int, takes: list[tuple[int, int]]) -> None:
    """Whoever waits as told sends, up to any moment, no more than the rate gives, the burst and one piece."""
    bucket = TokenBucket(rate, burst)
    now = 0.0
    sent = 0
    for amount, pause in takes:
        now += pause / 10
        now += bucket.take(amount, now)
        sent += amount
        assert sent <= burst + rate * now + 1e-6 * sent + 1e-6
