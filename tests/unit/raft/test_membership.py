"""Memberships as values: what a change makes of one, what it may not, and the bytes in the log."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftstorage.node.raft.membership import (
    Change,
    Member,
    MemberRole,
    Membership,
    MembershipError,
    changed,
    left_joint,
)

VOTER, LEARNER, LEAVING = MemberRole.VOTER, MemberRole.LEARNER, MemberRole.LEAVING
A, B = "a" * 32, "b" * 32

BEGIN = Membership.initial({1: "one:1", 2: "two:1", 3: "three:1"}, {4: "four:1"})
GOLDEN = (
    b'{"format":1,"highest_id":7,"level":2,"members":['
    b'{"address":"one:1","id":1,"instance":"' + A.encode() + b'","role":"voter","version":2},'
    b'{"address":"","id":3,"instance":"","role":"leaving","version":2},'
    b'{"address":"caf\\u00e9:1","id":7,"instance":"","role":"learner","version":3}],"outgoing":[1,3]}'
)
OF_GOLDEN = Membership(
    (Member(1, VOTER, "one:1", A, 2), Member(3, LEAVING, "", "", 2), Member(7, LEARNER, "café:1", "", 3)),
    frozenset({1, 3}),
    7,
    2,
)


def nodes(*some: int) -> frozenset[int]:
    return frozenset(some)


# ---- changes -------------------------------------------------------------------------------------------------


def test_a_new_cluster() -> None:
    assert BEGIN.voters == {1, 2, 3}
    assert BEGIN.learners == {4}
    assert BEGIN.configurations == (nodes(1, 2, 3),)
    assert (BEGIN.is_joint, BEGIN.highest_id, BEGIN.ids) == (False, 4, nodes(1, 2, 3, 4))
    assert BEGIN.addresses == {1: "one:1", 2: "two:1", 3: "three:1", 4: "four:1"}
    assert BEGIN.member(4) == Member(4, LEARNER, "four:1")
    assert BEGIN.member(5) is None
    assert Membership.initial([2, 1]).members == (Member(1), Member(2))


@pytest.mark.parametrize(("voters", "learners"), [((), (1,)), ((0, 1), ()), ((1,), (0,)), ((1, 2), (2,))])
def test_what_no_cluster_can_begin_with(voters: tuple[int, ...], learners: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="voters"):
        Membership.initial(voters, learners)


def test_a_node_that_was_not_told_yet_has_a_membership_without_members() -> None:
    empty = Membership()
    assert (empty.configurations, empty.is_joint, empty.has_vote(1)) == ((nodes(),), False, False)
    assert Membership.decode(empty.encode()) == empty


@pytest.mark.parametrize(
    "change",
    [
        Change(add=(Member(5, LEARNER, "five:1"),)),
        Change(remove=nodes(4)),
        Change(update=(Member(2, VOTER, "other:1", A, 1),)),
        Change(add=(Member(9, LEARNER), Member(7, LEARNER)), remove=nodes(4)),
    ],
)
def test_what_leaves_the_voters_alone_is_one_step(change: Change) -> None:
    """Thesis 4.2.1: only voters are in majorities."""
    after = changed(BEGIN, change)
    assert after.configurations == BEGIN.configurations
    assert list(after.ids) == sorted(after.ids)
    assert after.highest_id == max([4, *(member.node_id for member in change.add)])


@pytest.mark.parametrize(
    ("change", "joint", "voters", "learners", "members"),
    [
        (Change(promote=nodes(4)), (1, 2, 3, 4), (1, 2, 3, 4), (), (1, 2, 3, 4)),
        (Change(remove=nodes(3)), (1, 2), (1, 2), (4,), (1, 2, 4)),
        (Change(demote=nodes(3)), (1, 2), (1, 2), (3, 4), (1, 2, 3, 4)),
        (Change(add=(Member(5),)), (1, 2, 3, 5), (1, 2, 3, 5), (4,), (1, 2, 3, 4, 5)),
        (Change(promote=nodes(4), remove=nodes(1, 2, 3)), (4,), (4,), (), (4,)),
        (Change(remove=nodes(3, 4), add=(Member(5),)), (1, 2, 5), (1, 2, 5), (), (1, 2, 5)),
    ],
)
def test_what_changes_the_voters_goes_through_both_sets(
    change: Change, joint: Any, voters: Any, learners: Any, members: Any
) -> None:
    """Paper, section 6: first both majorities, then the new one alone."""
    during = changed(BEGIN, change)
    assert during.is_joint
    assert during.configurations == (nodes(*joint), nodes(1, 2, 3))
    assert during.ids >= {1, 2, 3}, "who leaves is still reached"
    after = left_joint(during)
    assert (after.is_joint, after.voters, after.learners, after.ids) == (
        False,
        nodes(*voters),
        nodes(*learners),
        nodes(*members),
    )
    assert all(member.role is not LEAVING for member in after.members)
    assert after.highest_id == during.highest_id


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Change(), "nothing would change"),
        (Change(update=(Member(1, LEARNER, "one:1"),)), "nothing would change"),
        (Change(promote=nodes(5)), "node 5 is no member"),
        (Change(update=(Member(5),)), "node 5 is no member"),
        (Change(remove=nodes(5)), "node 5 is no member"),
        (Change(promote=nodes(4), remove=nodes(4)), "node 4 is named twice"),
        (Change(add=(Member(5), Member(5))), "node 5 is named twice"),
        (Change(add=(Member(5),), remove=nodes(5)), "node 5 is named twice"),
        (Change(add=(Member(4, LEARNER),)), "id 4 was used before; the next free one is 5"),
        (Change(add=(Member(5, LEAVING),)), "node 5 cannot be added"),
        (Change(add=(Member(1 << 62),)), "cannot be added"),
        (Change(promote=nodes(3)), "node 3 is a voter already"),
        (Change(demote=nodes(4)), "node 4 is a learner already"),
        (Change(remove=nodes(1, 2, 3)), "no voter would be left"),
        (Change(demote=nodes(1, 2), remove=nodes(3)), "no voter would be left"),
        (Change(update=(Member(1, VOTER, "two:1"),)), "the address two:1 belongs to node 2"),
        (Change(add=(Member(5, VOTER, "x:1"), Member(6, VOTER, "x:1"))), "address x:1 would belong to two"),
        (Change(add=(Member(5, VOTER, "", A), Member(6, VOTER, "", A))), "directory a+ would belong to two"),
        (Change(level=1), "node 1 knows feature level 0, 1 would be in use"),
    ],
)
def test_what_is_refused_and_why(change: Change, reason: str) -> None:
    with pytest.raises(MembershipError, match=reason):
        changed(BEGIN, change)


def test_one_change_of_voters_at_a_time() -> None:
    joint = changed(BEGIN, Change(promote=nodes(4)))
    with pytest.raises(MembershipError, match="under way"):
        changed(joint, Change(add=(Member(5, LEARNER),)))


def test_an_id_is_used_once_also_when_its_node_is_gone() -> None:
    gone = changed(changed(BEGIN, Change(add=(Member(6, LEARNER),))), Change(remove=nodes(6)))
    for used in (5, 6):
        with pytest.raises(MembershipError, match=f"id {used} was used before; the next free one is 7"):
            changed(gone, Change(add=(Member(used, LEARNER),)))


def test_a_lost_node_is_replaced_at_its_address() -> None:
    """The new one is added first, then the old one goes; then the new one tells its directory."""
    both = changed(BEGIN, Change(add=(Member(5, LEARNER, "three:1"),)))
    with pytest.raises(MembershipError, match="address three:1 belongs to node"):
        changed(both, Change(update=(Member(4, LEARNER, "three:1"),)))
    told = changed(both, Change(update=(Member(5, LEARNER, "three:1", A),)))
    swapped = left_joint(changed(told, Change(promote=nodes(5), remove=nodes(3))))
    assert swapped.addresses == {1: "one:1", 2: "two:1", 4: "four:1", 5: "three:1"}


def test_an_update_keeps_the_role_and_what_it_does_not_tell() -> None:
    known = changed(BEGIN, Change(update=(Member(4, VOTER, "", A, 3),)))
    assert known.member(4) == Member(4, LEARNER, "four:1", A, 3)
    moved = changed(known, Change(update=(Member(4, VOTER, "new:1"),)))
    assert moved.member(4) == Member(4, LEARNER, "new:1", A, 3)


def test_a_node_is_bound_to_its_directory() -> None:
    known = changed(BEGIN, Change(update=(Member(3, VOTER, "", A),)))
    with pytest.raises(MembershipError, match="bound to the directory"):
        changed(known, Change(update=(Member(3, VOTER, "", B),)))
    for other in (Change(update=(Member(2, VOTER, "", A),)), Change(add=(Member(5, LEARNER, "", A),))):
        with pytest.raises(MembershipError, match="would belong to two members"):
            changed(known, other)


def test_the_feature_level_is_one_that_all_know_and_never_falls() -> None:
    told = changed(BEGIN, Change(update=tuple(Member(node, version=2) for node in (1, 2, 3))))
    with pytest.raises(MembershipError, match="node 4 knows feature level 0, 2 would be in use"):
        changed(told, Change(level=2))
    raised = changed(told, Change(update=(Member(4, version=3),), level=2))
    assert (raised.level, raised.is_joint) == (2, False)
    with pytest.raises(MembershipError, match="never falls"):
        changed(raised, Change(level=1))
    with pytest.raises(MembershipError, match="node 5 knows feature level 1, 2 would be in use"):
        changed(raised, Change(add=(Member(5, LEARNER, version=1),)))
    with pytest.raises(MembershipError, match="node 4 knows feature level 1"):
        changed(raised, Change(update=(Member(4, version=1),)))
    assert changed(raised, Change(add=(Member(5, LEARNER, version=2),))).level == 2


# ---- bytes ---------------------------------------------------------------------------------------------------


def test_the_bytes_are_those_of_format_1() -> None:
    """What is in logs and databases: it must be read for ever."""
    assert OF_GOLDEN.encode() == GOLDEN
    assert Membership.decode(GOLDEN) == OF_GOLDEN


def altered(**fields: Any) -> bytes:
    return json.dumps(json.loads(GOLDEN) | fields, sort_keys=True, separators=(",", ":")).encode()


def altered_member(position: int, **fields: Any) -> bytes:
    members = json.loads(GOLDEN)["members"]
    members[position] |= fields
    return altered(members=members)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"1",
        b"{}",
        b"[" * 100_000,
        GOLDEN + b" ",
        GOLDEN.replace(b'"format":1', b'"format": 1'),
        altered(format=2),
        altered(format=True),
        altered(more=1),
        altered(level=-1),
        altered(level="2"),
        altered(level=2.0),
        altered(level=1 << 62),
        altered(highest_id=6),
        altered(outgoing=[3, 1]),
        altered(outgoing=[1, 1, 3]),
        altered(outgoing=[1, 3, 5]),
        altered(outgoing=[1]),
        altered(outgoing=[]),
        altered(outgoing=[[1]]),
        altered(outgoing=None),
        altered(members=[]),
        altered(members=[None]),
        altered(members=json.loads(GOLDEN)["members"][::-1]),
        altered_member(0, id=0),
        altered_member(0, id=True),
        altered_member(1, id=7),
        altered_member(0, role="king"),
        altered_member(0, role=[]),
        altered_member(0, role="learner"),
        altered_member(0, address=None),
        altered_member(0, instance=1),
        altered_member(0, version=None),
        altered_member(0, more=1),
    ],
)
def test_other_bytes_are_no_membership(data: bytes) -> None:
    with pytest.raises(ValueError):
        Membership.decode(data)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(ValueError):
        Membership.decode(data)


members = st.builds(
    Member,
    st.integers(1, 9),
    st.sampled_from([VOTER, LEARNER]),
    st.text(max_size=4),
    st.sampled_from(["", A, B]),
    st.integers(0, 3),
)
some = st.frozensets(st.integers(1, 9), max_size=2)
changes = st.builds(
    Change, st.lists(members, max_size=2).map(tuple), some, some, some, st.lists(members, max_size=1).map(tuple)
)


@given(st.lists(changes, max_size=12))
def test_whatever_was_changed_can_be_read_and_never_loses_all_majorities(wanted: list[Change]) -> None:
    """Paper, section 6: majorities of neighbours in the chain of memberships always have a node in common."""
    now = BEGIN
    for change in wanted:
        before = now
        try:
            now = changed(now, change)
        except MembershipError:
            continue
        chain = [before, now, left_joint(now)] if now.is_joint else [before, now]
        for one, next_one in pairwise(chain):
            assert Membership.decode(next_one.encode()) == next_one
            assert next_one.highest_id >= max(one.highest_id, *next_one.ids)
            assert set(one.configurations) & set(next_one.configurations), "a set of voters that both need"
            assert replace(next_one, outgoing=frozenset()).voters
        now = chain[-1]
