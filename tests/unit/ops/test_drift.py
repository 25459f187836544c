"""The judge of drift: what leaks must be caught, what only shakes must not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from raftstorage.ops.drills.drift import (
    MAX_POINTS,
    MIN_POINTS,
    Point,
    Tolerance,
    condense,
    judge,
    second_half,
    slopes,
    theil_sen,
)

MIB = float(1 << 20)


def series(value: Callable[[float], float], seconds: int = 1800, start: int = 0) -> list[Point]:
    return [(float(at), value(at - start)) for at in range(start, start + seconds)]


def noisy(rng: random.Random, value: Callable[[float], float], noise: float) -> Callable[[float], float]:
    return lambda at: value(at) + rng.gauss(0, noise)


# ---- slopes ----------------------------------------------------------------------------------------------------


def test_a_line_has_its_slope() -> None:
    assert theil_sen([(0, 1), (1, 3), (4, 9)]) == pytest.approx(2)
    assert theil_sen([(0, 1)]) == theil_sen([]) == 0.0
    assert list(slopes([(0, 1), (0, 5), (1, 3)])) == [2, -2]  # two at one time have none between them


def test_a_quarter_of_wild_values_does_not_turn_the_slope(rng: random.Random) -> None:
    points = [(at, 0.5 * at if rng.random() > 0.25 else rng.uniform(-1e6, 1e6)) for at in map(float, range(200))]
    assert theil_sen(points) == pytest.approx(0.5, abs=0.1)
    mean = sum(at for at, _ in points) / len(points)
    least_squares = sum((at - mean) * value for at, value in points) / sum((at - mean) ** 2 for at, _ in points)
    assert abs(least_squares - 0.5) > 10  # which is why it is not that


def test_condensing_keeps_the_slope_and_the_span(rng: random.Random) -> None:
    points = series(noisy(rng, lambda at: 3 * at, 50), 5000)
    fewer = condense(points)
    assert len(fewer) == MAX_POINTS
    assert [at for at, _ in fewer] == sorted({at for at, _ in fewer})
    assert theil_sen(fewer) == pytest.approx(3, rel=0.01)
    assert condense(points[:10]) == points[:10]


def test_the_second_half_is_that_of_the_time() -> None:
    assert second_half([(0, 1), (1, 1), (2, 1), (3, 1), (10, 1), (20, 1)]) == [(10, 1), (20, 1)]
    assert second_half([]) == []


# ---- drift that must be caught ---------------------------------------------------------------------------------

MEMORY = Tolerance(step=16 * MIB, share_per_hour=0.1, per_hour=32 * MIB, least_seconds=600)


@pytest.mark.parametrize("noise", [0, 2 * MIB, 20 * MIB])
def test_a_leak_is_caught(rng: random.Random, noise: float) -> None:
    leak = noisy(rng, lambda at: 200 * MIB + 5 * MIB * at / 60, noise)
    verdict = judge([series(leak)], MEMORY)
    assert verdict.drifts
    assert verdict.word == "drifts"
    assert verdict.per_hour == pytest.approx(300 * MIB, rel=0.2)
    assert verdict.change == pytest.approx(75 * MIB, rel=0.2)  # over the 15 minutes that are judged
    assert verdict.allowed == pytest.approx(24 * MIB, rel=0.2)


def test_a_leak_that_restarts_interrupt_is_caught(rng: random.Random) -> None:
    leak = noisy(rng, lambda at: 40 + at / 5, 3)
    lives = [series(leak, 180, start=200 * number) for number in range(10)]
    assert judge(lives, Tolerance(step=12, per_hour=40, least_seconds=60)).drifts


def test_a_leak_in_one_of_many_samples_times_is_caught() -> None:
    # It grows by a step now and then, and stands still in between.
    assert judge([series(lambda at: 100 + 20 * (at // 120))], Tolerance(step=12, per_hour=40)).drifts


def test_work_that_gets_slower_is_caught(rng: random.Random) -> None:
    latency = noisy(rng, lambda at: 0.004 * (1 + at / 1800), 0.0005)
    assert judge([series(latency)], Tolerance(share=0.2, share_per_hour=0.1)).drifts
    rate = noisy(rng, lambda at: 300 - at / 10, 20)
    assert judge([series(rate)], Tolerance(share=0.2, falling=True)).drifts
    assert not judge([series(rate)], Tolerance(share=0.2)).drifts
    assert not judge([series(latency)], Tolerance(share=0.2, falling=True)).drifts


# ---- noise that must not be caught -----------------------------------------------------------------------------


def test_noise_is_no_drift(rng: random.Random) -> None:
    for _ in range(20):
        noise = noisy(rng, lambda at: 200 * MIB, 60 * MIB)
        assert not judge([series(noise)], MEMORY).drifts


def test_filling_a_cache_at_the_beginning_is_no_drift(rng: random.Random) -> None:
    fills = noisy(rng, lambda at: 300 * MIB * (1 - math.exp(-at / 120)), MIB)
    assert not judge([series(fills)], MEMORY).drifts


def test_saw_teeth_are_no_drift(rng: random.Random) -> None:
    for period in (70, 200, 410):
        phase = rng.randrange(period)
        teeth = series(lambda at, period=period, phase=phase: 1000.0 * ((at + phase) % period))
        assert not judge([teeth], Tolerance(share=0.2, share_per_hour=0.1)).drifts


def test_a_few_stalls_are_no_drift(rng: random.Random) -> None:
    def stalls(at: float) -> float:
        return 2.0 + at / 500 if rng.random() < 0.2 else 0.01

    assert not judge([series(stalls)], Tolerance(share=0.2)).drifts


def test_a_process_that_starts_small_again_is_no_drift(rng: random.Random) -> None:
    grown = noisy(rng, lambda at: 40 + 30 * min(1, at / 40), 1)
    lives = [series(grown, 180, start=200 * number) for number in range(10)]
    assert not judge(lives, Tolerance(step=12, per_hour=40, least_seconds=60)).drifts


def test_what_is_allowed_is_no_drift() -> None:
    assert not judge([series(lambda at: 100 + at / 3600)], Tolerance(per_hour=1.1)).drifts
    assert judge([series(lambda at: 100 + at / 3600)], Tolerance(per_hour=0.9)).drifts
    assert not judge([series(lambda at: 100.0 if at < 1300 else 110.0)], Tolerance(step=12)).drifts


# ---- what cannot be judged -------------------------------------------------------------------------------------


def test_too_little_is_not_judged_and_says_so() -> None:
    short = judge([series(lambda at: at * 1e9, 100)], Tolerance(least_seconds=600))
    assert (short.drifts, short.word) == (False, "not judged")
    assert short.why == "600 s are needed, the longest life had 99 s"
    few = judge([[(0.0, 0.0), (1000.0, 1e9)]], Tolerance())
    assert few.why == f"fewer than {MIN_POINTS} samples in the second half"
    assert judge([], Tolerance()).word == judge([[]], Tolerance()).word == "not judged"


def test_lives_that_are_too_short_do_not_count_beside_a_long_one() -> None:
    lives = [series(lambda at: at * 1e9, 100, start=10_000), series(lambda at: 5.0)]
    verdict = judge(lives, Tolerance(step=1, least_seconds=600))
    assert (verdict.word, verdict.level) == ("steady", 5.0)
