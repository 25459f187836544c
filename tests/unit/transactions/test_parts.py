"""Parts as a node gathers them: in order, within bounds, and dropped when nobody goes on with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from raftstorage.node.parts import MOST_GATHERINGS, PartGatherer, PartLimits, Parts, fragment_command
from raftstorage.node.service.validation import SessionLimits, parse_part
from raftstorage.proto import HISTORY_LEVEL, PART_BYTES, PART_OBJECTS
from raftstorage.proto import storage_pb2 as pb

from tests.unit.pieces import put_together

A, B = b"A" * 16, b"B" * 16
LIMITS = PartLimits(record_bytes=1000, transaction_bytes=2000, session_bytes=3000, bytes=20_000, seconds=30.0)
ME, OTHER = "one session", "another"


def oid(number: int) -> bytes:
    return number.to_bytes(8, "big")


def part(*numbers: int, data: bytes = b"data", more: bool = False, **fields: Any) -> bytes:
    records = [pb.NewRecord(oid=oid(number), data=data, **fields) for number in numbers]
    if more:
        records[-1].more = True
    return pb.Transaction(records=records).SerializeToString()


def no_rest(**fields: Any) -> pb.Transaction:
    return pb.Transaction(**fields)


class Gatherer(PartGatherer):
    """With the node's own checks of a part, and a session's bounds that are told in one place."""

    def put(self, identity: bytes, number: int, body: bytes, owner: object = ME, now: float = 0.0) -> int:
        """The reason of the refusal, 0 for none."""
        parse = partial(parse_part, limits=SessionLimits(max_record_bytes=1000))
        refused = self.add(owner, identity, number, body, parse, now)
        assert refused is None or refused.message
        return 0 if refused is None else refused.reason

    def end(self, identity: bytes, count: int, owner: object = ME) -> Parts | int:
        taken = self.take(owner, identity, count)
        return taken if isinstance(taken, Parts) else taken.reason


@pytest.fixture
def gatherer() -> Gatherer:
    return Gatherer(LIMITS)


def test_what_was_gathered_is_what_was_sent(gatherer: Gatherer) -> None:
    bodies = [part(1, 2), part(3, data=b"x" * 900, more=True), part(3, data=b"y" * 50), part(4)]
    for number, body in enumerate(bodies):
        assert gatherer.put(A, number, body) == 0
    parts = gatherer.end(A, 4)
    assert isinstance(parts, Parts) and gatherer.weight == 0
    rest = pb.Transaction(user=b"me", records=[pb.NewRecord(oid=oid(5))], checks=[pb.Check(oid=oid(6))])
    assert parts.complete(rest, rest.ByteSize(), HISTORY_LEVEL) is None
    assert list(parts.written) == [oid(n) for n in (1, 2, 3, 4, 5)] and list(parts.checked) == [oid(6)]
    commands = [pb.Command.FromString(each).fragment for each in parts.commands(b"the tid!")]
    assert [each.transaction for each in commands] == bodies
    assert [(each.transaction_id, each.number) for each in commands] == [(A, n) for n in range(4)]
    assert [each.tid for each in commands] == [b"the tid!", b"", b"", b""]
    whole = pb.Transaction.FromString(put_together([*(each.transaction for each in commands), b""]))
    assert whole.records[2].data == b"x" * 900 + b"y" * 50
    assert gatherer.end(A, 4) == pb.BUSY, "they are gone from here"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 300_000])
def test_a_fragment_is_serialized_as_protobuf_does(size: int) -> None:
    for number, tid in ((0, b"12345678"), (1, b""), (300, b"")):
        body = bytes(size)
        fragment = pb.FragmentCommand(transaction_id=A, tid=tid, number=number, transaction=body)
        assert pb.Command.FromString(fragment_command(A, number, body, tid)) == pb.Command(fragment=fragment)


def test_parts_come_one_after_the_other(gatherer: Gatherer) -> None:
    assert gatherer.put(A, 1, part(1)) == pb.BUSY
    assert gatherer.put(A, 0, part(1)) == 0
    assert gatherer.put(A, 2, part(2)) == pb.INVALID
    assert gatherer.put(A, 1, part(2)) == pb.INVALID, "what was refused stays so"
    assert gatherer.end(A, 1) == pb.INVALID
    assert gatherer.put(A, 0, part(1)) == 0
    assert gatherer.put(A, 1, part(2)) == 0
    assert gatherer.end(A, 1) == pb.INVALID
    assert gatherer.weight == 0


def test_number_0_begins_again(gatherer: Gatherer) -> None:
    gatherer.put(A, 0, part(1))
    gatherer.put(A, 1, part(2))
    assert gatherer.put(A, 0, part(9)) == 0
    parts = gatherer.end(A, 1)
    assert isinstance(parts, Parts) and list(parts.written) == [oid(9)]


@pytest.mark.parametrize(
    ("bodies", "reason"),
    [
        ([b"\xff\xff"], pb.INVALID),
        ([b""], pb.INVALID),
        ([part(1), part(1)], pb.INVALID),
        ([part(1), part(2, 1)], pb.INVALID),
        ([pb.Transaction(tid=b"12345678", records=[pb.NewRecord(oid=oid(1))]).SerializeToString()], pb.INVALID),
        ([part(1, data=b"x" * 1001)], pb.TOO_LARGE),
        ([part(1, data=b"x" * 600, more=True), part(1, data=b"x" * 600)], pb.TOO_LARGE),
        ([part(1, data=b"x" * 700), part(2, data=b"x" * 700), part(3, data=b"x" * 700)], pb.TOO_LARGE),
        ([part(1, more=True), part(2)], pb.INVALID),
        ([part(1, more=True), part(1, base_serial=oid(7))], pb.INVALID),
        ([part(1, more=True), pb.Transaction(checks=[pb.Check(oid=oid(3))]).SerializeToString()], pb.INVALID),
        ([pb.Transaction(records=[pb.NewRecord(oid=oid(1), more=True)] * 2).SerializeToString()], pb.INVALID),
        ([pb.Transaction(checks=[pb.Check(oid=oid(3))]).SerializeToString()] * 2, pb.INVALID),
    ],
)
def test_parts_that_cannot_be_are_refused_and_dropped(
    gatherer: Gatherer, bodies: list[bytes], reason: int
) -> None:
    for number, body in enumerate(bodies[:-1]):
        assert gatherer.put(A, number, body) == 0
    assert gatherer.put(A, len(bodies) - 1, bodies[-1]) == reason
    assert gatherer.weight == 0
    assert gatherer.put(A, len(bodies), part(99)) == reason
    assert gatherer.end(A, len(bodies) + 1) == reason
    assert gatherer.put(A, 0, part(99)) == 0


def test_only_a_single_record_may_be_larger_than_a_part() -> None:
    limits = SessionLimits()
    half = b"x" * (PART_BYTES // 2)
    assert isinstance(parse_part(part(1, data=half * 3), limits), pb.Transaction)
    for body in (part(1, 2, data=half), part(*range(PART_OBJECTS + 1), data=b"")):
        refused = parse_part(body, limits)
        assert isinstance(refused, pb.Failure) and refused.reason == pb.INVALID
    assert isinstance(parse_part(part(*range(PART_OBJECTS), data=b""), limits), pb.Transaction)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (no_rest(records=[pb.NewRecord(oid=oid(1))]), pb.INVALID),
        (no_rest(checks=[pb.Check(oid=oid(n)) for n in range(PART_OBJECTS + 1)]), pb.INVALID),
        (no_rest(user=b"me"), 0),
        (no_rest(tid=b"12345678"), 0),
    ],
)
def test_the_rest_goes_with_the_parts(gatherer: Gatherer, rest: pb.Transaction, reason: int) -> None:
    gatherer.put(A, 0, part(1))
    parts = gatherer.end(A, 1)
    assert isinstance(parts, Parts)
    refused = parts.complete(rest, 10, HISTORY_LEVEL)
    assert (0 if refused is None else refused.reason) == reason


def test_a_deletion_wants_a_restore_and_a_record_its_end(gatherer: Gatherer) -> None:
    for body, rest, fits in (
        (part(1, data=b"", no_data=True), no_rest(), False),
        (part(1, data=b"", no_data=True), no_rest(tid=b"12345678"), True),
        (part(1, more=True), no_rest(), False),
    ):
        gatherer.put(A, 0, body)
        parts = gatherer.end(A, 1)
        assert isinstance(parts, Parts)
        assert (parts.complete(rest, 0, HISTORY_LEVEL) is None) is fits


def test_a_session_and_the_node_hold_only_so_much() -> None:
    gatherer = Gatherer(LIMITS)
    big = part(1, data=b"x" * 990)
    assert gatherer.put(A, 0, big) == gatherer.put(B, 0, big) == 0
    assert gatherer.put(b"C" * 16, 0, big) == pb.BUSY, "the session's bound"
    assert gatherer.put(b"C" * 16, 1, part(3)) == pb.BUSY
    assert gatherer.put(A, 1, part(2)) == 0, "one that fits goes on"
    full = [number for number in range(30) if gatherer.put(A, 0, big, owner=number)]
    assert full and min(full) > 10, "the node's bound"
    assert gatherer.weight <= LIMITS.bytes
    gatherer.closed(ME)
    for owner in range(30):
        gatherer.closed(owner)
    assert gatherer.weight == 0


def test_who_has_more_than_half_of_the_node_is_let_through() -> None:
    limits = PartLimits(1000, 10_000, 20_000, bytes=4000, seconds=1.0)
    gatherer = Gatherer(limits)
    for number in range(3):
        assert gatherer.put(A, number, part(number, data=b"x" * 900)) == 0
    assert gatherer.put(A, 0, part(1, data=b"x" * 900), owner=OTHER) == pb.BUSY
    for number in range(3, 9):
        assert gatherer.put(A, number, part(number, data=b"x" * 900)) == 0
    assert isinstance(gatherer.end(A, 9), Parts)
    assert gatherer.put(A, 0, part(1, data=b"x" * 900), owner=OTHER) == 0


def test_a_refusal_says_when_to_ask_again() -> None:
    gatherer = Gatherer(PartLimits(1000, 1000, 100, bytes=100, seconds=1.0))
    refused = gatherer.add(ME, A, 0, part(1, data=b"x" * 500), pb.Transaction.FromString, 0.0)
    assert refused is not None and (refused.reason, refused.code) == (pb.BUSY, 8) and refused.retry_after_ms


def test_parts_are_dropped_when_nothing_comes_in_time_and_may_come_again(gatherer: Gatherer) -> None:
    gatherer.put(A, 0, part(1), now=0.0)
    gatherer.put(A, 1, part(2), now=20.0)
    gatherer.tick(49.0)
    assert gatherer.put(A, 2, part(3), now=49.0) == 0, "each one begins the time anew"
    gatherer.tick(79.0)
    assert gatherer.weight == 0
    # Not INVALID: an earlier attempt may be committed, and the client must ask until it knows.
    assert gatherer.put(A, 3, part(4), now=79.0) == pb.BUSY
    assert gatherer.end(A, 4) == pb.BUSY
    gatherer.put(A, 0, part(1), now=79.0)
    gatherer.tick(110.0)
    gatherer.tick(141.0)
    assert not gatherer._owners, "what was refused is forgotten too"
    assert gatherer.put(A, 1, part(2), now=141.0) == pb.BUSY and gatherer.end(A, 2) == pb.BUSY, "the same answer"


def test_an_abort_and_the_end_of_a_session_drop_parts(gatherer: Gatherer) -> None:
    for owner in (ME, OTHER):
        gatherer.put(A, 0, part(1), owner=owner)
        gatherer.put(B, 0, part(2), owner=owner)
    gatherer.drop(ME, A)
    gatherer.closed(OTHER)
    assert gatherer.end(A, 1) == pb.BUSY and gatherer.end(B, 1, owner=OTHER) == pb.BUSY
    assert isinstance(gatherer.end(B, 1), Parts)
    assert gatherer.weight == 0 and not gatherer._owners


def test_without_leadership_all_that_comes_gets_one_answer(gatherer: Gatherer) -> None:
    why = pb.Failure(reason=pb.NOT_LEADER, message="another one does")
    gatherer.put(A, 0, part(1))
    gatherer.refuse_all(why)
    assert gatherer.put(A, 1, part(2)) == pb.NOT_LEADER and gatherer.weight == 0
    assert gatherer.refuse(ME, B, 0, why, 0.0).reason == pb.NOT_LEADER
    assert gatherer.put(B, 1, part(2)) == pb.NOT_LEADER, "it leads meanwhile; but part 0 is not there"
    assert gatherer.put(B, 0, part(2)) == 0


def test_a_session_has_so_many_under_way_and_refused_ones_give_way(gatherer: Gatherer) -> None:
    identities = [b"%016d" % number for number in range(MOST_GATHERINGS + 1)]
    for identity in identities[:-1]:
        assert gatherer.put(identity, 0, part(1, data=b"")) == 0
    assert gatherer.put(identities[-1], 0, part(1)) == pb.BUSY
    assert gatherer.put(identities[3], 7, part(1)) == pb.INVALID
    assert gatherer.put(identities[-1], 0, part(1)) == 0
