"""A nemesis over real nodes in network namespaces: what breaks here is what breaks at a customer's.

`python -m tests.e2e.nemesis --minutes 60` and `--partitions 500` are the long forms. What this machine cannot do
is skipped, with the reason.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from raftstorage.proto import storage_pb2 as pb
from ZODB.utils import maxtid, z64

from tests.e2e.nemesis import disk, network
from tests.e2e.nemesis.cluster import NemesisCluster
from tests.e2e.nemesis.faults import EXIT_DAMAGED, EXIT_FATAL, PATIENCE, Fault, database_is_refused
from tests.e2e.nemesis.nemesis import Plan, run, started
from tests.e2e.nemesis.network import Namespaces
from tests.simulation.checks import Broken, check_all
from tests.simulation.history import Commit, Read


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Three, or a skip."""
    _need(network.why_not())
    with Namespaces(3) as made:
        yield made


@pytest.fixture
def nodes(namespaces: Namespaces, disk_directory: Path) -> Iterator[NemesisCluster]:
    """An empty cluster of three."""
    with NemesisCluster(namespaces, disk_directory / "cluster") as cluster:
        yield cluster


def _need(reason: str) -> None:
    if reason:
        pytest.skip(reason)


# ---- single faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["failing sync", "full disk", "damaged log", "damaged database", "delay"])
def test_one_kind_of_fault(kind: str, seed: int, disk_directory: Path) -> None:
    """The node says what it must (`faults`), the cluster goes on, and every promise is kept."""
    _need(network.why_not())
    _need({"failing sync": disk.why_no_shim, "delay": network.why_no_delay}.get(kind, str)())
    plan = Plan(seed, 0.0, clients=3)
    directory = disk_directory / "cluster"
    with started(plan, random.Random(seed), print, directory, small_disks=(seed % 3,)) as running:
        running.warm_up()
        running.strike(Fault(kind, 1.0, seed))
        report = running.finish()
        print(report)
        assert running.faults.out == set() or kind.startswith("damaged")
        history, truth = running.crowd.history, running.crowd.truth()
    assert report.struck == {kind: 1}
    if kind == "failing sync":
        spoiled_histories_are_found_out(history, truth)


def spoiled_histories_are_found_out(history: Any, truth: list[Any]) -> None:
    """The checks of this very run would have seen it."""
    acknowledged = {event.identity for event in history.events if isinstance(event, Commit) and event.tid}
    lost = next(each for each in reversed(truth) if each.identity in acknowledged)
    with pytest.raises(Broken):
        check_all(history, [each for each in truth if each is not lost])
    with pytest.raises(Broken):
        check_all(history, [*truth, replace(lost, tid=b"\x7f" * 8)])
    events = history.events
    at = max(i for i, event in enumerate(events) if isinstance(event, Read) and event.linearizable)
    stale = replace(events[at], snapshot=truth[0].tid, values={})
    with pytest.raises(Broken):
        check_all(replace(history, events=[*events[:at], stale, *events[at + 1 :]]), truth)


def test_a_damaged_table_never_gives_wrong_data(
    nodes: NemesisCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    raw: Callable[..., Any],
    rng: random.Random,
) -> None:
    """Wherever the byte is: the node refuses, or what it answers is right."""
    storage = open_storage(nodes.addresses)
    oids = [storage.new_oid() for _ in range(200)]
    data = {oid: rng.randbytes(500) for oid in oids}
    tid = commit(storage, {oid: (z64, data[oid]) for oid in oids})
    victim = next(i for i in range(3) if i != nodes.leader(timeout=PATIENCE))
    nodes.stop(victim)
    database = nodes.node_directory(victim) / "db"
    sound = database.with_name("sound")
    shutil.copytree(database, sound)
    ends: list[str] = []
    for kind in (".sst", ".sst", ".sst", ".sst", "MANIFEST"):
        shutil.rmtree(database)
        shutil.copytree(sound, database)
        found = disk.flip_database(nodes.node_directory(victim), rng, kind)
        if database_is_refused(nodes, victim, found):
            ends.append(f"{kind} {found.offset} refused")
            continue
        right = answered_right(raw, nodes.address(victim), data, tid)
        code = nodes.stop(victim) if nodes.is_running(victim) else nodes.wait_exit(victim)
        ends.append(f"{kind} {found.offset}: {right} right, exit code {code}")
        assert code in (0, EXIT_DAMAGED, EXIT_FATAL), ends
    print(*ends, sep="\n")
    for oid in oids:
        assert storage.loadBefore(oid, maxtid) == (data[oid], tid, None)


def answered_right(raw: Callable[..., Any], address: str, data: dict[bytes, bytes], tid: bytes) -> int:
    """How many objects the node at `address` gives, all as they are; the others it refuses, or it ends."""
    right = 0
    try:
        session = raw(address)
        for oid in data:
            answer = session.ask(load_before=pb.LoadBefore(oid=oid, before=maxtid, at_least=tid))
            if isinstance(answer, pb.Failure):
                assert answer.reason in (pb.INTERNAL, pb.STOPPING, pb.LAGGING), answer
            else:
                assert (answer.data, answer.serial) == (data[oid], tid)
                right += 1
    except (grpc.RpcError, EOFError):
        pass
    return right


