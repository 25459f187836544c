"""Members come and go under load: growing, shrinking, lost disks, snapshots, learners, mixed versions."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from raftstorage.node.engine import RocksEngine
from raftstorage.node.snapshots.install import current
from raftstorage.ops.local import ClusterError, LocalCluster
from ZODB.utils import maxtid, z64

from tests.e2e.growing import (
    SECONDS,
    Readers,
    await_role,
    eventually,
    grown,
    membership,
    removed,
    roles,
    settled,
)

MIB = 1 << 20


@pytest.mark.timeout(0)
def test_one_to_five_and_back_under_load_and_kills(
    start_cluster: Callable[..., LocalCluster],
    open_storage: Callable[..., Any],
    start_writers: Callable[..., Any],
    rng: random.Random,
    pytestconfig: pytest.Config,
) -> None:
    rounds = pytestconfig.option.growth_rounds
    cluster = start_cluster(nodes=1)

    def struck(*, leader: bool) -> None:
        """SIGKILL for the leader or a follower, which comes back."""
        leads = cluster.leader(timeout=SECONDS)
        others = [i for i in cluster.members if i != leads]
        i = leads if leader or not others else rng.choice(others)
        cluster.kill(i)
        writers.more(10 if len(others) > 1 else 0)  # goes on without it, with three or more
        cluster.start(i)
        writers.more(10)

    with (
        start_writers(4, cluster.addresses, pause=0.02) as writers,
        Readers(2, cluster.addresses, writers.latest) as readers,
    ):
        for turn in range(rounds):
            writers.more(20)
            struck(leader=True)
            grown(cluster)
            grown(cluster)
            struck(leader=bool(turn % 2 == 0))
            grown(cluster)
            grown(cluster)
            assert sorted(roles(cluster).values()) == ["voter"] * 5
            struck(leader=bool(turn % 2))
            removed(cluster, cluster.leader(timeout=SECONDS))
            removed(cluster, rng.choice(cluster.members))
            struck(leader=True)
            removed(cluster, rng.choice([i for i in cluster.members if i != cluster.leader(timeout=SECONDS)]))
            removed(cluster, rng.choice(cluster.members))
            assert list(roles(cluster).values()) == ["voter"]
            writers.more(20)
        writers.stop()
        readers.stop()
    writers.check_all(open_storage(cluster.addresses))
    print(f"{len(writers.acknowledged)} commits, {readers.reads} reads")


def test_a_node_whose_directory_was_deleted_is_healed_in_its_old_place(
    cluster: LocalCluster, open_storage: Callable[..., Any], start_writers: Callable[..., Any]
) -> None:
    settled(cluster)
    lost = (cluster.leader(timeout=SECONDS) + 1) % 3
    old = cluster.node_id(lost)
    with start_writers(2, cluster.addresses) as writers:
        writers.more(20)
        cluster.lose_disk(lost)
        writers.more(20)  # the other two go on, whatever becomes of it
        if cluster.is_running(lost):
            cluster.kill(lost)
        cluster.start(lost)
        await_role(cluster, lost, "voter")
        new = cluster.node_id(lost)
        assert new == 4
        assert roles(cluster) == dict.fromkeys({1, 2, 3, 4} - {old}, "voter")
        assert next(m.address for m in membership(cluster).members if m.node_id == new) == cluster.address(lost)
        writers.more(20)
        # It counts: with another one down it is needed for each commit.
        other = next(i for i in range(3) if i not in (lost, cluster.leader(timeout=SECONDS)))
        cluster.kill(other)
        writers.more(20)
        cluster.start(other)
        writers.stop()
    writers.check_all(open_storage(cluster.addresses))


# ---- snapshots -------------------------------------------------------------------------------------------


def filled(storage: Any, commit: Callable[..., bytes], mib: int) -> dict[bytes, tuple[bytes, bytes]]:
    """Commits so much that does not compress; {oid: (data, tid)}."""
    written: dict[bytes, tuple[bytes, bytes]] = {}
    for _ in range(mib):
        oids = [storage.new_oid() for _ in range(8)]
        data = {oid: secrets.token_bytes(MIB // 8) for oid in oids}
        tid = commit(storage, {oid: (z64, each) for oid, each in data.items()})
        written |= {oid: (each, tid) for oid, each in data.items()}
    return written


def events(samples: list[tuple[str, dict[str, str], float]], event: str) -> float:
    return sum(
        value
        for name, labels, value in samples
        if name == "raftstorage_node_snapshots_total" and labels["event"] == event
    )


def digest_of(cluster: LocalCluster, i: int) -> tuple[int, bytes]:
    """What a stopped node holds: the applied index and a digest of all."""
    directory = cluster.node_directory(i)
    engine = RocksEngine(directory / current(directory).name)
    try:
        return engine.applied_index, engine.digest()
    finally:
        engine.close()


def missed_the_log(cluster: LocalCluster, away: int, last: int) -> None:
    """Waits until nobody has the entries any more that `away` needs."""
    others = [i for i in cluster.members if i != away]
    eventually(
        lambda: all(cluster.status(i).first_index > last + 1 for i in others), "the log to be cut", interval=0.2
    )


def same_everywhere(cluster: LocalCluster, wait_for: Callable[..., Any]) -> None:
    """Stops all nodes when they have applied the same, and compares their databases."""

    def level() -> bool:
        return len({cluster.status(i).applied_index for i in cluster.members}) == 1

    wait_for(level, "all nodes to have applied the same")
    leader = cluster.leader(timeout=SECONDS)
    # Followers first, for a leader that is stopped hands over, and that is another entry.
    for i in [*(i for i in cluster.members if i != leader), leader]:
        cluster.stop(i)
    found = {i: digest_of(cluster, i) for i in cluster.members}
    assert len(set(found.values())) == 1, {i: (index, digest.hex()) for i, (index, digest) in found.items()}


def test_a_follower_that_missed_the_log_installs_a_snapshot(
    start_cluster: Callable[..., LocalCluster],
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    raw: Callable[..., Any],
    metrics: Callable[[str], Any],
    wait_for: Callable[..., Any],
) -> None:
    cluster = start_cluster(log_keep_mib=0)
    storage = open_storage(cluster.addresses)
    written = filled(storage, commit, 1)
    away = (cluster.leader(timeout=SECONDS) + 1) % 3
    wait_for(lambda: cluster.status(away).last_tid == storage.lastTransaction(), "the follower to be level")
    last = cluster.status(away).last_index
    cluster.kill(away)
    written |= filled(storage, commit, 4)
    missed_the_log(cluster, away, last)
    written |= filled(storage, commit, 1)

    cluster.start(away)
    wait_for(
        lambda: events(metrics(cluster.metrics_address(away)), "installed") >= 1, "the snapshot to be installed"
    )
    wait_for(lambda: cluster.status(away).last_tid == storage.lastTransaction(), "the follower to be level again")
    from raftstorage.proto import storage_pb2

    session = raw(cluster.address(away))
    for oid, (data, tid) in written.items():
        answer = session.ask(load_before=storage_pb2.LoadBefore(oid=oid, before=maxtid))
        assert (answer.data, answer.serial) == (data, tid)
    session.close()
    # One that has nothing at all, not even a membership, comes in the same way.
    fresh = grown(cluster)
    assert events(metrics(cluster.metrics_address(fresh)), "installed") == 1
    wait_for(lambda: cluster.status(fresh).last_tid == storage.lastTransaction(), "the new node to be level")
    storage.close()
    assert not list(cluster.node_directory(away).glob("removed-*"))
    same_everywhere(cluster, wait_for)


@pytest.mark.timeout(600)
def test_a_follower_is_killed_again_and_again_while_it_fetches_and_installs(
    start_cluster: Callable[..., LocalCluster],
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    wait_for: Callable[..., Any],
) -> None:
    cluster = start_cluster(log_keep_mib=0, snapshot_mib_per_second=4)
    storage = open_storage(cluster.addresses)
    away = (cluster.leader(timeout=SECONDS) + 1) % 3
    last = cluster.status(away).last_index
    cluster.kill(away)
    written = filled(storage, commit, 12)
    missed_the_log(cluster, away, last)
    directory = cluster.node_directory(away)
    before = current(directory).name

    def fetched(part: float) -> bool:
        """So much of it is there."""
        transfer = cluster.status(away).snapshot
        return transfer.total_bytes > 0 and transfer.bytes >= part * transfer.total_bytes

    moments: list[tuple[str, Callable[[], object]]] = [
        ("fetching", lambda: (directory / "incoming").exists()),
        ("a first part", lambda: fetched(0.05)),
        ("half of it", lambda: fetched(0.5)),
        ("nearly all", lambda: fetched(0.9)),
        ("all in its folder", lambda: list(directory.glob("db-*"))),
        ("installed", lambda: current(directory).name != before),
    ]
    for what, moment in moments:
        cluster.start(away)

        def arrived(moment: Callable[[], object] = moment) -> object:
            try:
                return moment() or current(directory).name != before
            except ClusterError:
                return None

        wait_for(arrived, what, interval=0.002)
        cluster.kill(away)
        print(what, sorted(path.name for path in directory.iterdir()), current(directory))
    cluster.start(away)
    assert current(directory).name != before
    wait_for(lambda: cluster.status(away).last_tid == storage.lastTransaction(), "the follower to be level")
    for oid, (data, tid) in written.items():
        assert storage.loadBefore(oid, maxtid) == (data, tid, None)
    storage.close()
    assert [path.name for path in directory.glob("db*") if path.is_dir()] == [current(directory).name]
    same_everywhere(cluster, wait_for)


# ---- learners --------------------------------------------------------------------------------------------
