"""Who is let in, who is told to come back, and when."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftstorage.node.admission import (
    FULL_MS,
    LEAST_MS,
    MOST_MS,
    NOTHING,
    Amount,
    Bounds,
    DrainRate,
    Load,
    Rate,
    Work,
    decide,
    drained_ms,
    filled_ms,
)
from raftstorage.node.disk_space import Room
from raftstorage.node.held import Held
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.fuzzing import explore

BOUNDS = Bounds(Amount(100, 1000), Amount(200, 2000), Amount(50, 500))
RATE = Rate(100.0, 1000.0)


def reason(work: Work, **load: Any) -> int | None:
    refused = decide(work, Load(**load), BOUNDS, RATE)
    return None if refused is None else refused.reason


@pytest.mark.parametrize("backlog", [Amount(100, 0), Amount(1, 1000), Amount(10_000, 10_000)])
def test_new_work_ends_at_the_first_bound(backlog: Amount) -> None:
    assert reason(Work.NEW, backlog=backlog, own=NOTHING, sessions=5) == pb.BUSY


@pytest.mark.parametrize(
    ("backlog", "taken"), [(Amount(199, 1999), True), (Amount(200, 0), False), (Amount(0, 2000), False)]
)
def test_what_was_voted_for_ends_at_the_second(backlog: Amount, taken: bool) -> None:
    assert (reason(Work.VOTED, backlog=backlog, own=Amount(90, 900)) is None) is taken


def test_without_pressure_nobody_counts_shares() -> None:
    assert reason(Work.NEW, backlog=Amount(49, 499), own=Amount(49, 499), sessions=40) is None


@pytest.mark.parametrize(
    ("own", "sessions", "taken"), [(49, 1, True), (50, 1, False), (33, 2, False), (32, 2, True)]
)
def test_under_pressure_each_gets_an_equal_part_and_one_is_kept(own: int, sessions: int, taken: bool) -> None:
    load: dict[str, Any] = {"backlog": Amount(99, 0), "own": Amount(own, 0), "sessions": sessions}
    assert (reason(Work.NEW, **load) is None) is taken
    load["backlog"], load["own"] = Amount(0, 990), Amount(1, own * 10 + 5)
    assert (reason(Work.NEW, **load) is None) is taken


def test_who_has_nothing_under_way_is_let_in_below_the_bound() -> None:
    for sessions in (1, 10, 100_000):
        assert reason(Work.NEW, backlog=Amount(99, 999), own=NOTHING, sessions=sessions) is None


def test_votes_that_nobody_finishes_are_bounded_and_shared() -> None:
    full = Load(NOTHING, NOTHING, held=Amount(50, 0), own_held=NOTHING)
    assert reason_of(full) == pb.BUSY
    assert decide(Work.VOTED, full, BOUNDS, RATE) is None, "to finish them is how they end"
    pressed = replace(full, held=Amount(40, 0), holders=2, own_held=Amount(16, 0))
    assert reason_of(pressed) == pb.BUSY
    assert reason_of(replace(pressed, own_held=Amount(15, 0))) is None


def reason_of(load: Load) -> int | None:
    refused = decide(Work.NEW, load, BOUNDS, RATE)
    return None if refused is None else refused.reason


@pytest.mark.parametrize(
    ("room", "new", "voted"),
    [(Room.AMPLE, None, None), (Room.LOW, pb.STORAGE_FULL, None), (Room.NONE, pb.STORAGE_FULL, pb.STORAGE_FULL)],
)
def test_a_disk_without_room(room: Room, new: int | None, voted: int | None) -> None:
    load = Load(NOTHING, NOTHING, room=room)
    for work, expected in ((Work.NEW, new), (Work.VOTED, voted)):
        refused = decide(work, load, BOUNDS, RATE)
        assert (None if refused is None else refused.reason) == expected
        assert refused is None or refused.retry_after_ms == FULL_MS


@pytest.mark.parametrize(
    ("waiting", "rate", "milliseconds"),
    [
        (Amount(100, 0), Rate(100, 1000), 500),  # fifty more than half
        (Amount(0, 1000), Rate(100, 1000), 500),
        (Amount(150, 600), Rate(100, 1000), 1000),  # the longer of both
        (Amount(10, 10), Rate(100, 1000), LEAST_MS),
        (Amount(1000, 0), Rate(100, 1000), MOST_MS),
        (Amount(100, 0), Rate(0, 0), MOST_MS),  # nothing moves
    ],
)
def test_the_hint_is_when_half_of_the_bound_is_free(waiting: Amount, rate: Rate, milliseconds: int) -> None:
    assert drained_ms(waiting, BOUNDS.new, rate) == milliseconds


def test_the_hint_for_a_line_whose_speed_nobody_knows() -> None:
    hints = [filled_ms(Amount(items, 0), BOUNDS.new) for items in (0, 25, 50, 100, 500)]
    assert hints == [LEAST_MS, MOST_MS // 4, MOST_MS // 2, MOST_MS, MOST_MS]


def test_the_rate_is_that_of_busy_times() -> None:
    rate = DrainRate()
    for tick in range(100):
        rate.applied(50, 5000)
        rate.tick(tick * 0.1, busy=True)
    assert rate.rate.items == pytest.approx(500, rel=0.01) and rate.rate.bytes == pytest.approx(50_000, rel=0.02)
    busy = rate.rate
    for tick in range(100, 200):  # hardly anybody asks for anything
        rate.applied(1, 100)
        rate.tick(tick * 0.1, busy=False)
    assert rate.rate == busy
    for tick in range(200, 300):  # a disk that hangs
        rate.tick(tick * 0.1, busy=True)
    assert rate.rate.items < 1


def test_two_greedy_sessions_and_modest_ones_share_as_they_ask() -> None:
    """A thousand writes outstanding beside one: the greedy get equal parts, the modest are never starved."""
    served, refused = simulate({"greedy": 1000, "hungry": 1000, "modest": 1, "shy": 1}, rounds=2000, drained=5)
    # Below half of the bound it is first come, first served; so the parts of the greedy are only about equal.
    assert 2 / 3 < served["greedy"] / served["hungry"] < 3 / 2
    # A write waits for at most a whole bound before it, and comes again when it is through.
    assert min(served["modest"], served["shy"]) >= 2000 * 5 // (BOUNDS.new.items + 5) * 0.9
    assert refused["modest"] + refused["shy"] < 10 and refused["greedy"] > 1000
    assert sum(served.values()) > 2000 * 5 * 0.95, "what is drained is not used"


def simulate(wanted: dict[str, int], rounds: int, drained: int) -> tuple[Counter[str], Counter[str]]:
    """Each session keeps so many writes outstanding, and asks in each round for all that it lacks."""
    line: deque[str] = deque()
    own: Counter[str] = Counter()
    served: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for number in range(rounds):
        names = list(wanted)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            active = sum(1 for other in names if own[other] or other == name)
            while own[name] < wanted[name]:
                load = Load(Amount(len(line), 0), Amount(own[name], 0), active)
                if decide(Work.NEW, load, BOUNDS, RATE) is not None:
                    refused[name] += 1
                    break
                line.append(name)
                own[name] += 1
        assert len(line) <= BOUNDS.new.items
        for _ in range(min(drained, len(line))):
            done = line.popleft()
            own[done] -= 1
            served[done] += 1
    return served, refused


def test_all_that_is_drained_is_used_and_nobody_starves() -> None:
    @given(wants=st.lists(st.integers(1, 300), min_size=1, max_size=8), drained=st.integers(1, 30))
    def any_mix(wants: list[int], drained: int) -> None:
        rounds = 200
        served, _ = simulate({str(n): want for n, want in enumerate(wants)}, rounds, drained)
        assert len(served) == len(wants)
        if sum(wants) > 2 * drained:  # there is always something to drain
            assert sum(served.values()) >= (rounds - 2) * min(drained, len(wants))
        least = min(served.values())
        # Everybody is served once in about the time that a whole bound takes.
        assert least >= (rounds * drained) // (BOUNDS.new.items + drained * 2) * 0.5 - 1

    explore(any_mix, 50)


class Piece:
    def __init__(self, owner: str, size: int) -> None:
        self.owner = owner
        self.size = size


def test_what_is_held_is_counted_by_owner() -> None:
    @given(
        steps=st.lists(
            st.tuples(st.sampled_from(["put", "pop", "clear"]), st.integers(0, 5), st.sampled_from("ab")),
            max_size=40,
        )
    )
    def any_steps(steps: list[tuple[str, int, str]]) -> None:
        held: Held[Piece] = Held(lambda work: work.size)
        plain: dict[bytes, tuple[str, int]] = {}
        for number, (step, key, owner) in enumerate(steps):
            identity = bytes([key])
            if step == "put":
                held[identity] = work = Piece(owner, number)
                plain.pop(identity, None)  # the order is that of the puts: leases end in it
                plain[identity] = (owner, number)
                work.size = -1  # what is taken out may have become smaller
            elif step == "pop":
                found = held.pop(identity, None)
                assert (found is None) == (plain.pop(identity, None) is None)
            else:
                held.clear()
                plain.clear()
            assert list(held) == list(plain)
            assert held.amount == Amount(len(plain), sum(size for _, size in plain.values()))
            assert held.owners == len({owner for owner, _ in plain.values()})
            for one in "ab":
                mine = [size for owner, size in plain.values() if owner == one]
                assert held.of(one) == Amount(len(mine), sum(mine))

    explore(any_steps, 200)
