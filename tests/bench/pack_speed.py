"""What commits and cold loads lose while the database is packed.

    python -m tests.bench.pack_speed [--objects 20000] [--revisions 5] [--rounds 3]

In each round every object gets new revisions and a tenth of them becomes garbage; then a writer and a reader that
caches nothing are counted, first alone and then until a pack with garbage collection is done on every node. Exit
status 1 when the median of the rounds' ratios is below a half. Not in CI: it needs a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.ops import packing
from raftstorage.ops.local import LocalCluster
from raftstorage.proto import storage_pb2 as pb

from tests.bench.worker import Worker

LEAST_SPEED = 0.5
_IN_COMMIT = 500
_PATIENCE = 600.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Round:
    commits: float
    commits_meanwhile: float
    loads: float
    loads_meanwhile: float
    seconds: float
    records: int
    objects: int

    def __str__(self) -> str:
        return (
            f"{self.records:,} records and {self.objects:,} objects removed in {self.seconds:.1f} s; "
            f"{self.commits_meanwhile:,.0f} of {self.commits:,.0f} commits, "
            f"{self.loads_meanwhile:,.0f} of {self.loads:,.0f} cold loads a second"
        )


def grow(db: ZODB.DB, objects: int, revisions: int, rng: random.Random) -> list[bytes]:
    """Gives every object new revisions and replaces a tenth of them; the oids that are left."""
    with contextlib.closing(db.open(transaction.TransactionManager())) as connection:
        tree = connection.root().setdefault("pack-speed", OOBTree())
        for turn in range(revisions):
            for start in range(0, objects, _IN_COMMIT):
                for number in range(start, min(objects, start + _IN_COMMIT)):
                    if number not in tree or (turn == 0 and number % 10 == 0):
                        tree[number] = PersistentMapping()
                    tree[number]["data"] = rng.randbytes(200)
                connection.transaction_manager.commit()
            connection.cacheMinimize()
        return [tree[number]._p_oid for number in range(objects)]


def measure(cluster: LocalCluster, oids: list[bytes], seconds: float) -> Round:
    with contextlib.ExitStack() as stack:
        writing = stack.enter_context(
            contextlib.closing(ZODB.DB(ClientStorage(cluster.addresses, wait_timeout=_PATIENCE)))
        )
        connection = stack.enter_context(contextlib.closing(writing.open(transaction.TransactionManager())))
        reading = stack.enter_context(contextlib.closing(ClientStorage(cluster.addresses, cache_size=0)))
        order = itertools.cycle(random.sample(oids, len(oids)))

        def write(number: int) -> None:
            connection.root()["pack-speed-writer"] = number
            connection.transaction_manager.commit()

        writer = stack.enter_context(Worker(write))
        reader = stack.enter_context(Worker(lambda number: reading.load(next(order))))
        time.sleep(1.0)  # both are at work
        alone = _rates(writer, reader, lambda: time.sleep(seconds))
        state: list[pb.PackState] = []

        def pack() -> None:
            state.append(packing.pack(cluster.addresses, time.time(), True, _PATIENCE, lambda told: None))
            deadline = time.monotonic() + _PATIENCE
            while any(cluster.status(i).pack_phase not in ("", "done") for i in cluster.members):
                if time.monotonic() > deadline:
                    raise TimeoutError("a node is not done")
                time.sleep(_POLL_SECONDS)

        meanwhile = _rates(writer, reader, pack)
        if state[0].problem:
            raise RuntimeError(state[0].problem)
    removed = state[0].removed_records, state[0].removed_objects
    return Round(alone[0], meanwhile[0], alone[1], meanwhile[1], meanwhile[2], *removed)


def _rates(writer: Worker, reader: Worker, what: Callable[[], object]) -> tuple[float, float, float]:
    """Commits and loads a second while `what` goes on, and how many seconds that took."""
    commits, loads, begun = writer.count, reader.count, time.monotonic()
    what()
    took = time.monotonic() - begun
    return (writer.count - commits) / took, (reader.count - loads) / took, took


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pack_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=20_000, help="objects (default: 20000)")
    parser.add_argument("--revisions", type=int, default=5, help="new ones of each in a round (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="counted before the pack (default: 5)")
    parser.add_argument("--dir", type=Path, default=None, help="where the nodes' data goes (default: temporary)")
    options = parser.parse_args(arguments)
    rng, rounds = random.Random(1), []
    with (
        tempfile.TemporaryDirectory(prefix="raftstorage-bench-", dir=options.dir) as folder,
        LocalCluster(3, Path(folder) / "cluster") as cluster,
    ):
        for _ in range(options.rounds):
            storage = ClientStorage(cluster.addresses, wait_timeout=60.0)
            with contextlib.closing(ZODB.DB(storage, cache_size=2 * _IN_COMMIT)) as db:
                oids = grow(db, options.objects, options.revisions, rng)
            rounds.append(measure(cluster, oids, options.seconds))
            print(rounds[-1], flush=True)
    held = True
    for name, ratios in (
        ("commits", [each.commits_meanwhile / each.commits for each in rounds]),
        ("cold loads", [each.loads_meanwhile / each.loads for each in rounds]),
    ):
        ratio = statistics.median(ratios)
        held = held and ratio >= LEAST_SPEED
        print(f"{'holds' if ratio >= LEAST_SPEED else 'DOES NOT HOLD'}: {name} at {ratio:.0%} of their speed")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
