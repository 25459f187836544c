"""What a client does when a cluster has more to do than it takes: it waits as it is told, then says so."""

from __future__ import annotations

import random
from typing import Any

import pytest
import transaction as transactions
import ZODB.POSException as E
from raftstorage import client as rc
from raftstorage.client.cluster import errors
from raftstorage.client.cluster.policy import Answer, Broken, Signal
from raftstorage.client.cluster.refusals import rest_seconds
from raftstorage.client.storage.errors import StorageBusy, StorageFull, refusal
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.MappingStorage import MappingStorage

from tests.unit.client.test_client_policy import COMMIT, COMMITTED, FINISH, RECORD, World, failure

Z64 = b"\0" * 8


def put_off(reason: int, milliseconds: int) -> pb.Event:
    event = failure(reason)
    event.failure.retry_after_ms = milliseconds
    event.failure.message = "too much"
    return event


@pytest.mark.parametrize("reason", [pb.BUSY, pb.STORAGE_FULL])
def test_a_call_that_is_put_off_waits_as_long_as_it_is_told(reason: int) -> None:
    world = World()
    first = world.start(world.lead())
    assert first is not None
    begun = world.now
    assert world.tell(Answer("a", put_off(reason, 800), first.attempt)) is None
    again = world.wake_until_sent()
    assert again.address == "a" and 0.8 <= world.now - begun <= 1.2
    world.tell(Answer("a", COMMITTED, again.attempt))
    assert world.result is COMMITTED
    assert (world.retries, world.told_off) == (1, [reason])


def test_clients_that_were_put_off_do_not_come_back_together() -> None:
    told = put_off(pb.BUSY, 1000).failure
    pauses = [rest_seconds(told, random.Random(seed)) for seed in range(50)]
    assert all(1.0 <= pause <= 1.5 for pause in pauses) and max(pauses) - min(pauses) > 0.3


def test_news_do_not_shorten_the_wait_but_another_leader_ends_it() -> None:
    world = World()
    first = world.start(world.lead())
    assert first is not None
    world.tell(Answer("a", put_off(pb.STORAGE_FULL, 1000), first.attempt))
    assert world.tell(Signal.CHANGED) is None  # a replica came or went
    world.book.learn_leader(pb.Leader(term=2, node_id=3, address="c"))
    again = world.tell(Signal.CHANGED)
    assert again is not None and again.address == "c"


def test_a_finish_that_is_put_off_stays_a_finish() -> None:
    world = World()
    send = world.start(world.lead(FINISH, again=COMMIT, start_at="a", committing=True))
    for _ in range(3):
        assert send is not None and (send.address, send.call) == ("a", FINISH)
        world.tell(Answer("a", put_off(pb.BUSY, 100), send.attempt))
        send = world.wake_until_sent()
    assert send is not None
    world.tell(Broken("a", send.attempt))  # from here on nobody knows: only a Commit may follow
    send = world.wake_until_sent()
    assert send.call is COMMIT
    world.tell(Answer("a", put_off(pb.BUSY, 100), send.attempt))
    assert world.wake_until_sent().call is COMMIT


def test_a_finish_that_is_put_off_becomes_a_commit_at_another_leader() -> None:
    world = World()
    send = world.start(world.lead(FINISH, again=COMMIT, start_at="a", committing=True))
    assert send is not None
    world.tell(Answer("a", put_off(pb.STORAGE_FULL, 1000), send.attempt))
    world.book.learn_leader(pb.Leader(term=2, node_id=2, address="b"))
    again = world.tell(Signal.CHANGED)
    assert again is not None and (again.address, again.call) == ("b", COMMIT)


def until_the_end(world: World, *answers: pb.Event) -> None:
    """Answers each attempt in turn, the last answer again and again."""
    left = list(answers)
    for _ in range(10_000):
        send = world.step.send
        answer = left.pop(0) if send is not None and len(left) > 1 else left[0]
        world.tell(Answer(send.address, answer, send.attempt) if send is not None else Signal.WOKE)


@pytest.mark.parametrize("committing", [True, False])
@pytest.mark.parametrize(
    ("reason", "error"), [(pb.BUSY, errors.StorageBusy), (pb.STORAGE_FULL, errors.StorageFull)]
)
def test_when_the_time_is_over_it_says_why_and_that_nothing_was_done(
    reason: int, error: type[Exception], committing: bool
) -> None:
    world = World()
    begun = world.now
    world.start(world.lead(committing=committing))
    with pytest.raises(error, match="too much") as caught:
        until_the_end(world, put_off(reason, 300))
    assert not isinstance(caught.value, errors.CommitOutcomeUnknown)
    assert world.now - begun == pytest.approx(5.0)


def test_a_commit_that_may_have_been_done_is_not_called_refused() -> None:
    for trouble in (Broken("a", 1), Answer("a", failure(pb.LEADERSHIP_LOST), 1)):
        world = World()
        world.start(world.lead(committing=True))
        world.tell(trouble)
        world.wake_until_sent()
        with pytest.raises(errors.CommitOutcomeUnknown):
            until_the_end(world, put_off(pb.BUSY, 300))


