"""Reads are spread over the followers, and outlive leader and quorum at a session's snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.proto import storage_pb2 as pb
from ZODB.utils import maxtid, p64, z64

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster


def loads_served(samples: list[tuple[str, dict[str, str], float]]) -> float:
    """How many loads a node answered with an object, from its metrics."""
    return sum(
        value
        for name, labels, value in samples
        if name == "raftstorage_node_loads_total" and labels["result"] == "ok"
    )


def test_followers_share_the_reads(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    metrics: Callable[[str], Any],
    wait_for: Callable[..., Any],
) -> None:
    writer = open_storage(cluster.addresses)
    oids = [writer.new_oid() for _ in range(300)]
    tid = commit(writer, {oid: (z64, b"data of " + oid) for oid in oids})
    wait_for(lambda: all(cluster.status(i).last_tid == tid for i in range(3)), "every replica to apply the commit")
    leader = cluster.leader(timeout=30)

    before = [loads_served(metrics(cluster.metrics_address(i))) for i in range(3)]
    readers = [open_storage(cluster.addresses) for _ in range(4)]
    for n, oid in enumerate(oids):
        assert readers[n % 4].loadBefore(oid, maxtid) == (b"data of " + oid, tid, None)
    shares = [loads_served(metrics(cluster.metrics_address(i))) - before[i] for i in range(3)]

    assert sum(shares) >= 300
    for i in range(3):
        if i != leader:
            assert shares[i] >= 60, f"shares {shares}, leader {leader}"
    assert shares[leader] <= 60, f"shares {shares}, leader {leader}"


def test_a_connection_reads_its_snapshot_from_the_last_replica(
    cluster: LocalCluster, open_storage: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    db = ZODB.DB(open_storage(cluster.addresses))
    with db.transaction() as connection:
        for n in range(60):
            connection.root()[n] = PersistentMapping(value=f"old {n}")
    manager = transaction.TransactionManager()
    reader = db.open(manager)
    root = reader.root()
    assert root[0]["value"] == "old 0"  # the snapshot is taken, the objects 1 to 59 are not loaded

    with ZODB.DB(open_storage(cluster.addresses)).transaction() as connection:
        for n in range(60):
            connection.root()[n]["value"] = f"new {n}"
        tid_source = connection
    newest = tid_source.db().lastTransaction()
    wait_for(lambda: all(cluster.status(i).last_tid == newest for i in range(3)), "every replica to be up to date")

    leader = cluster.leader(timeout=30)
    survivor = next(i for i in range(3) if i != leader)
    for n in range(1, 20):
        assert root[n]["value"] == f"old {n}"
    cluster.kill(leader)
    for n in range(20, 40):
        assert root[n]["value"] == f"old {n}"
    cluster.kill(next(i for i in range(3) if i not in (leader, survivor)))
    for n in range(40, 60):
        assert root[n]["value"] == f"old {n}"
    manager.abort()

    # and with the quorum back everything is there
    for i in range(3):
        if i != survivor:
            cluster.start(i)
    cluster.leader(timeout=30)
    db.storage.sync()
    manager.begin()
    assert [root[n]["value"] for n in range(60)] == [f"new {n}" for n in range(60)]
    db.close()


def test_every_replica_serves_a_sessions_own_writes(
    cluster: LocalCluster, open_storage: Callable[..., Any], commit: Callable[..., bytes], raw: Callable[..., Any]
) -> None:
    """A replica that has not applied the tid asked for waits or says LAGGING; it never answers an older state."""
    storage = open_storage(cluster.addresses)
    sessions = [raw(cluster.address(i)) for i in range(3)]
    oid = storage.new_oid()
    serial = z64
    for n in range(100):
        serial = commit(storage, {oid: (serial, p64(n))})
        for session in sessions:
            record = session.ask(load_before=pb.LoadBefore(oid=oid, before=maxtid, at_least=serial))
            if isinstance(record, pb.Failure):
                assert record.reason == pb.LAGGING
            else:
                assert (record.data, record.serial) == (p64(n), serial)


def test_reads_own_writes_with_a_lagging_follower(
    cluster: LocalCluster, open_storage: Callable[..., Any], commit: Callable[..., bytes]
) -> None:
    storage = open_storage(cluster.addresses)
    oid = storage.new_oid()
    serial = commit(storage, {oid: (z64, p64(0))})
    follower = next(i for i in range(3) if i != cluster.leader(timeout=30))
    for n in range(1, 41):
        if n % 10 == 1:
            cluster.pause(follower)
        serial = commit(storage, {oid: (serial, p64(n))})
        if n % 10 == 5:
            cluster.resume(follower)  # it is behind now, and about to catch up
        assert storage.loadBefore(oid, maxtid) == (p64(n), serial, None)