def test_a_leader_that_cannot_read_its_database_gives_way(
    nodes: NemesisCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    rng: random.Random,
    wait_for: Callable[..., Any],
) -> None:
    """The others hold what it lost: its damage keeps nobody from writing an object."""
    storage = open_storage(nodes.addresses)
    oids = [storage.new_oid() for _ in range(200)]
    tid = commit(storage, {oid: (z64, rng.randbytes(500)) for oid in oids})
    damaged = nodes.leader(timeout=PATIENCE)
    nodes.stop(damaged)
    others = [i for i in range(3) if i != damaged]
    database = nodes.node_directory(damaged) / "db"
    sound = database.with_name("sound")
    shutil.copytree(database, sound)
    while database_is_refused(nodes, damaged, disk.flip_database(nodes.node_directory(damaged), rng)):
        shutil.rmtree(database)  # damage that shows at once; this is about the kind that shows later
        shutil.copytree(sound, database)
    wait_for(lambda: nodes.status(damaged).last_tid == tid, "the damaged node to come back")
    for _ in range(50):
        leader = nodes.leader(timeout=PATIENCE)
        if leader == damaged:
            break
        nodes.pause(leader)  # until chance has it that the damaged one is elected
        nodes.leader(timeout=PATIENCE)
        nodes.resume(leader)
        wait_for(lambda: all(nodes.status(i).last_tid == tid for i in others), "all to be back")
    for oid in oids:
        commit(storage, {oid: (tid, b"new")})


def test_a_leader_whose_disk_hangs_gives_way(
    nodes: NemesisCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    wait_for: Callable[..., Any],
) -> None:
    """Writes go on elsewhere while the hang lasts, not after it."""
    _need(disk.why_no_shim())
    storage = open_storage(nodes.addresses, wait_timeout=PATIENCE, commit_timeout=PATIENCE)
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, b"before")})
    hung = nodes.leader(timeout=PATIENCE)
    nodes.syncs(hung).hang()
    try:
        second = commit(storage, {oid: (first, b"during")})
        assert nodes.leader(timeout=PATIENCE) != hung
    finally:
        nodes.syncs(hung).work()
    wait_for(lambda: nodes.status(hung).last_tid == second, "the node with the slow disk to catch up")
    third = commit(storage, {oid: (second, b"after")})
    assert storage.loadBefore(oid, maxtid) == (b"after", third, None)


@pytest.mark.parametrize("parted", [False, True], ids=["comes back", "comes back, parted from the others"])
def test_a_deposed_leader_answers_nothing_stale(
    nodes: NemesisCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    raw: Callable[..., Any],
    wait_for: Callable[..., Any],
    parted: bool,
) -> None:
    """Linearizable reads that were sent to it while it was stopped."""
    storage = open_storage(nodes.addresses, wait_timeout=PATIENCE, commit_timeout=PATIENCE)
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, b"old")})
    deposed = nodes.leader(timeout=PATIENCE)
    sessions = [raw(nodes.address(deposed)) for _ in range(4)]
    nodes.pause(deposed)
    before = [session.send(read_barrier=pb.ReadBarrier()) for session in sessions for _ in range(5)]
    second = commit(storage, {oid: (first, b"new")})
    after = [session.send(read_barrier=pb.ReadBarrier()) for session in sessions for _ in range(5)]
    if parted:
        nodes.network.part([deposed])
    nodes.resume(deposed)
    if parted:  # it has taken all requests when it has found out that nobody answers it
        wait_for(lambda: nodes.status(deposed).role != "leader", "the old leader to step down")
        nodes.network.heal()
    points = [point for point in map(read_point, before + after) if point is not None]
    assert all(point >= second for point in points), (second, points)
    # The ones before the commit may show it as well: they were not answered before.
    wait_for(lambda: nodes.status(deposed).last_tid == second, "the old leader to catch up")
    assert read_point(sessions[0].send(read_barrier=pb.ReadBarrier())) == second


def read_point(answer: Any) -> bytes | None:
    """What a read barrier says; None when it is refused for a good reason."""
    event = answer.get(timeout=PATIENCE)
    if event.WhichOneof("kind") == "failure":
        assert event.failure.reason in (pb.NOT_LEADER, pb.LEADERSHIP_LOST, pb.LAGGING), event.failure
        return None
    tid: bytes = event.read_point.last_tid
    return tid


# ---- all together ----------------------------------------------------------------------------------------


def test_everything_at_once(seed: int, disk_directory: Path) -> None:
    """The mixed run: `Run` and the checks raise."""
    _need(network.why_not())
    report = run(Plan(seed, 22.0), print, disk_directory / "cluster")
    assert report.checked is not None
    assert report.checked.linearizable > 0


def test_the_campaign_of_partitions(seed: int) -> None:
    _need(network.why_not())
    command = [
        sys.executable,
        "-m",
        "tests.e2e.nemesis",
        "--partitions",
        "3",
        "--longest",
        "1.5",
        "--seed",
        str(seed),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rounds held, 0 failed" in done.stdout
