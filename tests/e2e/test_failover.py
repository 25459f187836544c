"""A leader dies, hangs or leaves; what was acknowledged is there, once, and nobody sees anything stale."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.utils import maxtid, p64, z64

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

#: Seconds that a client may need until it has found the new leader.
FAILOVER = 60


class Listener:
    """Stands in for ZODB.DB: records the invalidations of a storage in the order they come."""

    def __init__(self, storage: Any) -> None:
        self.seen: list[tuple[bytes, tuple[bytes, ...]]] = []
        self.resets = 0
        storage.registerDB(self)

    def invalidate(self, tid: bytes, oids: Any, version: str = "") -> None:
        self.seen.append((tid, tuple(sorted(oids))))

    def invalidateCache(self) -> None:
        self.resets += 1

    def references(self, record: bytes, oids: Any = None) -> list[bytes]:
        return []

    def transform_record_data(self, data: bytes) -> bytes:
        return data

    untransform_record_data = transform_record_data


def test_leader_killed_between_vote_and_finish(
    cluster: LocalCluster, open_storage: Callable[..., Any], notes_of: Callable[..., list[str]]
) -> None:
    storage = open_storage(cluster.addresses)
    oid = storage.new_oid()
    t = TransactionMetaData(description="voted")
    storage.tpc_begin(t)
    storage.store(oid, z64, b"survives", "", t)
    storage.tpc_vote(t)
    dead = cluster.leader(timeout=30)
    cluster.kill(dead)

    tid = storage.tpc_finish(t)

    assert storage.loadBefore(oid, maxtid) == (b"survives", tid, None)
    cluster.start(dead)
    assert notes_of(open_storage(cluster.addresses)) == ["voted"]


def test_leader_killed_while_finishing(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    start_writers: Callable[..., Any],
    rng: random.Random,
) -> None:
    """Answers get lost at any point of a commit; each commit is there exactly once all the same."""
    with start_writers(3, cluster.addresses) as writers:
        for _ in range(4):
            writers.reach(len(writers.acknowledged) + rng.randrange(5, 40))
            dead = cluster.leader(timeout=30)
            cluster.kill(dead)
            writers.reach(len(writers.acknowledged) + 3)
            cluster.start(dead)
        writers.stop()
    writers.check_all(open_storage(cluster.addresses))


def test_terminated_leader_hands_over(
    cluster: LocalCluster, open_storage: Callable[..., Any], start_writers: Callable[..., Any]
) -> None:
    with start_writers(2, cluster.addresses) as writers:
        for _ in range(3):
            writers.reach(len(writers.acknowledged) + 10)
            leader = cluster.leader(timeout=30)
            assert cluster.stop(leader) == 0
            writers.reach(len(writers.acknowledged) + 3)
            cluster.start(leader)
        writers.stop()
    writers.check_all(open_storage(cluster.addresses))


def test_paused_leader_answers_nothing_stale(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    raw: Callable[..., Any],
    wait_for: Callable[..., Any],
    notes_of: Callable[..., list[str]],
) -> None:
    storage = open_storage(cluster.addresses, wait_timeout=FAILOVER)
    oid, other = storage.new_oid(), storage.new_oid()
    first = commit(storage, {oid: (z64, b"old")}, "first")
    voter = open_storage(cluster.addresses, wait_timeout=FAILOVER)
    t = TransactionMetaData(description="voted before")
    voter.tpc_begin(t)
    voter.store(other, z64, b"other", "", t)
    voter.tpc_vote(t)
    hung = cluster.leader(timeout=30)
    session = raw(cluster.address(hung))

    cluster.pause(hung)
    # asked while it does not know yet that it was deposed
    barrier = session.send(read_barrier=pb.ReadBarrier())
    stale = pb.Transaction(records=[pb.NewRecord(oid=oid, base_serial=first, data=b"stale")])
    late = session.send(commit=pb.Commit(transaction_id=b"l" * 16, transaction=stale.SerializeToString()))
    second = commit(storage, {oid: (first, b"new")}, "second")
    finished = voter.tpc_finish(t)
    cluster.resume(hung)

    event = barrier.get(timeout=FAILOVER)
    kind = event.WhichOneof("kind")
    if kind == "read_point":
        assert event.read_point.last_tid >= second
    else:
        assert event.failure.reason in (pb.NOT_LEADER, pb.LEADERSHIP_LOST, pb.LAGGING)
    event = late.get(timeout=FAILOVER)
    assert event.WhichOneof("kind") == "failure", event
    assert event.failure.reason in (pb.CONFLICT, pb.NOT_LEADER, pb.LEADERSHIP_LOST)
    last = max(second, finished)
    wait_for(lambda: cluster.status(hung).last_tid == last, "the resumed node to catch up")
    assert storage.loadBefore(oid, maxtid) == (b"new", second, None)
    assert voter.loadBefore(other, maxtid) == (b"other", finished, None)
    assert sorted(notes_of(storage)) == ["first", "second", "voted before"]


def test_finish_waits_for_the_paused_majority(
    cluster: LocalCluster, open_storage: Callable[..., Any], notes_of: Callable[..., list[str]]
) -> None:
    """Without a majority nothing is acknowledged; when it is back, the commit that waited is done, once."""
    storage = open_storage(cluster.addresses, wait_timeout=FAILOVER)
    oid = storage.new_oid()
    t = TransactionMetaData(description="waits")
    storage.tpc_begin(t)
    storage.store(oid, z64, b"data", "", t)
    storage.tpc_vote(t)
    leader = cluster.leader(timeout=30)
    followers = [i for i in range(3) if i != leader]
    for i in followers:
        cluster.pause(i)
    tids: list[bytes] = []
    finisher = threading.Thread(target=lambda: tids.append(storage.tpc_finish(t)))
    finisher.start()
    finisher.join(1.0)
    assert not tids
    for i in followers:
        cluster.resume(i)
    finisher.join(FAILOVER)
    assert tids
    assert storage.loadBefore(oid, maxtid) == (b"data", tids[0], None)
    assert notes_of(storage) == ["waits"]


@pytest.mark.parametrize("victim", ["leader", "each in turn"])
def test_invalidations_without_a_gap(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    wait_for: Callable[..., Any],
    victim: str,
) -> None:
    watcher = open_storage(cluster.addresses, wait_timeout=FAILOVER)
    listener = Listener(watcher)
    writer = open_storage(cluster.addresses, wait_timeout=FAILOVER)
    oids = [writer.new_oid() for _ in range(5)]
    serials = dict.fromkeys(oids, z64)
    expected = []

    def write(count: int) -> None:
        for n in range(count):
            oid = oids[n % 5]
            serials[oid] = commit(writer, {oid: (serials[oid], p64(n))})
            expected.append((serials[oid], (oid,)))

    write(10)
    for i in [cluster.leader(timeout=30)] * 2 if victim == "leader" else range(3):
        down = cluster.leader(timeout=30) if victim == "leader" else i
        cluster.kill(down)
        write(10)  # what the watcher misses while it looks for another replica
        cluster.start(down)
        cluster.leader(timeout=30)
        write(5)
    wait_for(lambda: watcher.lastTransaction() == expected[-1][0], "the last invalidation to arrive")
    assert listener.seen == expected
    assert listener.resets == 0


def test_invalidation_comes_before_its_data(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    wait_for: Callable[..., Any],
) -> None:
    """No load shows a revision whose invalidation the storage has not delivered."""
    reader = open_storage(cluster.addresses)
    listener = Listener(reader)
    writer = open_storage(cluster.addresses)
    oid = writer.new_oid()
    serial = commit(writer, {oid: (z64, b"0")})
    wait_for(lambda: listener.seen, "the first invalidation")
    done = threading.Event()

    def write(serial: bytes) -> None:
        for n in range(1, 150):
            serial = commit(writer, {oid: (serial, b"%d" % n)})
        done.set()

    thread = threading.Thread(target=write, args=(serial,))
    thread.start()
    try:
        while thread.is_alive():
            _, found, _ = reader.loadBefore(oid, maxtid)
            assert found in {tid for tid, _ in list(listener.seen)}
            assert found <= reader.lastTransaction()
    finally:
        thread.join(FAILOVER)
    assert done.is_set()
