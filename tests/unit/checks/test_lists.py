"""Append-only lists, and cycles between those who append and read."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.checks.cycles import Edge, cycle
from tests.simulation.checks.errors import Broken
from tests.simulation.checks.lists import check
from tests.simulation.history import Committed, Event
from tests.unit.checks.histories import commit, committed, history, read, word

X, Y = 1, 2

ONE = commit(1, 1, 2, {X: b"a", Y: b"a"}, tid=5)
TWO = commit(2, 3, 4, {X: b"a b c"}, {X: 5}, tid=6)
THREE = commit(3, 5, 6, {Y: b"a d"}, {Y: 5}, tid=7)
COMMITS = (ONE, TWO, THREE)
TRUTH = [committed(5, {X: b"a", Y: b"a"}), committed(6, {X: b"a b c"}), committed(7, {Y: b"a d"})]


def verify(events: Sequence[Event], truth: list[Committed], others: frozenset[bytes] = frozenset()) -> None:
    check(history(*events), truth, (word(X), word(Y)), others)


def test_good() -> None:
    verify(
        (
            *COMMITS,
            read(1, 1, 2, 0, {X: None, Y: None}),
            read(1, 1, 2, 5, {X: (b"a", 5), Y: (b"a", 5)}),
            read(1, 1, 2, 6, {X: (b"a b c", 6), Y: (b"a", 5)}),
            read(1, 1, 2, 7, {X: (b"a b c", 6), Y: (b"a d", 7)}),
            commit(1, 7, 8, {X: b"a b c x"}, {X: 6}, outcome="refused", number=8),
            commit(1, 7, None, {X: b"a b c y"}, {X: 6}, number=9),
        ),
        TRUTH,
    )


def test_what_others_began_goes_on() -> None:
    verify((commit(1, 1, 2, {X: b"o a"}, {X: 3}, tid=5),), [committed(3, {X: b"o"}), committed(5, {X: b"o a"})],
           frozenset({word(3)}))  # fmt: skip


def test_other_oids_do_not_matter() -> None:
    verify((commit(1, 1, 2, {3: b"a a"}, tid=5), read(1, 3, 4, 5, {3: (b"b b", 5)})), [committed(5, {3: b"c"})])


def reads(client: int, x: tuple[bytes, int] | None, y: tuple[bytes, int] | None) -> Event:
    return read(client, 8, 9, 7, {X: x, Y: y})


REFUSED = commit(1, 7, 8, {X: b"a b c x"}, {X: 6}, outcome="refused", number=8)

BAD: dict[str, tuple[Sequence[Event], list[Committed], str]] = {
    "G1a": (
        (*COMMITS, REFUSED, reads(2, (b"a b c x", 8), None)), TRUTH, "G1a: .* client 1's .* appended b'x', was"
    ),
    "G1a in a short version": ((*COMMITS, REFUSED, reads(2, (b"a x", 8), None)), TRUTH, "G1a: list 0{15}1 .*b'x'"),
    "G1b": (
        (*COMMITS, reads(2, (b"a b", 6), None)), TRUTH, r"G1b: .* was \[a b\] in client 2's read .* half of what"
    ),
    "from nowhere": ((*COMMITS, reads(2, (b"a b c z", 6), None)), TRUTH, "but nobody appended b'z'"),
    "incompatible order": (
        (*COMMITS, reads(2, (b"b a", 6), None)), TRUTH, r"incompatible order: .* was \[b a\] .* was \[a b c\]"
    ),
    "a lost append, seen": (
        (*COMMITS, commit(1, 7, 8, {X: b"a b c e"}, {X: 6}, tid=8), read(2, 9, 10, 8, {X: (b"a b c e", 8)})),
        TRUTH,
        r"a lost append: list 0{15}1 was \[a b c e\] in client 2's read .* but is \[a b c\] in the end",
    ),
    "a lost append, acknowledged": (
        (*COMMITS, commit(1, 7, 8, {X: b"a b c e"}, {X: 6}, tid=8)),
        TRUTH,
        "a lost append: client 1's commit .* appended b'e' to list 0{15}1; it is not there",
    ),
    "a lost append, written over": (
        (*COMMITS, commit(1, 7, 8, {X: b"a e"}, {X: 5}, tid=8)), [*TRUTH, committed(8, {X: b"a e"})],
        r"incompatible order: list 0{15}1 was \[a e\] in the truth at tid 0{15}8",
    ),
    "a list that shrinks": (COMMITS, [*TRUTH, committed(8, {X: b"a"})], r"a lost append: .*\[a b c\] before tid"),
    "a doubled append": (COMMITS, [*TRUTH, committed(8, {X: b"a b c b"})], "a doubled append: .* has b'b' twice"),
    "one token of two commits": (
        (ONE, TWO, commit(3, 5, 6, {X: b"a b"}, {X: 5}, tid=7)), TRUTH[:2], "not sound: .* both append b'b'"
    ),
    "over what nobody knows": ((commit(1, 1, 2, {X: b"a"}, {X: 3}, tid=5),), TRUTH, "0{15}3, of which nobody"),
    "G0": (
        (
            commit(1, 1, 2, {X: b"a", Y: b"b a"}, {Y: 6}, tid=5),
            commit(2, 1, 2, {X: b"a b", Y: b"b"}, {X: 5}, tid=6),
        ),
        [committed(5, {X: b"a", Y: b"b a"}), committed(6, {X: b"a b", Y: b"b"})],
        "G0, a cycle: client .* appended to list 0{15}[12] before; client .* before; which is where it began",
    ),
    "G1c": (
        (
            commit(1, 1, 2, {X: b"a"}, checks={Y: 6}, tid=5),
            commit(2, 1, 2, {Y: b"b"}, checks={X: 5}, tid=6),
        ),
        [committed(5, {X: b"a"}), committed(6, {Y: b"b"})],
        r"G1c, a cycle: client .* appended to list 0.* what is seen \(wr\) by; client .* seen \(wr\) by; which",
    ),
    "G-single: read skew": (
        (ONE, commit(2, 3, 4, {X: b"a b", Y: b"a b"}, {X: 5, Y: 5}, tid=6), reads(3, (b"a", 5), (b"a b", 6))),
        [TRUTH[0], committed(6, {X: b"a b", Y: b"a b"})],
        r"G-single, a cycle: client 3's read .* \(rw\) in list 0{15}1 .*; client 2's .* list 0{15}2 .*; which",
    ),
    "G-single: half of a commit": (
        (ONE, reads(2, (b"a", 5), None)),
        TRUTH[:1],
        r"G-single, a cycle: client 2's read .* did not see \(rw\) in list 0{15}2 what was appended by; "
        r"client 1's commit .* appended to list 0{15}1 what is seen \(wr\) by; which",
    ),
    "G-single: relied on what had changed": (
        (
            ONE,
            commit(2, 3, 4, {X: b"a b", Y: b"a b"}, {X: 5, Y: 5}, tid=6),
            commit(3, 3, 4, {Y: b"a b c"}, {Y: 6}, checks={X: 5}, tid=7),
        ),
        [TRUTH[0], committed(6, {X: b"a b", Y: b"a b"}), committed(7, {Y: b"a b c"})],
        "G-single, a cycle: client 3's commit",
    ),
    "G2: write skew in spite of checks": (
        (
            commit(1, 1, 2, {X: b"a"}, checks={Y: 0}, tid=5),
            commit(2, 1, 2, {Y: b"b"}, checks={X: 0}, tid=6),
        ),
        [committed(5, {X: b"a"}), committed(6, {Y: b"b"})],
        r"G2, a cycle: client .* did not see \(rw\) .*; client .* did not see \(rw\) .*; which",
    ),
    "G2: a long fork": (
        (
            commit(1, 1, 2, {X: b"a"}, tid=5),
            commit(2, 1, 2, {Y: b"b"}, tid=6),
            reads(3, (b"a", 5), None),
            reads(4, None, (b"b", 6)),
        ),
        [committed(5, {X: b"a"}), committed(6, {Y: b"b"})],
        "G2, a cycle: .*client [34]'s read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    events, truth, message = BAD[case]
    with pytest.raises(Broken, match=message):
        verify(events, truth)


# ---- the cycle finder ----------------------------------------------------------------------------------

EDGES = st.lists(
    st.builds(
        lambda source, target, kind: Edge(source, target, kind, ""),
        st.integers(0, 6), st.integers(0, 6), st.sampled_from(("ww", "wr", "rw")),
    ),
    max_size=14,
)  # fmt: skip


def sortable(edges: Sequence[Edge[int]]) -> bool:
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for edge in edges:
        if edge.source != edge.target:
            sorter.add(edge.target, edge.source)
    try:
        sorter.prepare()
    except CycleError:
        return False
    return True


def expected(edges: Sequence[Edge[int]]) -> str | None:
    if sortable(edges):
        return None
    if not sortable([edge for edge in edges if edge.kind == "ww"]):
        return "G0"
    rest = [edge for edge in edges if edge.kind != "rw"]
    if not sortable(rest):
        return "G1c"
    skips = [edge for edge in edges if edge.kind == "rw" and edge.source != edge.target]
    return "G2" if all(sortable([*rest, edge]) for edge in skips) else "G-single"


@settings(max_examples=1000, deadline=None)
@given(edges=EDGES)
def test_a_cycle_is_found_and_named_exactly_if_there_is_one(edges: list[Edge[int]]) -> None:
    found = cycle(edges)
    assert (None if found is None else found[0]) == expected(edges)
    if found is not None:
        way = found[1]
        assert len(way) >= 2 and all(edge in edges for edge in way)
        assert [edge.target for edge in way] == [edge.source for edge in (*way[1:], way[0])]
        assert len({edge.source for edge in way}) == len(way)


def test_long_chains_need_no_stack() -> None:
    edges = [Edge(node, node + 1, "ww", "") for node in range(50_000)]
    assert cycle(edges) is None
    found = cycle([*edges, Edge(50_000, 0, "rw", "")])
    assert found is not None and found[0] == "G-single" and len(found[1]) == 50_001
