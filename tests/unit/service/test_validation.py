"""What a client sends is refused before it can do harm, and what is let through harms nobody."""

from __future__ import annotations

from typing import Any

import pytest
from persistent.timestamp import TimeStamp
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.service.validation import SessionLimits, parse_transaction
from raftstorage.node.tids import LAST_GIVEN, after
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.commands import entry

LIMITS = SessionLimits(max_record_bytes=100, max_transaction_bytes=200_000)
OID = b"\0" * 7 + b"\1"
LAST_OID = b"\x7f" + b"\xff" * 7


def parsed(*records: dict[str, Any], **fields: Any) -> pb.Transaction | pb.Failure:
    transaction = pb.Transaction(records=[pb.NewRecord(**record) for record in records], **fields)
    return parse_transaction(transaction.SerializeToString(), LIMITS, HISTORY_LEVEL)


def commit(engine: MemoryEngine, transaction: pb.Transaction, tid: bytes) -> Any:
    commit = pb.CommitCommand(transaction_id=tid * 2, tid=tid, transaction=transaction.SerializeToString())
    return engine.apply(entry(engine.applied_index + 1, pb.Command(commit=commit).SerializeToString()))


@pytest.mark.parametrize("oid", [b"\xff" * 8, b"\xff" * 7 + b"\xfe", b"\x80" + b"\0" * 7])
@pytest.mark.parametrize("tid", [b"", b"\1" * 8], ids=["stored", "restored"])
def test_an_oid_behind_which_there_is_no_next_stops_no_node(oid: bytes, tid: bytes) -> None:
    """It is replicated: whatever raises here would stop every node, again at each start."""
    answer = parsed({"oid": oid, "data": b"x"}, tid=tid)
    if isinstance(answer, pb.Transaction):
        engine = MemoryEngine()
        outcome = commit(engine, answer, b"\1" * 8)
        assert outcome.tid is None and outcome.refused


def test_behind_the_last_oid_that_can_be_stored_there_are_new_ones() -> None:
    answer = parsed({"oid": LAST_OID, "data": b"x"})
    assert isinstance(answer, pb.Transaction)
    engine = MemoryEngine()
    assert commit(engine, answer, b"\1" * 8).tid == b"\1" * 8
    allocate = pb.Command(allocate=pb.AllocateCommand(count=1 << 20)).SerializeToString()
    first = engine.apply(entry(engine.applied_index + 1, allocate)).first_oid
    assert first is not None and first > LAST_OID
    given_out = parsed({"oid": first, "data": b"x"})
    assert isinstance(given_out, pb.Transaction)
    assert commit(engine, given_out, b"\2" * 8).tid == b"\2" * 8


def test_a_given_tid_leaves_room_for_later_ones() -> None:
    assert TimeStamp(3000, 1, 1, 0, 0, 0).raw() == LAST_GIVEN
    record = {"oid": OID, "data": b"x"}
    assert isinstance(parsed(record, tid=LAST_GIVEN), pb.Transaction)
    for tid in (after(LAST_GIVEN), b"\x7f" + b"\xff" * 7, b"\xff" * 8, bytes(8), b"1234567"):
        answer = parsed(record, tid=tid)
        assert isinstance(answer, pb.Failure) and answer.reason == pb.INVALID, tid


@pytest.mark.parametrize(
    ("records", "fields", "reason"),
    [
        ([{"oid": b"1234567", "data": b"x"}], {}, pb.INVALID),
        ([{"oid": b"", "data": b"x"}], {}, pb.INVALID),
        ([{"oid": OID, "data": b"x", "base_serial": b"1"}], {}, pb.INVALID),
        ([{"oid": OID, "data": b"x", "data_tid": b"1"}], {"tid": b"\1" * 8}, pb.INVALID),
        ([{"oid": OID, "data": b"x"}, {"oid": OID, "data": b"y"}], {}, pb.INVALID),
        ([{"oid": OID, "no_data": True}], {}, pb.INVALID),
        ([{"oid": OID, "no_data": True, "data": b"x"}], {"tid": b"\1" * 8}, pb.INVALID),
        ([{"oid": OID, "data": b"x" * 101}], {}, pb.TOO_LARGE),
        ([{"oid": OID, "data": b"x" * 200_000}], {}, pb.TOO_LARGE),
        ([], {"user": b"u" * 65_537}, pb.INVALID),
        ([], {"description": b"d" * 65_537}, pb.INVALID),
        ([], {"status": b"pp"}, pb.INVALID),
        ([], {"checks": [pb.Check(oid=b"1", serial=OID)]}, pb.INVALID),
        ([], {"checks": [pb.Check(oid=OID, serial=b"1")]}, pb.INVALID),
        ([], {"checks": [pb.Check(oid=OID), pb.Check(oid=OID)]}, pb.INVALID),
    ],
)
def test_malformed_transactions_are_refused(
    records: list[dict[str, Any]], fields: dict[str, Any], reason: int
) -> None:
    answer = parsed(*records, **fields)
    assert isinstance(answer, pb.Failure)
    assert answer.reason == reason and answer.code == 3 and answer.message


def test_what_is_at_the_limit_is_taken() -> None:
    record = {"oid": OID, "data": b"x" * 100}
    assert isinstance(parsed(record, user=b"u" * 65_536, status=b"p"), pb.Transaction)
    assert isinstance(parsed({"oid": OID, "no_data": True}, tid=b"\1" * 8), pb.Transaction)
    assert isinstance(parse_transaction(b"\xff" * 40, LIMITS, HISTORY_LEVEL), pb.Failure)