def test_a_late_refusal_counts_for_its_attempt() -> None:
    world = World()
    first = world.start(world.lead(committing=True))
    assert first is not None
    world.book.learn_leader(pb.Leader(term=2, node_id=2, address="b"))
    second = world.tell(Signal.CHANGED)
    assert second is not None and second.address == "b"
    assert world.tell(Answer("a", failure(pb.NOT_LEADER), first.attempt)) is None
    world.tell(Answer("b", put_off(pb.BUSY, 300), second.attempt))
    with pytest.raises(errors.StorageBusy):
        until_the_end(world, put_off(pb.BUSY, 300))


def test_a_busy_replica_is_not_read_from_before_it_is_time() -> None:
    world = World("a", "b")
    first = world.start(world.read())
    assert first is not None
    begun = world.now
    second = world.tell(Answer(first.address, put_off(pb.BUSY, 1000)))
    assert second is not None and second.address != first.address
    assert world.tell(Answer(second.address, failure(pb.LAGGING))) is None
    for _ in range(3):  # only the one that lags is asked again meanwhile
        assert world.wake_until_sent().address == second.address
        assert world.now - begun < 1.0
        world.tell(Answer(second.address, failure(pb.LAGGING)))
    while world.wake_until_sent().address != first.address:
        world.tell(Answer(second.address, failure(pb.LAGGING)))
    assert world.now - begun >= 1.0
    world.tell(Answer(first.address, RECORD))
    assert world.result is RECORD


def test_reads_that_everybody_is_too_busy_for() -> None:
    world = World()
    world.start(world.read())
    with pytest.raises(errors.StorageBusy):
        until_the_end(world, put_off(pb.BUSY, 700))
    assert world.now == pytest.approx(105.0)
    assert len(world.told_off) < 30


# ---- as an application sees it ---------------------------------------------------------------------------


def test_busy_is_retried_by_transaction_loops_and_full_is_not() -> None:
    retryable = transactions.manager.manager._retryable
    busy, full = (refusal(pb.Failure(reason=reason)) for reason in (pb.BUSY, pb.STORAGE_FULL))  # type: ignore[arg-type]
    assert isinstance(busy, StorageBusy) and isinstance(full, StorageFull)
    assert retryable(type(busy), busy) and not retryable(type(full), full)
    assert isinstance(busy, rc.ClientDisconnected) and isinstance(busy, rc.StorageBusy)
    assert isinstance(full, E.StorageSystemError) and isinstance(full, rc.StorageFull)
    assert not isinstance(full, rc.ClientDisconnected)


def commit(storage: Any, oid: bytes) -> None:
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    try:
        storage.store(oid, Z64, b"data", "", transaction)
        storage.tpc_vote(transaction)
        storage.tpc_finish(transaction)
    except BaseException:
        storage.tpc_abort(transaction)
        raise


@pytest.mark.parametrize(("reason", "error"), [(pb.BUSY, rc.StorageBusy), (pb.STORAGE_FULL, rc.StorageFull)])
def test_a_storage_raises_it_and_goes_on_afterwards(
    cluster: Any, storage: Any, registry: Any, reason: int, error: type[Exception]
) -> None:
    oid = storage.new_oid()
    storage.cluster.wait_timeout = 0.3
    cluster.fail_next["vote"] = [reason] * 1000
    with pytest.raises(error):
        commit(storage, oid)
    name = {pb.BUSY: "busy", pb.STORAGE_FULL: "storage_full"}[reason]
    told = registry.get_sample_value("raftstorage_client_refusals_total", {"storage": "test", "reason": name})
    retried = registry.get_sample_value("raftstorage_client_retries_total", {"storage": "test", "call": "vote"})
    assert told >= 2 and retried == told - 1
    cluster.fail_next["vote"] = []
    commit(storage, oid)
    assert storage.load(oid)[0] == b"data"


def source(transactions: int) -> tuple[MappingStorage, list[bytes]]:
    found = MappingStorage()
    tids = []
    for number in range(1, transactions + 1):
        transaction = TransactionMetaData()
        found.tpc_begin(transaction)
        found.store(number.to_bytes(8), Z64, b"data", "", transaction)
        found.tpc_vote(transaction)
        tids.append(found.tpc_finish(transaction))
    return found, tids


def test_restoring_goes_on_where_it_was_put_off(cluster: Any, storage: Any) -> None:
    other, tids = source(20)

    def progress(transactions: int, volume: int) -> None:
        if transactions == 5:
            cluster.fail_next["commit"] = [pb.BUSY] * 20  # all that is under way, as a node does it
        if transactions == 15:
            cluster.fail_next["commit"] = [pb.STORAGE_FULL] * 20

    storage.copyTransactionsFrom(other, progress=progress)
    assert [tid for tid, _ in cluster.log] == tids


@pytest.mark.parametrize(("reason", "error"), [(pb.BUSY, rc.StorageBusy), (pb.STORAGE_FULL, rc.StorageFull)])
def test_restoring_ends_when_its_time_is_over(
    cluster: Any, storage: Any, reason: int, error: type[Exception]
) -> None:
    other, tids = source(3)
    storage.cluster.commit_timeout = 0.5
    cluster.fail_next["commit"] = [reason] * 100_000
    with pytest.raises(error):
        storage.copyTransactionsFrom(other)
    assert len(cluster.fail_next["commit"]) > 99_000, "it did not wait"
    cluster.fail_next["commit"] = []
    storage.copyTransactionsFrom(other)
    assert [tid for tid, _ in cluster.log] == tids
