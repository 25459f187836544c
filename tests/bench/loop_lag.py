"""How late the nodes' event loops run their ticks, beside a load of ten clients, while something large goes on.

    python -m tests.bench.loop_lag

For each phase: the ticks of all nodes, those that came more than 50 ms late, and the latest; then what held a loop
for more than 20 ms, with where the time went (see `watched_node`). A machine with fewer processors than busy
processes makes ticks late by itself: `held` counts only callbacks that took 50 ms without waiting for a processor.
Exit status 1 when there is one. Not in CI: it says something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from raftstorage.client import ClientStorage
from raftstorage.ops import members
from raftstorage.ops.local import LocalCluster
from ZODB.Connection import TransactionMetaData
from ZODB.utils import maxtid, z64

CLIENTS = 10
LIMIT_MS = 50.0
LONG_MS = 20.0
REVISIONS = 10_000
_BUCKET = re.compile(r'^raftstorage_node_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', re.MULTILINE)
_MAX = re.compile(r"^raftstorage_node_loop_lag_max_seconds (\S+)", re.MULTILINE)


class Watched(LocalCluster):
    """Nodes that say what held their loops."""

    def command(self, i: int) -> list[str]:
        words = super().command(i)
        words[words.index("raftstorage.node")] = "tests.bench.watched_node"
        return words

    def environment(self, i: int) -> dict[str, str]:
        root = str(Path(__file__).resolve().parents[2])
        return {"WATCHED_FILE": str(self.holds_path(i)), "PYTHONPATH": root}

    def holds_path(self, i: int) -> Path:
        return self.directory / f"holds-{i + 1}"

    def lags(self, i: int) -> tuple[int, int, float]:
        """Node i's ticks so far, those more than 50 ms late, and the latest since the last call in seconds."""
        with urllib.request.urlopen(f"http://{self.metrics_address(i)}/metrics", timeout=30) as reply:
            page = reply.read().decode()
        buckets = {edge: float(count) for edge, count in _BUCKET.findall(page)}
        found = _MAX.search(page)
        assert found is not None
        return int(buckets["+Inf"]), int(buckets["+Inf"] - buckets["0.05"]), float(found[1])

    def holds(self) -> list[dict[str, float | str]]:
        """All that was told so far."""
        paths = [self.holds_path(i) for i in range(len(self))]
        return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


def commit(storage: ClientStorage, records: dict[bytes, tuple[bytes, bytes]]) -> bytes:
    """{oid: (serial, data)}; the tid."""
    t = TransactionMetaData()
    storage.tpc_begin(t)
    for oid, (serial, data) in records.items():
        storage.store(oid, serial, data, "", t)
    storage.tpc_vote(t)
    return storage.tpc_finish(t)


@contextlib.contextmanager
def load(addresses: str, pause: float) -> Iterator[None]:
    """Ten clients that each commit an object and load it, and pause."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with contextlib.closing(ClientStorage(addresses, wait_timeout=60.0)) as storage:
                oid, serial = storage.new_oid(), z64
                while not stop.wait(pause):
                    serial = commit(storage, {oid: (serial, secrets.token_bytes(500))})
                    storage.loadBefore(oid, maxtid)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


class Report:
    def __init__(self, cluster: Watched) -> None:
        self.held = 0
        self._cluster = cluster

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the loops did in the block, printed behind it."""
        cluster = self._cluster
        before = {i: cluster.lags(i) for i in cluster.members}
        seen = len(cluster.holds())
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        after = {i: cluster.lags(i) for i in cluster.members}
        ticks = sum(after[i][0] - before.get(i, (0, 0, 0.0))[0] for i in after)
        late = sum(after[i][1] - before.get(i, (0, 0, 0.0))[1] for i in after)
        latest = max(each[2] for each in after.values())
        holds: dict[str, list[dict[str, float]]] = defaultdict(list)
        for line in sorted(cluster.holds(), key=lambda line: line["at"])[seen:]:
            holds[str(line["what"])].append(
                {k: float(v) for k, v in line.items() if k in ("wall", "cpu", "queued")}
            )
        held = sum(1 for each in holds.values() for one in each if _without_queue(one) > LIMIT_MS)
        self.held += held
        print(
            f"{name}: {seconds:.1f} s, {ticks} ticks, {late} more than 50 ms late, latest {1000 * latest:.0f} ms; "
            f"{held} held the loop",
            flush=True,
        )
        for what, each in sorted(holds.items(), key=lambda item: -max(map(_without_queue, item[1]))):
            if max(map(_without_queue, each)) > LONG_MS:
                print(
                    f"    {len(each):4} x {what}: at most {max(one['cpu'] for one in each):.0f} ms computing, "
                    f"{max(_without_queue(one) - one['cpu'] for one in each):.0f} ms waiting, "
                    f"{max(one['queued'] for one in each):.0f} ms queued for a processor",
                    flush=True,
                )


def _without_queue(hold: dict[str, float]) -> float:
    return hold["wall"] - hold["queued"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loop_lag", description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=250, help="megabytes of the large commits (default: 250)")
    parser.add_argument("--objects", type=int, default=1_000_000, help="of the widest commit (default: 1000000)")
    parser.add_argument("--pause", type=float, default=0.1, help="of each client between commits (default: 0.1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the load alone (default: 10)")
    parser.add_argument("--dir", type=Path, default=None, help="where the nodes' data goes (default: temporary)")
    parser.add_argument("--only", default="", help="phases with this in their name (default: all)")
    options = parser.parse_args(arguments)
    print(f"load average before: {os.getloadavg()[0]:.1f}, processors: {len(os.sched_getaffinity(0))}")
    with (
        tempfile.TemporaryDirectory(prefix="raftstorage-bench-", dir=options.dir) as folder,
        Watched(3, folder, log_keep_mib=32, max_transaction_bytes=448 << 20, start_timeout=120.0) as cluster,
        contextlib.closing(ClientStorage(cluster.addresses, wait_timeout=300.0)) as storage,
    ):
        report = Report(cluster)
        oid = storage.new_oid()

        def large(objects: int, size: int) -> Callable[[], None]:
            def work() -> None:
                data = secrets.token_bytes(size)
                commit(storage, {storage.new_oid(): (z64, data) for _ in range(objects)})

            return work

        def revisions() -> None:
            serial = z64
            for number in range(REVISIONS):
                serial = commit(storage, {oid: (serial, b"%d" % number)})

        def history() -> None:
            assert len(storage.history(oid, REVISIONS)) == REVISIONS

        def grown() -> None:
            node = cluster.node_id(cluster.grow())
            addresses = cluster.addresses.split(",")
            while {m.node_id: m.role for m in members.members(addresses, 60.0).members}.get(node) != "voter":
                time.sleep(0.1)

        size = 1_000_000 * options.mb
        phases: dict[str, Callable[[], None]] = {
            "load alone": lambda: time.sleep(options.seconds),
            f"commit of {options.mb} MB in 500 objects": large(500, size // 500),
            f"commit of {options.mb} MB in {options.mb * 1000} objects": large(size // 1000, 1000),
            f"commit of {options.objects} objects": large(options.objects, 50),
            f"{REVISIONS} commits": revisions,
            f"history of {REVISIONS} revisions": history,
            "snapshot to a new node": grown,
        }
        with load(cluster.addresses, options.pause):
            for name, work in phases.items():
                if options.only in name:
                    with report.phase(name):
                        work()
    return 1 if report.held else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
