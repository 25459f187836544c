"""Each oid as a register, with nothing known of the truth; and the search behind it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from itertools import chain, combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.registers import ABSENT, State, check, look, replace
from tests.simulation.checks.wgl import Operation, search
from tests.simulation.history import Event
from tests.unit.checks.histories import commit, history, read, word

X, Y = 1, 2

CREATED = commit(1, 1, 2, {X: b"1"}, tid=5)
LIMBO = commit(2, 3, None, {X: b"2"}, {X: 5}, number=6)


def seen(client: int, begun: float, ended: float, value: tuple[bytes, int] | None, oid: int = X) -> Event:
    return read(client, begun, ended, 0, {oid: value}, linearizable=True)


GOOD: dict[str, Sequence[Event]] = {
    "one after the other": (
        CREATED, seen(2, 3, 4, (b"1", 5)), commit(2, 5, 6, {X: b"2"}, {X: 5}, tid=6), seen(1, 7, 8, (b"2", 6))
    ),
    "reads on both sides of a commit that goes on": (
        CREATED, commit(2, 3, 9, {X: b"2"}, {X: 5}, tid=6), seen(3, 4, 8, (b"2", 6)), seen(4, 4, 5, (b"1", 5)),
    ),
    "created while it is read": (commit(1, 1, 5, {X: b"1"}, tid=5), seen(2, 2, 4, (b"1", 5)), seen(3, 1, 3, None)),
    "unknown, never": (CREATED, LIMBO, seen(1, 8, 9, (b"1", 5)), commit(1, 10, 11, {X: b"3"}, {X: 5}, tid=7)),
    "unknown, late": (CREATED, LIMBO, seen(1, 8, 9, (b"1", 5)), seen(1, 10, 11, (b"2", 6))),
    "unknown, and written over": (
        CREATED, LIMBO, commit(1, 5, 6, {X: b"3"}, {X: 6}, tid=7), seen(1, 8, 9, (b"3", 7))
    ),
    "unknown over unknown": (
        CREATED, LIMBO, commit(3, 5, None, {X: b"3"}, {X: 6}, number=7), seen(1, 8, 9, (b"3", 7))
    ),
    "one of two unknown": (
        CREATED, LIMBO, commit(3, 3, None, {X: b"3"}, {X: 5}, number=7), seen(1, 8, 9, (b"3", 8))
    ),
    "there before all": (
        seen(1, 1, 2, (b"0", 3)), commit(1, 3, 4, {X: b"1"}, {X: 3}, tid=5), seen(1, 5, 6, (b"1", 5))
    ),
    "there before all, first relied on": (
        commit(1, 1, 2, {Y: b"1"}, checks={X: 3}, tid=5), seen(1, 3, 4, (b"0", 3))
    ),
    "never there": (commit(1, 1, 2, {Y: b"1"}, checks={X: 0}, tid=5), seen(1, 3, 4, None)),
    "relied on before it changed": (
        CREATED, commit(2, 3, 6, {Y: b"1"}, checks={X: 5}, tid=6), commit(3, 3, 5, {X: b"2"}, {X: 5}, tid=7)
    ),
    "stale reads do not count": (CREATED, read(2, 3, 4, 0, {X: None})),
    "refused commits do not count": (
        CREATED, commit(1, 3, 4, {X: b"9"}, outcome="refused", number=9), seen(2, 5, 6, (b"1", 5))
    ),
    "oids apart": (CREATED, seen(2, 3, 4, None, Y)),
}  # fmt: skip

BAD: dict[str, tuple[Sequence[Event], str]] = {
    "stale read": ((CREATED, seen(2, 3, 4, None)), "oid 0{15}1 is not linearizable: .* client 2's .* no object"),
    "older than a read before": (
        (CREATED, commit(2, 3, 9, {X: b"2"}, {X: 5}, tid=6), seen(3, 4, 5, (b"2", 6)), seen(4, 6, 7, (b"1", 5))),
        "then it is b'2' of tid 0{15}6, and none of these can come next: client 4's",
    ),
    "read before it began": (
        (CREATED, seen(2, 3, 4, (b"2", 6)), commit(2, 5, 6, {X: b"2"}, {X: 5}, tid=6)), "these .* client 2's"
    ),
    "lost update": (
        (CREATED, commit(2, 3, 6, {X: b"2"}, {X: 5}, tid=6), commit(3, 4, 5, {X: b"3"}, {X: 5}, tid=7)),
        "no more than 2 can be put in an order; .* over serial 0{15}5",
    ),
    "created twice": ((CREATED, commit(2, 1, 2, {X: b"2"}, tid=6)), "wrote b'[12]' over serial 0{16}"),
    "over what nobody wrote": ((CREATED, commit(2, 3, 4, {X: b"2"}, {X: 3}, tid=6)), "over serial 0{15}3"),
    "another serial than was acknowledged": ((CREATED, seen(2, 3, 4, (b"1", 6))), "saw b'1' of tid 0{15}6"),
    "other data than was written": ((CREATED, seen(2, 3, 4, (b"9", 5))), "saw b'9'"),
    "refused, but seen": (
        (CREATED, commit(1, 3, 4, {X: b"9"}, {X: 5}, outcome="refused", number=9), seen(2, 5, 6, (b"9", 6))),
        "saw b'9' of tid 0{15}6",
    ),
    "unknown, and back again": (
        (CREATED, LIMBO, seen(1, 5, 6, (b"2", 6)), seen(1, 8, 9, (b"1", 5))), "none of these .* saw b'1'"
    ),
    "unknown, with two serials": (
        (CREATED, LIMBO, seen(1, 5, 6, (b"2", 6)), seen(1, 8, 9, (b"2", 7))), "saw b'2' of tid 0{15}7"
    ),
    "unknown, seen before it began": ((CREATED, seen(1, 1, 2, (b"2", 6)), LIMBO), "saw b'2'"),
    "unknown, with another's tid": ((CREATED, LIMBO, seen(1, 5, 6, (b"2", 5))), "saw b'2' of tid 0{15}5"),
    "relied on what had changed": (
        (CREATED, commit(2, 3, 4, {X: b"2"}, {X: 5}, tid=6), commit(3, 5, 6, {Y: b"1"}, checks={X: 5}, tid=7)),
        "client 3's commit .* relied on serial 0{15}5",
    ),
    "there before all, in two ways": ((seen(1, 1, 2, (b"0", 3)), seen(1, 3, 4, (b"0", 4))), "saw b'0' of tid"),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_good(case: str) -> None:
    check(history(*GOOD[case]))


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    events, message = BAD[case]
    with pytest.raises(Broken, match=message):
        check(history(*events))


# ---- the search against trying every order -------------------------------------------------------------

FOREIGN = {word(8): None, word(9): b"a"}


def reading(begun: float, ended: float, value: State) -> Operation[State]:
    data, serial = value
    step = partial(look, FOREIGN, None if data is None or serial is None else (data, serial))
    return Operation(begun, ended, step, lambda: "", reads=True)


def writing(begun: float, ended: float | None, base: int, data: bytes, tid: int) -> Operation[State]:
    after = (data, None if ended is None else word(tid))
    return Operation(begun, ended, partial(replace, FOREIGN, word(base), after), lambda: "")


def possible(order: Sequence[Operation[State]]) -> bool:
    state: State | None = ABSENT
    for place, operation in enumerate(order):
        if any(later.ended is not None and later.ended < operation.begun for later in order[place:]):
            return False
        state = None if state is None else operation.step(state)
    return state is not None


def any_order(operations: Sequence[Operation[State]]) -> bool:
    answered = [operation for operation in operations if operation.ended is not None]
    others = [operation for operation in operations if operation.ended is None]
    chosen = chain.from_iterable(combinations(others, count) for count in range(len(others) + 1))
    return any(possible(order) for some in chosen for order in permutations([*answered, *some]))


MOMENTS = st.integers(0, 12)
VALUES: st.SearchStrategy[State] = st.sampled_from(
    [ABSENT, *((data, word(serial)) for data in (b"a", b"b") for serial in (1, 2, 8, 9))]
)
READS = st.builds(lambda begun, length, value: reading(begun, begun + length, value), MOMENTS, MOMENTS, VALUES)
WRITES = st.builds(
    lambda begun, length, base, data, tid: writing(begun, length and begun + length, base, data, tid),
    MOMENTS, st.none() | MOMENTS.filter(bool), st.sampled_from((0, 1, 2, 8, 9)), st.sampled_from((b"a", b"b")),
    st.sampled_from((1, 2)),
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(operations=st.lists(READS | WRITES, max_size=6))
def test_the_search_finds_an_order_exactly_if_there_is_one(operations: list[Operation[State]]) -> None:
    assert (search(operations, ABSENT) is None) == any_order(operations)


def story(rng: random.Random, length: int) -> list[Operation[State]]:
    """Around moments at which each takes effect, in this order."""
    state, found = ABSENT, list[Operation[State]]()
    for moment in range(0, 3 * length, 3):
        begun, ended = moment - rng.randrange(9), moment + rng.randrange(9)
        what = rng.choice(("read", "write", "unknown"))
        if what == "read":
            found.append(reading(begun, ended, state))
            continue
        data = rng.choice((b"a", b"b"))
        tid = rng.choice((8, 9) if data == b"a" else (8,)) if what == "unknown" else moment + 10
        base = int.from_bytes(state[1] or b"")
        found.append(writing(begun, None if what == "unknown" else ended, base, data, tid))
        state = data, word(tid)
    return found


@settings(max_examples=1000, deadline=None)
@given(seed=st.integers(0, 1 << 32), length=st.integers(1, 6), wrong=st.none() | READS | WRITES)
def test_the_search_follows_a_story(seed: int, length: int, wrong: Operation[State] | None) -> None:
    rng = random.Random(seed)
    operations = story(rng, length)
    if wrong is None:
        assert search(operations, ABSENT) is None
    else:
        operations[rng.randrange(length)] = wrong
        assert (search(operations, ABSENT) is None) == any_order(operations)


def test_many_unknown_commits_do_not_multiply() -> None:
    """Which of them was committed shows in what was read before each next one."""
    events: list[Event] = [CREATED]
    for level in range(6, 30):
        base = (b"1", 5) if level == 6 else (b"%d.0" % (level - 1), level - 1)
        for client in range(6):
            events.append(read(client, level, level, 0, {X: base}))
            events.append(
                commit(client, 1, None, {X: b"%d.%d" % (level, client)}, {X: base[1]}, number=level * 10)
            )
    check(history(*events, seen(1, 90, 99, (b"29.0", 29))))
    with pytest.raises(Broken, match=r"saw b'29\.0' of tid 0{14}1c"):
        check(history(*events, seen(1, 90, 99, (b"29.0", 28))))


def test_many_concurrent_reads_do_not_multiply() -> None:
    """Nothing is linearizable here; trying all orders of the reads would take for ever."""
    events = [CREATED, *(seen(client, 3, 4, (b"1", 5)) for client in range(200)), seen(1, 5, 6, None)]
    with pytest.raises(Broken, match="no more than 201"):
        check(history(*events))
