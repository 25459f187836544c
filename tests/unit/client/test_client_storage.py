"""ClientStorage against the scripted cluster: order of changes, failover, exactly-once, conflicts."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ZODB.POSException as E
from persistent import Persistent
from prometheus_client import CollectorRegistry
from raftstorage import client as rc
from raftstorage.client import ClientStorage
from raftstorage.client.cluster.loop import run_in_loop
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.tests.StorageTestBase import zodb_pickle, zodb_unpickle
from ZODB.utils import load_current, maxtid

Z64 = b"\0" * 8


class Counter(Persistent):
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def _p_resolveConflict(self, old: Any, committed: Any, new: Any) -> Any:
        new["value"] += committed["value"] - old["value"]
        return new


def begin(storage: Any, oid: bytes, serial: bytes, data: bytes) -> TransactionMetaData:
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.store(oid, serial, data, "", transaction)
    return transaction


def commit(
    storage: Any, oid: bytes, serial: bytes = Z64, data: bytes = b"data", func: Any = lambda tid: None
) -> bytes:
    transaction = begin(storage, oid, serial, data)
    try:
        storage.tpc_vote(transaction)
        tid: bytes = storage.tpc_finish(transaction, func)
    except BaseException:
        storage.tpc_abort(transaction)
        raise
    return tid


class Wrapper:
    """Stands for ZODB.DB: remembers what it was told, and what lastTransaction() was just then."""

    def __init__(self, storage: Any) -> None:
        self.told: list[tuple[bytes, list[bytes], bytes]] = []
        self.storage = storage
        self.transform_record_data = self.untransform_record_data = lambda data: data
        storage.registerDB(self)

    def invalidate(self, tid: bytes, oids: Any) -> None:
        self.told.append((tid, list(oids), self.storage.cluster.feed.last))


def metric(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(f"raftstorage_client_{name}", {"storage": "test", **labels}) or 0.0


def test_commit_and_load(cluster: Any, storage: Any, registry: CollectorRegistry) -> None:
    oid = storage.new_oid()
    first = commit(storage, oid, data=b"one")
    second = commit(storage, oid, first, b"two")
    assert storage.lastTransaction() == second
    assert storage.loadBefore(oid, maxtid) == (b"two", second, None)
    assert storage.loadBefore(oid, second) == (b"one", first, second)
    assert storage.loadBefore(oid, first) is None
    assert storage.loadSerial(oid, first) == b"one"
    assert [h["tid"] for h in storage.history(oid, 5)] == [second, first]
    with pytest.raises(E.POSKeyError):
        storage.loadBefore(b"\0" * 7 + b"\xee", maxtid)
    with pytest.raises(KeyError):
        storage.history(b"\0" * 7 + b"\xee")
    assert metric(registry, "commits_total") == 2
    assert metric(registry, "leader") == 1


def test_reads_go_to_followers(cluster: Any, storage: Any) -> None:
    tid = commit(storage, b"\0" * 7 + b"\1")
    storage.cluster.feed.wait_for(tid, 5)
    for _ in range(20):
        storage.load(b"\0" * 7 + b"\1")
    served = [node.served["load_before"] for node in cluster.nodes.values()]
    assert served[1] + served[2] >= 18
    assert min(served[1:]) >= 5


def test_changes_are_told_before_the_last_tid_moves(cluster: Any, storage: Any) -> None:
    wrapper = Wrapper(storage)
    oid = b"\0" * 7 + b"\1"
    tids = [cluster.commit_elsewhere(oid) for _ in range(5)]
    storage.cluster.feed.wait_for(tids[-1], 5)
    assert [tid for tid, _, _ in wrapper.told] == tids
    assert all(last < tid for tid, _, last in wrapper.told)
    assert storage.lastTransaction() == tids[-1]


def test_no_load_is_newer_than_what_was_told(cluster: Any, storage: Any) -> None:
    oid = b"\0" * 7 + b"\1"
    seen = cluster.commit_elsewhere(oid, data=b"seen")
    storage.cluster.feed.wait_for(seen, 5)

    def hold() -> None:
        for node in cluster.nodes.values():
            node.held = []

    run_in_loop(hold)
    unseen = cluster.commit_elsewhere(oid, data=b"unseen")
    assert storage.loadBefore(oid, maxtid) == (b"seen", seen, None)
    run_in_loop(lambda: cluster.nodes[3].let_go())
    storage.cluster.feed.wait_for(unseen, 5)
    assert storage.loadBefore(oid, maxtid) == (b"unseen", unseen, None)


def test_own_commit_is_not_seen_before_its_callback_is_through(cluster: Any, storage: Any) -> None:
    wrapper = Wrapper(storage)
    oid = b"\0" * 7 + b"\1"
    first = commit(storage, oid)
    inside, go_on = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def callback(tid: bytes) -> None:
        found["feed"] = storage.cluster.feed.last
        inside.set()
        go_on.wait(10)

    writer = threading.Thread(target=lambda: found.update(tid=commit(storage, oid, first, b"two", callback)))
    writer.start()
    assert inside.wait(5)

    def look() -> None:
        found["load"] = load_current(storage, oid)[1]
        found["last"] = storage.lastTransaction()

    reader = threading.Thread(target=look)
    reader.start()
    reader.join(0.2)
    assert reader.is_alive()
    assert found["feed"] == first
    go_on.set()
    writer.join(5)
    reader.join(5)
    assert found["load"] == found["last"] == found["tid"]
    assert wrapper.told == []  # own commits are the callback's business


def test_other_commits_go_on_while_one_is_being_finished(cluster: Any, storage: Any) -> None:
    """Only the transaction's own invalidation waits for the answer to Finish."""
    wrapper = Wrapper(storage)
    transaction = begin(storage, b"\0" * 7 + b"\1", Z64, b"mine")
    storage.tpc_vote(transaction)

    def silence() -> None:
        cluster.nodes[1].silent = True

    run_in_loop(silence)
    finished: dict[str, bytes] = {}
    thread = threading.Thread(target=lambda: finished.update(tid=storage.tpc_finish(transaction)))
    thread.start()
    other = cluster.commit_elsewhere(b"\0" * 7 + b"\2")
    storage.cluster.feed.wait_for(other, 5)
    assert [tid for tid, _, _ in wrapper.told] == [other]
    cluster.lead(2)
    thread.join(5)
    assert finished["tid"] > other
    assert storage.lastTransaction() == finished["tid"]


