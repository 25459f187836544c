"""How long members need to come back and to come in, on databases of two sizes.

    python -m tests.bench.growth --mb 1000

A follower that missed the same commits needs the same time on both, because the log still has them; and while a
fresh node gets the large database, commits keep at least half their speed. Exit status 1 when one of these does
not hold. Not in CI: it says something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raftstorage.client import ClientStorage
from raftstorage.ops import members
from raftstorage.ops.local import LocalCluster
from ZODB.Connection import TransactionMetaData
from ZODB.utils import z64

from tests.bench.worker import Worker

MB = 1_000_000
WAIT_SECONDS = 3600.0
#: What must hold.
MOST_REJOIN_FACTOR = 2.0
LEAST_SPEED = 0.5


def commit(storage: ClientStorage, objects: int, size: int) -> None:
    t = TransactionMetaData()
    storage.tpc_begin(t)
    for _ in range(objects):
        storage.store(storage.new_oid(), z64, secrets.token_bytes(size), "", t)
    storage.tpc_vote(t)
    storage.tpc_finish(t)


def fill(storage: ClientStorage, mb: int) -> None:
    """Bytes that do not compress, a megabyte in each transaction."""
    for _ in range(mb):
        commit(storage, 50, MB // 50)


def until(cluster: LocalCluster, i: int, index: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while cluster.status(i, timeout=10.0).applied_index < index:
        if time.monotonic() > deadline:
            raise TimeoutError(f"node {cluster.node_id(i)} has not caught up")
        time.sleep(0.01)


@contextlib.contextmanager
def committing(addresses: str) -> Iterator[Worker]:
    """Commits small objects one after the other, meanwhile."""
    with (
        contextlib.closing(ClientStorage(addresses, wait_timeout=60.0)) as storage,
        Worker(lambda number: commit(storage, 1, 100)) as worker,
    ):
        yield worker


@dataclass
class Result:
    mb: int
    rejoin_seconds: float
    alone_per_second: float = 0.0
    joining_per_second: float = 0.0
    join_seconds: float = 0.0


@contextlib.contextmanager
def filled(mb: int, base: Path) -> Iterator[LocalCluster]:
    """Three nodes with `mb` megabytes, whose log was cut behind most of it."""
    keep = min(64, max(8, mb // 4))  # MiB: more than is missed below, and less than a large database
    with LocalCluster(3, base / f"{mb}", log_keep_mib=keep, start_timeout=600.0) as cluster:
        begin = time.monotonic()
        with contextlib.closing(ClientStorage(cluster.addresses, wait_timeout=60.0)) as storage:
            fill(storage, mb)
        print(f"{mb} MB written in {time.monotonic() - begin:.1f} s", flush=True)
        yield cluster


def rejoin_seconds(cluster: LocalCluster, commits: int, repeats: int) -> float:
    """From the start of a process that missed `commits` commits until it has them; the median of `repeats`."""
    times = []
    for _ in range(repeats):
        away = next(i for i in cluster.members if i != cluster.leader(timeout=60.0))
        cluster.stop(away)
        with contextlib.closing(ClientStorage(cluster.addresses, wait_timeout=60.0)) as storage:
            for _ in range(commits):
                commit(storage, 1, 1000)
        index = cluster.status(cluster.leader(timeout=60.0)).last_index
        begin = time.monotonic()
        cluster.start(away)
        until(cluster, away, index)
        times.append(time.monotonic() - begin)
    return statistics.median(times)


def join(cluster: LocalCluster, seconds: float, result: Result) -> None:
    """Commits before, and while a fourth node comes in until it is a voter."""
    with committing(cluster.addresses) as committer:
        time.sleep(1.0)  # it has connected
        before, begin = committer.count, time.monotonic()
        time.sleep(seconds)
        result.alone_per_second = (committer.count - before) / (time.monotonic() - begin)

        before, begin = committer.count, time.monotonic()
        node = cluster.node_id(cluster.grow())
        addresses = cluster.addresses.split(",")
        while {m.node_id: m.role for m in members.members(addresses, 60.0).members}.get(node) != "voter":
            if time.monotonic() - begin > WAIT_SECONDS:
                raise TimeoutError(f"node {node} is no voter yet")
            time.sleep(0.1)
        result.join_seconds = time.monotonic() - begin
        result.joining_per_second = (committer.count - before) / result.join_seconds


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=1000, help="the large database's megabytes (default: 1000)")
    parser.add_argument("--small-mb", type=int, default=10, help="the small one's (default: 10)")
    parser.add_argument("--missed", type=int, default=1000, help="commits that a node misses (default: 1000)")
    parser.add_argument("--repeats", type=int, default=3, help="absences; the median counts (default: 3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="commits are counted before (default: 10)")
    parser.add_argument("--dir", type=Path, default=None, help="where the nodes' data goes (default: temporary)")
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory(prefix="raftstorage-bench-", dir=options.dir) as folder:
        for mb in (options.small_mb, options.mb):
            with filled(mb, Path(folder)) as cluster:
                result = Result(mb, rejoin_seconds(cluster, options.missed, options.repeats))
                print(f"{mb} MB: back after {options.missed} commits in {result.rejoin_seconds:.2f} s", flush=True)
                if mb == options.mb:
                    join(cluster, options.seconds, result)
                results.append(result)
    small, large = results
    factor = max(small.rejoin_seconds, large.rejoin_seconds) / min(small.rejoin_seconds, large.rejoin_seconds)
    speed = large.joining_per_second / large.alone_per_second
    print(
        f"rejoin: {small.rejoin_seconds:.2f} s with {small.mb} MB, {large.rejoin_seconds:.2f} s with {large.mb} MB"
    )
    print(
        f"join: a voter after {large.join_seconds:.1f} s; commits {large.alone_per_second:.0f}/s before, "
        f"{large.joining_per_second:.0f}/s meanwhile"
    )
    held = {
        f"rejoin within a factor of {MOST_REJOIN_FACTOR:g} ({factor:.2f})": factor <= MOST_REJOIN_FACTOR,
        f"commits at {LEAST_SPEED:.0%} or more of their speed ({speed:.0%})": speed >= LEAST_SPEED,
    }
    for what, holds in held.items():
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
