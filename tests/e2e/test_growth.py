"""Members come and go under load: growing, shrinking, lost disks, snapshots, learners, mixed versions."""

from __future__ import annotations

import json
import random
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raftstorage.client import ClientStorage
from raftstorage.node.engine import RocksEngine
from raftstorage.node.snapshots.install import current
from raftstorage.ops import members
from raftstorage.ops.local import ClusterError, LocalCluster
from raftstorage.ops.ports import free_ports
from ZODB.utils import maxtid, z64

from tests.e2e.growing import (
    SECONDS,
    Readers,
    Serving,
    await_role,
    eventually,
    grown,
    membership,
    nothing_changed,
    raftstorage,
    removed,
    roles,
    settled,
)

MIB = 1 << 20


class Mixed(LocalCluster):
    """Nodes of which each may have options of its own: `more[i]`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.more: dict[int, list[str]] = options.pop("more", {})
        super().__init__(*arguments, **options)

    def command(self, i: int) -> list[str]:
        return [*super().command(i), *self.more.get(i, ())]


# ---- growing and shrinking -------------------------------------------------------------------------------


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


def test_a_learner_serves_reads_and_counts_for_no_quorum(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    commit_new: Callable[..., tuple[bytes, bytes]],
    metrics: Callable[[str], Any],
    wait_for: Callable[..., Any],
) -> None:
    storage = open_storage(cluster.addresses)
    oid, tid = commit_new(storage, b"before it came")
    learner = grown(cluster, learner=True)
    node = cluster.node_id(learner)
    assert cluster.status(learner).role == "learner"

    alone = open_storage(cluster.address(learner))
    wait_for(lambda: alone.lastTransaction() >= tid, "the learner's storage to see the commit")
    assert alone.loadBefore(oid, maxtid) == (b"before it came", tid, None)
    everywhere = open_storage(cluster.addresses)
    for n in range(20):
        data = f"own {n}".encode()
        oid, tid = commit_new(everywhere, data)
        assert everywhere.loadBefore(oid, maxtid) == (data, tid, None)

    leader = cluster.leader(timeout=SECONDS)
    peer = next(peer for peer in cluster.status(leader).peers if peer.node_id == node)
    assert (peer.member_role, peer.connected) == ("learner", True)
    wait_for(
        lambda: any(
            name == "raftstorage_node_follower_lag_entries" and labels.get("peer") == str(node)
            for name, labels, _ in metrics(cluster.metrics_address(leader))
        ),
        "its lag among the leader's metrics",
    )

    cluster.pause(learner)
    oid, tid = commit_new(storage, b"while it stands still")
    wait_for(
        lambda: next(p for p in cluster.status(leader).peers if p.node_id == node).lag_entries >= 1,
        "the learner to lag",
    )
    wait_for(
        lambda: any(
            name == "raftstorage_node_follower_lag_entries" and labels.get("peer") == str(node) and value >= 1
            for name, labels, value in metrics(cluster.metrics_address(leader))
        ),
        "the lag to be among the metrics",
    )
    _, out, _ = raftstorage("status", "--json", "--addresses", cluster.addresses)
    nodes = {each["address"]: each for each in json.loads(out)["nodes"]}
    told = next(each for each in nodes[cluster.address(leader)]["peers"] if each["node_id"] == node)
    assert told["member_role"] == "learner"
    assert told["lag_entries"] >= 1
    cluster.resume(learner)

    # Three voters: one may fail. With two down the learner makes no majority.
    down = [i for i in range(3) if i != leader]
    cluster.kill(down[0])
    commit_new(storage, b"two of three voters")
    cluster.kill(down[1])
    wait_for(lambda: cluster.leader() is None, "the leader to stop leading")
    # Reads go on, from the learner too.
    assert alone.loadBefore(oid, maxtid) == (b"while it stands still", tid, None)
    term = cluster.status(learner).term
    for i in down:
        cluster.start(i)
    commit_new(storage, b"all again")
    assert cluster.status(learner).role == "learner"
    assert cluster.leader(timeout=SECONDS) != learner
    assert term <= cluster.status(learner).term


# ---- versions --------------------------------------------------------------------------------------------


def test_the_level_rises_when_the_last_old_node_is_upgraded(
    start_cluster: Callable[..., LocalCluster],
    open_storage: Callable[..., Any],
    commit_new: Callable[..., tuple[bytes, bytes]],
) -> None:
    old = 1
    cluster = start_cluster(kind=Mixed, more={old: ["--pretend-versions", "1:1:0"]})
    assert isinstance(cluster, Mixed)
    storage = open_storage(cluster.addresses)
    eventually(lambda: all(each.instance for each in membership(cluster).members), "all directories to be known")
    versions = {each.node_id: each.version for each in membership(cluster).members}
    assert (versions, membership(cluster).level) == ({1: 1, 2: 0, 3: 1}, 0)
    oid, tid = commit_new(storage, b"level 0")
    assert storage.loadBefore(oid, maxtid) == (b"level 0", tid, None)

    cluster.kill(old)
    del cluster.more[old]
    cluster.start(old)
    settled(cluster, level=1)
    oid, tid = commit_new(storage, b"level 1")
    assert storage.loadBefore(oid, maxtid) == (b"level 1", tid, None)

    # And not back again: the log may hold by now what the older software does not know.
    cluster.kill(old)
    cluster.more[old] = ["--pretend-versions", "1:1:0"]
    with nothing_changed(cluster):
        with pytest.raises(ClusterError, match="exit code 5") as refused:
            cluster.start(old)
        assert "feature level" in str(refused.value)
    del cluster.more[old]
    cluster.start(old)
    assert settled(cluster).level == 1


def test_software_that_does_not_fit_is_not_let_in(cluster: LocalCluster, disk_directory: Path) -> None:
    settled(cluster)
    for versions, why in (
        ("9:9:1", "too new for this cluster: it speaks protocol 9"),
        ("1:1:0", "too old for this cluster: it knows feature levels up to 0"),
        ("1:1:9:9", "too new for this cluster: it knows feature levels from 9 on"),
    ):
        words = ["--listen", f"127.0.0.1:{free_ports(1)[0]}", "--join", cluster.address(0)]
        directory = disk_directory / versions.replace(":", "-")
        with nothing_changed(cluster), Serving(directory, *words, "--pretend-versions", versions) as node:
            status, line = node.ended()
            assert status == 6
            assert why in line, line
            assert {path.name for path in directory.iterdir()} <= {"node.json", "lock"}


def test_a_member_that_speaks_another_protocol_is_kept_out_and_told_of(
    start_cluster: Callable[..., LocalCluster],
    open_storage: Callable[..., Any],
    commit_new: Callable[..., tuple[bytes, bytes]],
    wait_for: Callable[..., Any],
) -> None:
    cluster = start_cluster(kind=Mixed)
    assert isinstance(cluster, Mixed)
    settled(cluster)
    storage = open_storage(cluster.addresses)
    new = (cluster.leader(timeout=SECONDS) + 1) % 3
    cluster.kill(new)
    last = cluster.status(cluster.leader(timeout=SECONDS)).last_index
    cluster.more[new] = ["--pretend-versions", "9:9:1"]
    with nothing_changed(cluster):
        cluster.start(new)
        commit_new(storage, b"two of three")
        leader = cluster.leader(timeout=SECONDS)
        for i in (new, leader):
            wait_for(
                lambda i=i: any("protocol 9" in each for each in cluster.status(i).problems),
                f"node {i + 1} to tell of it",
            )
        assert cluster.status(new).last_index <= last
    cluster.kill(new)
    del cluster.more[new]
    cluster.start(new)
    wait_for(lambda: cluster.status(new).last_tid == storage.lastTransaction(), "it to be level")


# ---- serve -----------------------------------------------------------------------------------------------


def test_an_embedded_database_is_served_and_grows_to_three(
    disk_directory: Path, open_storage: Callable[..., Any], commit_new: Callable[..., tuple[bytes, bytes]]
) -> None:
    first = disk_directory / "first"
    storage = ClientStorage(f"embedded:{first}")
    oid, tid = commit_new(storage, b"embedded")
    storage.close()
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    with (
        Serving(first, "--listen", addresses[0]) as one,
        Serving(disk_directory / "second", "--listen", addresses[1], "--join", addresses[0]) as two,
        Serving(disk_directory / "third", "--listen", addresses[2], "--standby") as three,
    ):
        one.serves()
        client = open_storage(addresses[0])
        assert client.loadBefore(oid, maxtid) == (b"embedded", tid, None)
        two.serves()
        three.said("waits to be added")
        status, out, err = raftstorage("member", "add", addresses[2], "--addresses", addresses[1])
        assert (status, err) == (0, ""), err
        assert addresses[2] in out
        three.serves()
        assert two.node_id == 2
        assert three.node_id == 3

        def voters() -> bool:
            reply = members.members(addresses, SECONDS)
            return not reply.joint and [m.role for m in reply.members] == ["voter"] * 3

        eventually(voters, "three voters")
        oid2, tid2 = commit_new(client, b"served by three")
        one.popen.kill()
        one.popen.wait()
        other = open_storage(addresses[2])
        eventually(lambda: other.lastTransaction() >= tid2, "the commit to be seen")
        for each, data, at in ((oid, b"embedded", tid), (oid2, b"served by three", tid2)):
            assert other.loadBefore(each, maxtid) == (data, at, None)
        oid3, tid3 = commit_new(other, b"two are left")
        assert client.loadBefore(oid3, maxtid) == (b"two are left", tid3, None)


def test_a_new_directory_is_served_alone_and_grows_to_three_by_join(
    disk_directory: Path, open_storage: Callable[..., Any], commit_new: Callable[..., tuple[bytes, bytes]]
) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    with Serving(disk_directory / "1", "--listen", addresses[0]) as one:
        one.serves()
        storage = open_storage(addresses[0])
        oid, tid = commit_new(storage, b"alone")
        join = ["--join", addresses[0]]
        with (
            Serving(disk_directory / "2", "--listen", addresses[1], *join) as two,
            Serving(disk_directory / "3", "--listen", addresses[2], *join) as three,
        ):
            two.serves()
            three.serves()
            eventually(
                lambda: [m.role for m in members.members(addresses, SECONDS).members] == ["voter"] * 3,
                "three voters",
            )
            for node in (one, two, three):
                node.popen.send_signal(signal.SIGTERM)
            for node in (one, two, three):
                assert node.popen.wait(SECONDS) == 0
    # Started again, each by its own directory alone.
    with (
        Serving(disk_directory / "1", "--listen", addresses[0]) as one,
        Serving(disk_directory / "2", "--listen", addresses[1]) as two,
        Serving(disk_directory / "3", "--listen", addresses[2]) as three,
    ):
        for node in (one, two, three):
            node.serves()
        assert storage.loadBefore(oid, maxtid) == (b"alone", tid, None)
        commit_new(storage, b"three again")