@pytest.mark.parametrize("fault", ["lose_answer_of", "lose_request"])
@pytest.mark.parametrize("failover", [False, True])
def test_a_lost_finish_is_asked_for_and_committed_once(
    cluster: Any, storage: Any, registry: CollectorRegistry, fault: str, failover: bool
) -> None:
    oid = b"\0" * 7 + b"\1"
    transaction = begin(storage, oid, Z64, b"once")
    storage.tpc_vote(transaction)
    setattr(cluster.nodes[1], fault, "finish")
    told: list[bytes] = []
    if failover:  # whoever asks again finds nobody leading at first, and then another node
        cluster.nodes[1].on_loss = lambda: setattr(cluster, "leader", 0)
        threading.Timer(0.3, cluster.lead, (2,)).start()
    tid = storage.tpc_finish(transaction, told.append)
    assert told == [tid]
    assert [t for t, _ in cluster.records[oid]] == [tid]
    assert storage.lastTransaction() == tid
    assert metric(registry, "commits_total") == 1
    assert metric(registry, "retries_total", call="finish") >= 1
    assert metric(registry, "disconnects_total") == 1


def test_a_silent_leader_is_left_when_another_one_takes_over(cluster: Any, storage: Any) -> None:
    run_in_loop(lambda: setattr(cluster.nodes[1], "silent", True))
    threading.Timer(0.2, cluster.lead, (3,)).start()
    tid = commit(storage, b"\0" * 7 + b"\1")
    assert cluster.last == tid
    assert cluster.nodes[3].served["vote"] == 1


