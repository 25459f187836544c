"""A commit whose outcome nobody could tell: what an application, and what runs its transactions, makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import raftstorage.client as rc
import transaction as transactions
from prometheus_client import CollectorRegistry
from raftstorage.client import ClientStorage
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.utils import z64

from tests.unit.client.conftest import run_in_loop

OID = b"\0" * 7 + b"\1"


@pytest.fixture
def impatient(cluster: Any, registry: CollectorRegistry) -> Iterator[ClientStorage]:
    storage = ClientStorage(
        cluster.addresses, commit_timeout=0.5, wait_timeout=0.5, cache_size=0, registry=registry, name="test"
    )
    storage.delivery_timeout = 0.2
    yield storage
    storage.close()


def voted(storage: ClientStorage, serial: bytes = z64) -> TransactionMetaData:
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.store(OID, serial, b"data", "", transaction)
    storage.tpc_vote(transaction)
    return transaction


def would_be_run_again(error: Exception) -> bool:
    """By transaction loops and publishers, as Zope's, without asking anybody."""
    return bool(transactions.manager.manager._retryable(type(error), error))


def refuse(cluster: Any, *reasons: int) -> None:
    run_in_loop(lambda: cluster.fail_next["commit"].extend(reasons))


def left_open(cluster: Any, storage: ClientStorage) -> rc.CommitOutcomeUnknown:
    """A commit that is done, as its client does not know."""
    transaction = voted(storage)
    cluster.nodes[1].lose_answer_of = "finish"
    refuse(cluster, *[pb.LEADERSHIP_LOST] * 100)
    with pytest.raises(rc.CommitOutcomeUnknown) as caught:
        storage.tpc_finish(transaction)
    run_in_loop(cluster.fail_next.clear)
    return caught.value


def test_it_is_not_run_again_by_itself(cluster: Any, impatient: ClientStorage) -> None:
    unknown = left_open(cluster, impatient)
    assert not would_be_run_again(unknown)
    assert not isinstance(unknown, rc.ClientDisconnected), "that says that nothing was changed"
    assert len(cluster.records[OID]) == 1


@pytest.mark.parametrize("reason", [pb.BUSY, pb.STORAGE_FULL, pb.NOT_LEADER])
def test_who_asks_and_is_refused_knows_no_more_than_before(
    cluster: Any, impatient: ClientStorage, reason: int
) -> None:
    unknown = left_open(cluster, impatient)
    refuse(cluster, *[reason] * 1000)
    with pytest.raises(rc.CommitOutcomeUnknown) as caught:
        impatient.commit_outcome(unknown)
    run_in_loop(cluster.fail_next.clear)
    assert impatient.commit_outcome(caught.value) == cluster.last
    assert len(cluster.records[OID]) == 1


def test_who_asks_and_reaches_nobody_knows_no_more_than_before(cluster: Any, impatient: ClientStorage) -> None:
    unknown = left_open(cluster, impatient)
    cluster.stop()
    with pytest.raises(rc.CommitOutcomeUnknown) as caught:
        impatient.commit_outcome(unknown)
    assert caught.value.transaction_id == unknown.transaction_id


def test_committed_while_others_changes_do_not_arrive_is_not_run_again(
    cluster: Any, impatient: ClientStorage
) -> None:
    for node in cluster.nodes.values():
        run_in_loop(lambda node=node: setattr(node, "held", []))
    transaction = voted(impatient)
    told: list[bytes] = []
    with pytest.raises(rc.CommitOutcomeUnknown, match="committed, but") as caught:
        impatient.tpc_finish(transaction, told.append)
    assert not would_be_run_again(caught.value)
    assert told == [cluster.last]
    for node in cluster.nodes.values():
        run_in_loop(node.let_go)
    assert impatient.commit_outcome(caught.value) == cluster.last
    assert len(cluster.records[OID]) == 1
