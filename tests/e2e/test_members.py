"""Learners, versions, and a database that begins with one node: with real processes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raftstorage.client import ClientStorage
from raftstorage.node.versions import FEATURE_LEVEL
from raftstorage.ops import members
from raftstorage.ops.errors import CommandError
from raftstorage.ops.local import ClusterError, LocalCluster
from raftstorage.ops.ports import free_ports
from ZODB.utils import maxtid

from tests.e2e.growing import (
    SECONDS,
    Serving,
    eventually,
    grown,
    member,
    membership,
    nothing_changed,
    raftstorage,
    removed,
    roles,
    settled,
)

MIB = 1 << 20
#: In what a leader counts how far another one is behind.
LAGS = ("entries", "transactions", "bytes", "seconds")


class Mixed(LocalCluster):
    """Nodes of which each may have options of its own: `more[i]`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.more: dict[int, list[str]] = options.pop("more", {})
        super().__init__(*arguments, **options)

    def command(self, i: int) -> list[str]:
        return [*super().command(i), *self.more.get(i, ())]


# ---- growing and shrinking -------------------------------------------------------------------------------


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

    def lags() -> list[float]:
        """The learner's, among the leader's metrics; empty while they are not all there."""
        found = {
            name: value
            for name, labels, value in metrics(cluster.metrics_address(leader))
            if labels.get("peer") == str(node)
        }
        names = [f"raftstorage_node_follower_lag_{what}" for what in LAGS]
        return [found[name] for name in names] if found.keys() >= set(names) else []

    def more(than: list[float]) -> list[float]:
        found = lags()
        return found if found and all(now > before for now, before in zip(found, than, strict=True)) else []

    none = [0.0] * len(LAGS)
    wait_for(lambda: lags() == none, "it to have all, by the leader's metrics")
    cluster.pause(learner)
    commit_new(storage, b"when it just stopped")
    behind = wait_for(lambda: more(none), "the learner to lag")
    oid, tid = commit_new(storage, b"while it stands still")
    behind = wait_for(lambda: more(behind), "it to lag more")
    assert behind[LAGS.index("transactions")] == 2
    assert behind[LAGS.index("bytes")] > len(b"when it just stopped" + b"while it stands still")
    _, out, _ = raftstorage("status", "--json", "--addresses", cluster.addresses)
    nodes = {each["address"]: each for each in json.loads(out)["nodes"]}
    told = next(each for each in nodes[cluster.address(leader)]["peers"] if each["node_id"] == node)
    assert told["member_role"] == "learner"
    assert all(told[f"lag_{what}"] >= least for what, least in zip(LAGS, behind, strict=True)), (told, behind)
    cluster.resume(learner)
    wait_for(lambda: lags() == none, "the learner to catch up")

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


# ---- what an operator asks for ----------------------------------------------------------------------------


def test_a_demoted_leader_hands_over_and_may_vote_again(
    cluster: LocalCluster, open_storage: Callable[..., Any], start_writers: Callable[..., Any]
) -> None:
    settled(cluster)
    voters = roles(cluster)
    old = cluster.leader(timeout=SECONDS)
    node = cluster.node_id(old)
    with start_writers(2, cluster.addresses, pause=0.02) as writers:
        writers.more(20)
        assert member(cluster, "demote", str(node)) == (0, "")
        eventually(lambda: cluster.leader() not in (None, old), "another one to lead")
        assert roles(cluster) == voters | {node: "learner"}
        writers.more(20)
        assert cluster.status(old).role == "learner"
        eventually(lambda: member(cluster, "promote", str(node)) == (0, ""), "it to be promoted", interval=0.2)
        assert roles(cluster) == voters
        writers.more(20)
        writers.stop()
    writers.check_all(open_storage(cluster.addresses))
    last = max(tid for _oid, tid in writers.acknowledged.values())
    eventually(lambda: cluster.status(old).last_tid == last, "it to have all that was committed")


def test_members_are_listed_leadership_is_moved_and_a_member_replaced(
    cluster: LocalCluster, open_storage: Callable[..., Any], commit_new: Callable[..., tuple[bytes, bytes]]
) -> None:
    settled(cluster)
    storage = open_storage(cluster.addresses)
    first = cluster.leader(timeout=SECONDS)
    to, old = (i for i in range(3) if i != first)
    node = cluster.node_id(to)
    where = ["--addresses", cluster.addresses]
    eventually(  # asked again: a busy machine may miss the time for it, and who leads already is content
        lambda: raftstorage("transfer-leader", "--to", str(node), *where) == (0, f"node {node} leads\n", ""),
        "leadership to be moved",
    )
    assert cluster.leader(timeout=SECONDS) == to

    new = grown(cluster, learner=True)
    known = membership(cluster)
    status, out, err = raftstorage("member", "list", *where)
    assert (status, err) == (0, ""), err
    assert [" ".join(row.split()) for row in out.splitlines()] == [
        "node address role directory",
        *(
            f"{m.node_id} {m.address} {m.role}{', leads' if m.node_id == node else ''} {m.instance[:8]}"
            for m in known.members
        ),
    ]
    status, out, err = raftstorage("member", "list", "--json", *where)
    assert (status, err) == (0, ""), err
    assert json.loads(out) == members.as_json(known)

    by = str(cluster.node_id(new))
    eventually(
        lambda: member(cluster, "replace", str(cluster.node_id(old)), by) == (0, ""),
        "the new one to take the old one's place",
        interval=0.2,
    )
    assert roles(cluster) == {cluster.node_id(i): "voter" for i in (first, to, new)}
    removed(cluster, old)
    cluster.kill(first)  # the new one's vote counts
    oid, tid = commit_new(storage, b"two of three voters")
    assert storage.loadBefore(oid, maxtid) == (b"two of three voters", tid, None)


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
    with nothing_changed(cluster):  # an entry that says so is what the old node would not understand
        with pytest.raises(CommandError, match="runs older software"):
            members.change(cluster.addresses.split(","), SECONDS, demote=3)
        assert membership(cluster).level == 0
    oid, tid = commit_new(storage, b"level 0")
    assert storage.loadBefore(oid, maxtid) == (b"level 0", tid, None)

    cluster.kill(old)
    del cluster.more[old]
    cluster.start(old)
    settled(cluster, level=FEATURE_LEVEL)
    oid, tid = commit_new(storage, b"the newest level")
    assert storage.loadBefore(oid, maxtid) == (b"the newest level", tid, None)

    # And not back again: the log may hold by now what the older software does not know.
    cluster.kill(old)
    cluster.more[old] = ["--pretend-versions", "1:1:0"]
    with nothing_changed(cluster):
        with pytest.raises(ClusterError, match="exit code 5") as refused:
            cluster.start(old)
        assert "feature level" in str(refused.value)
    del cluster.more[old]
    cluster.start(old)
    assert settled(cluster).level == FEATURE_LEVEL


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
    cluster.more[new] = ["--pretend-versions", f"9:9:{FEATURE_LEVEL}"]
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