def test_a_commit_without_an_answer_is_neither_success_nor_failure(cluster: Any, registry: Any) -> None:
    storage = ClientStorage(
        cluster.addresses, commit_timeout=0.5, wait_timeout=5, cache_size=0, registry=registry, name="test"
    )
    oid = b"\0" * 7 + b"\1"
    transaction = begin(storage, oid, Z64, b"data")
    storage.tpc_vote(transaction)
    cluster.nodes[1].lose_answer_of = "finish"
    run_in_loop(lambda: cluster.fail_next["commit"].extend([pb.LEADERSHIP_LOST] * 100))
    with pytest.raises(rc.CommitOutcomeUnknown) as caught:
        storage.tpc_finish(transaction)
    assert isinstance(caught.value, E.StorageError)
    run_in_loop(cluster.fail_next.clear)
    assert storage.commit_outcome(caught.value) == cluster.last
    assert len(cluster.records[oid]) == 1
    commit(storage, oid, cluster.last)  # the storage is of use still
    storage.close()


def test_an_expired_lease_is_told(cluster: Any, storage: Any) -> None:
    transaction = begin(storage, b"\0" * 7 + b"\1", Z64, b"data")
    storage.tpc_vote(transaction)
    cluster.fail_next["finish"].append(pb.LEASE_EXPIRED)
    with pytest.raises(rc.LeaseExpired) as caught:
        storage.tpc_finish(transaction)
    assert isinstance(caught.value, E.StorageTransactionError)
    assert cluster.log == []
    commit(storage, b"\0" * 7 + b"\1")


def test_conflicts_are_resolved_and_told(cluster: Any, storage: Any, registry: CollectorRegistry) -> None:
    Wrapper(storage)
    oid = storage.new_oid()
    first = commit(storage, oid, data=zodb_pickle(Counter(1)))
    second = commit(storage, oid, first, zodb_pickle(Counter(3)))
    transaction = begin(storage, oid, first, zodb_pickle(Counter(11)))
    assert storage.tpc_vote(transaction) == [oid]
    third = storage.tpc_finish(transaction)
    assert third > second
    assert zodb_unpickle(storage.load(oid)[0]).value == 13
    assert metric(registry, "conflicts_total", kind="resolved") == 1


def test_unresolved_conflicts(cluster: Any, storage: Any, registry: CollectorRegistry) -> None:
    oid = storage.new_oid()
    first = commit(storage, oid, data=zodb_pickle(Counter.__base__()))
    second = commit(storage, oid, first, zodb_pickle(Counter.__base__()))
    with pytest.raises(E.ConflictError) as caught:
        commit(storage, oid, first, zodb_pickle(Counter.__base__()))
    assert (caught.value.oid, caught.value.serials) == (oid, (second, first))
    assert caught.value.class_name == "persistent.Persistent"
    transaction = begin(storage, storage.new_oid(), Z64, b"x")
    storage.checkCurrentSerialInTransaction(oid, first, transaction)
    with pytest.raises(E.ReadConflictError) as stale:
        storage.tpc_vote(transaction)
    storage.tpc_abort(transaction)
    assert (stale.value.oid, stale.value.serials) == (oid, (second, first))
    assert metric(registry, "conflicts_total", kind="write") == 1
    assert metric(registry, "conflicts_total", kind="read") == 1


def test_a_new_stream_resumes_where_the_client_is(cluster: Any, storage: Any) -> None:
    wrapper = Wrapper(storage)
    oid = b"\0" * 7 + b"\1"
    first = cluster.commit_elsewhere(oid)
    storage.cluster.feed.wait_for(first, 5)
    cluster.stop()
    missed = [cluster.commit_elsewhere(oid), cluster.commit_elsewhere(oid)]
    with pytest.raises(rc.ClientDisconnected):
        storage.cluster.wait_timeout = 0.2
        storage.load(oid)
    storage.cluster.wait_timeout = 10.0
    cluster.restart(2)
    storage.cluster.feed.wait_for(missed[-1], 10)
    assert [tid for tid, _, _ in wrapper.told] == [first, *missed]


