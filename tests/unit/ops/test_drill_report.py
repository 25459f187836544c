"""The drill's arithmetic, on histories that are known; a bad history must be called bad."""

from __future__ import annotations

import pytest
from raftstorage.ops.drills.report import Ack, analyse, gaps, longest_gap, percentile


def ack(writer: int, at: float, uid: str = "", tid: str = "01") -> Ack:
    return Ack(writer, uid or f"{writer}@{at}", tid, at - 0.01, at)


def good_history() -> tuple[list[Ack], dict[str, list[str]]]:
    acks = [Ack(w, f"uid{w}{n}", f"tid{w}{n}", n + w / 10 - 0.01, n + w / 10) for w in range(2) for n in range(5)]
    return acks, {a.uid: [a.tid] for a in acks}


def report(acks: list[Ack], committed: dict[str, list[str]]):
    return analyse(acks, [2.5], committed, end=5.0, seconds=5.0, writers=2)


def test_a_good_history_is_good() -> None:
    acks, committed = good_history()
    result = report(acks, committed)
    assert result.ok
    assert (result.lost, result.doubled, result.misplaced) == ((), (), ())
    assert result.acknowledged == result.committed == 10
    assert result.as_json()["commits_lost"] == 0


def test_a_lost_commit_is_found() -> None:
    acks, committed = good_history()
    del committed["uid13"]
    result = report(acks, committed)
    assert result.lost == ("uid13",)
    assert not result.ok
    assert result.as_json()["commits_lost"] == 1


def test_a_doubled_commit_is_found() -> None:
    acks, committed = good_history()
    committed["uid02"] = ["tid02", "another"]
    result = report(acks, committed)
    assert result.doubled == ("uid02",)
    assert result.misplaced == ()
    assert not result.ok


def test_a_commit_that_nobody_was_told_of_counts_as_doubled_when_it_is_there_twice() -> None:
    acks, committed = good_history()
    committed["unacknowledged"] = ["a", "b"]
    assert report(acks, committed).doubled == ("unacknowledged",)


def test_a_commit_at_another_tid_than_acknowledged_is_found() -> None:
    acks, committed = good_history()
    committed["uid00"] = ["elsewhere"]
    result = report(acks, committed)
    assert result.misplaced == ("uid00",)
    assert not result.ok


def test_an_unacknowledged_commit_may_be_there() -> None:
    acks, committed = good_history()
    committed["last one, answer never came"] = ["tid99"]
    result = report(acks, committed)
    assert result.ok
    assert result.committed == result.acknowledged + 1


def test_a_drill_without_a_commit_shows_nothing() -> None:
    assert not analyse([], [1.0], {}, end=2.0, seconds=2.0, writers=1).ok


def test_longest_gap_spans_the_start() -> None:
    assert longest_gap([1.0, 2.0, 5.0, 5.5], 2.2, 6.0) == 3.0


def test_longest_gap_ends_at_the_end() -> None:
    # What lasts beyond the end belongs to what came after it.
    assert longest_gap([1.0, 2.0, 9.0], 1.5, 4.0) == 2.0


def test_longest_gap_of_a_service_that_never_came_back() -> None:
    assert longest_gap([1.0, 2.0], 2.5, 10.0) == 8.0


def test_an_answer_that_was_under_way_does_not_hide_the_gap() -> None:
    # Killed at 2.0; an answer already on the wire arrives at 2.001, the next commit only at 3.5.
    (gap,) = gaps([ack(0, 1.9), ack(0, 2.001), ack(0, 3.5), ack(0, 3.6)], [2.0], 4.0)
    assert gap.client == pytest.approx(1.499)


def test_gaps_belong_to_their_own_kill() -> None:
    acks = [ack(0, t) for t in (0.9, 1.1, 1.2, 1.9, 4.9, 5.0)]
    first, second = gaps(acks, [1.0, 2.0], 5.0)
    assert first.client == pytest.approx(0.7)
    assert second.client == pytest.approx(3.0)


def test_the_client_gap_is_the_slowest_writers() -> None:
    fast = [ack(0, t) for t in (0.9, 1.2, 1.6, 2.0, 2.4)]
    slow = [ack(1, t) for t in (0.8, 2.1)]
    late = [ack(2, t) for t in (2.2, 2.3)]  # was not there before the kill
    (gap,) = gaps([*slow, *fast, *late], [1.0], 2.5)
    assert gap.client == pytest.approx(1.3)
    assert gap.service == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, 0.0), ([3.0], 50, 3.0), ([1.0, 2.0, 3.0, 4.0], 50, 2.0), ([4.0, 1.0, 3.0, 2.0], 99, 4.0)],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected
