"""How much memory three nodes take for a large blob, and what small commits beside its upload wait.

    python -m tests.bench.blob_memory [--megabytes 512]

The nodes are warm first: a blob of `--warm` MiB has filled RocksDB's memory tables and block cache and the log's
buffers, which are there with or without blobs. Then, of each node, the most memory in use above that: while the
blob goes in, while every node is asked for all of it, and, with `--strike`, while a follower that missed another
one comes back. Exit status 1 when one took more than 64 MiB. The latencies mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from raftstorage.client import ClientStorage
from raftstorage.ops.local import LocalCluster
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.tests.StorageTestBase import zodb_pickle
from ZODB.utils import z64

LIMIT_BYTES = 64 << 20
BLOCK = 1 << 20


def memory(pid: int, field: str) -> int:
    """Bytes, of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) << 10
    raise LookupError(f"there is no {field}")


class Meter:
    """Of all nodes: the most memory in use in each phase, above what it was when they were warm."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.base: dict[int, int] = {}
        self.grown: dict[str, list[float]] = {}

    def warm(self) -> None:
        self.base = {i: memory(self._cluster.pid(i), "VmHWM") for i in range(len(self._cluster))}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        for i in range(len(self._cluster)):
            Path(f"/proc/{self._cluster.pid(i)}/clear_refs").write_text("5")  # the high-water mark begins anew
        yield
        most = [memory(self._cluster.pid(i), "VmHWM") - self.base[i] for i in range(len(self._cluster))]
        self.grown[name] = [round(each / BLOCK, 1) for each in most]

    @property
    def most(self) -> float:
        return max(each for grown in self.grown.values() for each in grown)


class Committer(threading.Thread):
    """Small commits, one after another; `seconds` that each took."""

    def __init__(self, addresses: str) -> None:
        super().__init__()
        self.storage = ClientStorage(addresses)
        self.seconds: list[float] = []
        self.over = threading.Event()

    def run(self) -> None:
        oid, serial = self.storage.new_oid(), z64
        while not self.over.is_set():
            begun = time.perf_counter()
            t = TransactionMetaData()
            self.storage.tpc_begin(t)
            self.storage.store(oid, serial, zodb_pickle(Blob()), "", t)
            self.storage.tpc_vote(t)
            serial = self.storage.tpc_finish(t)
            self.seconds.append(time.perf_counter() - begun)
            time.sleep(0.01)
        self.storage.close()

    def taken(self) -> dict[str, float]:
        """Milliseconds of those so far, which are forgotten then."""
        some, self.seconds = self.seconds, []
        some.sort()
        at = {"median": statistics.median(some), "p99": some[len(some) * 99 // 100], "longest": some[-1]}
        return {"commits": len(some), **{name: round(1000 * each, 1) for name, each in at.items()}}


def make(path: Path, megabytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(BLOCK))


def store(storage: ClientStorage, path: Path) -> tuple[bytes, bytes]:
    """Oid and tid; the file is taken away."""
    oid = storage.new_oid()
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.storeBlob(oid, z64, zodb_pickle(Blob()), os.fspath(path), "", transaction)
    storage.tpc_vote(transaction)
    return oid, storage.tpc_finish(transaction)


def same(one: Path, other: Path) -> bool:
    with one.open("rb") as a, other.open("rb") as b:
        while (block := a.read(BLOCK)) == b.read(BLOCK):
            if not block:
                return True
    return False


def read_all(cluster: LocalCluster, found: tuple[bytes, bytes], original: Path, base: Path) -> None:
    """From each node alone."""
    for i in range(len(cluster)):
        storage = ClientStorage(cluster.address(i), blob_dir=base / f"from {i}", read_only=True)
        storage.sync(True)
        if not same(original, Path(storage.loadBlob(*found))):
            raise AssertionError(f"node {i + 1} has other bytes")
        storage.close()


def main(megabytes: int, warm: int, strike: bool) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder, LocalCluster(directory=f"{folder}/cluster") as cluster:
        base = Path(folder)
        storage = ClientStorage(cluster.addresses, blob_dir=base / "blobs")
        committer = Committer(cluster.addresses)
        meter = Meter(cluster)
        make(base / "warm", warm)
        store(storage, base / "warm")
        committer.start()
        time.sleep(3)
        alone = committer.taken()
        meter.warm()
        make(base / "blob", megabytes)
        os.link(base / "blob", base / "original")
        committer.taken()
        with meter.phase("upload"):
            begun = time.monotonic()
            stored = store(storage, base / "blob")
            seconds = time.monotonic() - begun
        beside = committer.taken()
        with meter.phase("read"):
            read_all(cluster, stored, base / "original", base)
        if strike:
            leader = cluster.leader(timeout=30)
            follower = next(i for i in range(len(cluster)) if i != leader)
            cluster.kill(follower)
            os.link(base / "original", base / "again")
            store(storage, base / "again")
            cluster.start(follower)
            with meter.phase("catch up"):
                applied = cluster.status(leader).applied_index
                deadline = time.monotonic() + 600
                while cluster.status(follower).applied_index < applied and time.monotonic() < deadline:
                    time.sleep(0.5)
        committer.over.set()
        committer.join()
        storage.close()
        return {
            "megabytes": megabytes,
            "upload MiB/s": round(megabytes / seconds, 1),
            "warm MiB": {i: each // BLOCK for i, each in meter.base.items()},
            "grown MiB": meter.grown,
            "commits alone, ms": alone,
            "commits beside the upload, ms": beside,
            "most": meter.most,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--warm", type=int, default=256)
    parser.add_argument("--strike", action="store_true", help="kill a follower, and let it come back")
    options = parser.parse_args()
    result = main(options.megabytes, options.warm, options.strike)
    print(json.dumps(result, indent=1))
    most = result["most"]
    assert isinstance(most, float)
    sys.exit(most * BLOCK > LIMIT_BYTES)