def test_reads_pass_over_silent_and_lagging_replicas(cluster: Any, storage: Any) -> None:
    tid = commit(storage, b"\0" * 7 + b"\1")
    run_in_loop(lambda: setattr(cluster.nodes[2], "silent", True))
    run_in_loop(lambda: setattr(cluster.nodes[3], "lagging", True))
    for _ in range(5):
        assert storage.load(b"\0" * 7 + b"\1")[1] == tid


def test_reads_without_a_leader(
    cluster: Any, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftstorage.client.cluster.cluster.QUORUM_SECONDS", 0.3)
    tid = cluster.commit_elsewhere(b"\0" * 7 + b"\1")
    run_in_loop(lambda: setattr(cluster, "leader", 0))
    cluster.stop(1, 2)
    storage = ClientStorage(cluster.addresses, cache_size=0, registry=registry, wait_timeout=5)
    assert storage.lastTransaction() == tid
    assert storage.load(b"\0" * 7 + b"\1") == (b"elsewhere", tid)
    storage.close()


def test_members_are_learnt(cluster: Any, registry: CollectorRegistry) -> None:
    storage = ClientStorage(cluster.nodes[2].address, cache_size=0, registry=registry, wait_timeout=5)
    commit(storage, b"\0" * 7 + b"\1")
    cluster.stop(2)
    cluster.lead(3)
    commit(storage, b"\0" * 7 + b"\2")
    storage.close()
    cluster.restart(2)


def test_linearizable_sync_sees_what_was_committed(cluster: Any, registry: CollectorRegistry) -> None:
    storage = ClientStorage(
        cluster.addresses, cache_size=0, registry=registry, consistency="linearizable", wait_timeout=5
    )
    tid = cluster.commit_elsewhere(b"\0" * 7 + b"\1")
    storage.sync()
    assert storage.lastTransaction() == tid
    storage.close()


def test_iteration_is_a_snapshot_in_pages(cluster: Any, storage: Any) -> None:
    tids = [cluster.commit_elsewhere(bytes(7) + bytes([n])) for n in range(1, 6)]
    storage.cluster.feed.wait_for(tids[-1], 5)
    iterator = storage.iterator()
    cluster.commit_elsewhere(b"\0" * 7 + b"\7")
    found = list(iterator)
    assert [t.tid for t in found] == tids
    assert [r.data for t in found for r in t] == [b"elsewhere"] * 5
    assert [r.oid for r in found[0]] == [r.oid for r in found[0]]
    assert [t.tid for t in storage.iterator(tids[1], tids[2])] == tids[1:3]
    assert list(iterator) == []


def test_restoring_in_bulk_survives_failovers(cluster: Any, storage: Any, registry: CollectorRegistry) -> None:
    from ZODB.MappingStorage import MappingStorage

    source = MappingStorage()
    tids = [commit(source, (n + 1).to_bytes(8), data=b"%d" % n) for n in range(200)]
    steps: list[int] = []

    def progress(transactions: int, volume: int) -> None:
        steps.append(transactions)
        if transactions == 20:
            cluster.nodes[1].lose_answer_of = "commit"
        if transactions == 90:
            cluster.lead(2)

    storage.copyTransactionsFrom(source, progress=progress)
    assert [t for t, _ in cluster.log] == tids
    assert steps == list(range(1, 201))
    assert storage.lastTransaction() == tids[-1]
    storage.copyTransactionsFrom(source)  # the same again is the same
    assert [t for t, _ in cluster.log] == tids


def test_restore_keeps_the_tid(cluster: Any, storage: Any) -> None:
    transaction = TransactionMetaData("u", "d", {"k": 1})
    tid = (5).to_bytes(8)
    storage.tpc_begin(transaction, tid, "p")
    storage.restore(b"\0" * 7 + b"\1", tid, b"data", "", None, transaction)
    storage.restore(b"\0" * 7 + b"\2", tid, None, "", None, transaction)
    storage.tpc_vote(transaction)
    assert storage.tpc_finish(transaction) == tid
    (found,) = storage.iterator()
    assert (found.user, found.description, found.extension, found.status) == (b"u", b"d", {"k": 1}, "p")
    assert [r.data for r in found] == [b"data", None]
