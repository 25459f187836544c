"""How far a follower is behind: exact where a sample tells it, never more than is known."""

from __future__ import annotations

from unittest import mock

import pytest
from raftstorage.node import lag
from raftstorage.node.lag import Lag, LagMeter

NONE = Lag(0, 0, 0, 0.0)


@pytest.fixture
def meter() -> LagMeter:
    """Entries 4, 6, 9 and 12 were the last ones at 10, 11, 13 and 16 seconds."""
    meter = LagMeter()
    meter.sample(10.0, 4, transactions=2, size=100)
    meter.sample(11.0, 6, transactions=3, size=150)
    meter.sample(13.0, 9, transactions=6, size=450)
    meter.sample(16.0, 12, transactions=7, size=500)
    return meter


def test_nobody_is_behind_of_what_was_not_measured() -> None:
    assert LagMeter().lag(0, 5.0) == NONE


@pytest.mark.parametrize("match", [12, 13])
def test_who_has_the_newest_entry_lacks_nothing(meter: LagMeter, match: int) -> None:
    assert meter.lag(match, 99.0) == NONE


@pytest.mark.parametrize(
    ("match", "lags"),
    [
        (9, Lag(3, 1, 50, 4.0)),
        (6, Lag(6, 4, 350, 7.0)),
        (4, Lag(8, 5, 400, 9.0)),
        # It has a part of what came between two samples: none of it is taken for had.
        (11, Lag(1, 1, 50, 4.0)),
        (7, Lag(5, 4, 350, 7.0)),
        # What came before the first sample is not known, but for the number of entries.
        (3, Lag(9, 5, 400, 10.0)),
        (0, Lag(12, 5, 400, 10.0)),
    ],
)
def test_it_is_counted_from_the_last_sample_that_a_follower_has(meter: LagMeter, match: int, lags: Lag) -> None:
    assert meter.lag(match, 20.0) == lags


def test_time_goes_on_while_the_log_stands_still(meter: LagMeter) -> None:
    meter.sample(18.0, 12, 7, 500)
    assert meter.lag(9, 21.0) == Lag(3, 1, 50, 5.0)
    assert meter.lag(9, 15.0).seconds == 0.0


def test_who_is_further_behind_than_the_oldest_sample_is_at_least_that_far_behind() -> None:
    with mock.patch.object(lag, "MOST_SAMPLES", 2):
        meter = LagMeter()
    for index in range(1, 6):
        meter.sample(float(index), index, index, 10 * index)
    assert meter.lag(4, 7.0) == Lag(1, 1, 10, 2.0)
    assert meter.lag(1, 7.0) == Lag(4, 1, 10, 3.0)


def test_the_next_leadership_begins_anew(meter: LagMeter) -> None:
    meter.clear()
    assert meter.lag(0, 20.0) == NONE
    meter.sample(30.0, 20, 1, 10)
    assert meter.lag(15, 31.0) == Lag(5, 0, 0, 1.0)
