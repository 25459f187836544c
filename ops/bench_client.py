"""A benchmark's client processes: what they do, for how long, and how they start at once.

Clients are separate processes (spawned) that open a ZODB database of their own and use only what an application
uses: connections, persistent objects, transactions.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal

import transaction
from raftstorage.ops import bench_blobs
from raftstorage.ops.bench_objects import Thing
from raftstorage.ops.errors import CommandError

PAYLOAD_BYTES = 200
OBJECTS_TO_LOAD = 10_000
CLIENTS_MAX = 8
_OBJECTS_IN_COMMIT = 100
_START_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """A database to measure: `raftstorage` with addresses, or `zeo` with one address. `directory`: for what
    clients keep of its blobs, on its disk."""

    kind: str
    address: str
    directory: Path


@dataclass(frozen=True, slots=True)
class Job:
    """What each of `clients` processes does for `seconds`: commit `objects` changed objects again and again, or,
    with objects 0, load objects that it has never seen; or `write` or `read` blobs, counted in megabytes."""

    objects: int
    clients: int
    seconds: float
    blobs: Literal["", "write", "read"] = ""


@contextlib.contextmanager
def open_database(target: Target, blob_dir: str | None = None) -> Iterator[Any]:
    """A ZODB.DB on `target`."""
    import ZODB

    storage: Any
    if target.kind == "zeo":
        from ZEO.ClientStorage import ClientStorage as ZeoStorage

        host, _, port = target.address.rpartition(":")
        storage = ZeoStorage((host, int(port)), wait=True, wait_timeout=30, blob_dir=blob_dir)
    else:
        from raftstorage.client import ClientStorage

        storage = ClientStorage(target.address, blob_dir=blob_dir)
    with contextlib.closing(ZODB.DB(storage, cache_size=4 * OBJECTS_TO_LOAD)) as db:
        yield db


def populate(target: Target) -> None:
    """Makes the objects that the jobs change and load."""
    with open_database(target) as db:
        with db.transaction() as connection:
            for client in range(CLIENTS_MAX):
                things = [Thing(os.urandom(PAYLOAD_BYTES)) for _ in range(_OBJECTS_IN_COMMIT)]
                for thing in things:
                    connection.add(thing)
                connection.root()[f"client-{client}"] = things
        oids: list[bytes] = []
        for _ in range(0, OBJECTS_TO_LOAD, 1000):
            with db.transaction() as connection:
                things = [Thing(os.urandom(PAYLOAD_BYTES)) for _ in range(1000)]
                for thing in things:
                    connection.add(thing)
                oids += [thing._p_oid for thing in things]
                connection.root()[f"load-{len(oids)}"] = things
        with db.transaction() as connection:
            connection.root()["oids"] = oids
    with tempfile.TemporaryDirectory(dir=target.directory) as blob_dir, open_database(target, blob_dir) as db:
        bench_blobs.populate(db)


def measure(target: Target, job: Job) -> float:
    """Commits (or loads) a second, of all clients together. CommandError when a client fails."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(job.clients)
    results: multiprocessing.Queue[tuple[int, float, float, str]] = context.Queue()
    processes = [
        context.Process(target=_client, args=(target, job, number, barrier, results), daemon=True)
        for number in range(job.clients)
    ]
    try:
        for process in processes:
            process.start()
        done = []
        for _ in processes:
            try:
                done.append(results.get(timeout=_START_TIMEOUT + 4 * job.seconds + 30))
            except queue.Empty:
                raise CommandError(f"a client of {target.kind} did not answer") from None
            if done[-1][3]:
                raise CommandError(f"a client of {target.kind} failed: {done[-1][3]}")
    finally:
        for process in processes:
            process.join(5.0 if process.is_alive() else None)
            if process.is_alive():
                process.kill()
                process.join()
    first, last = min(d[1] for d in done), max(d[2] for d in done)
    return sum(d[0] for d in done) / (last - first)


def _client(
    target: Target,
    job: Job,
    number: int,
    barrier: Barrier,
    results: multiprocessing.Queue[tuple[int, float, float, str]],
) -> None:
    """A client process: (how many, first second, last second, error) goes to `results`."""
    try:
        with contextlib.ExitStack() as stack:
            blob_dir = None
            if job.blobs:
                blob_dir = stack.enter_context(tempfile.TemporaryDirectory(dir=target.directory))
            db = stack.enter_context(open_database(target, blob_dir))
            manager = transaction.TransactionManager(explicit=True)
            manager.begin()
            connection = stack.enter_context(contextlib.closing(db.open(manager)))
            if blob_dir is None:
                done = (_load if job.objects == 0 else _commit)(connection, job, number, barrier)
            else:
                done = _blobs(connection, Path(blob_dir), job, number, barrier)
        results.put((*done, ""))
    except Exception as error:
        barrier.abort()
        results.put((0, 0.0, 0.0, traceback.format_exception_only(error)[-1].strip()))


def _blobs(connection: Any, directory: Path, job: Job, number: int, barrier: Barrier) -> tuple[int, float, float]:
    def start() -> None:
        barrier.wait(_START_TIMEOUT)

    if job.blobs == "write":
        return bench_blobs.write(connection, job.seconds, start)
    return bench_blobs.read(connection, directory, job.seconds, number, start)


def _commit(connection: Any, job: Job, number: int, barrier: Barrier) -> tuple[int, float, float]:
    manager = connection.transaction_manager
    things = connection.root()[f"client-{number}"][: job.objects]
    for thing in things:
        thing._p_activate()
    manager.abort()
    count = 0
    barrier.wait(_START_TIMEOUT)
    begun = now = time.monotonic()
    while now < begun + job.seconds:
        payload = os.urandom(PAYLOAD_BYTES)
        manager.begin()
        for thing in things:
            thing.payload = payload
        manager.commit()
        count += 1
        now = time.monotonic()
    return count, begun, now


def _load(connection: Any, job: Job, number: int, barrier: Barrier) -> tuple[int, float, float]:
    """Loads each object once, every client in an order of its own, with nothing cached anywhere in the client."""
    oids = connection.root()["oids"]
    shift = number * len(oids) // job.clients
    objects = [connection.get(oid) for oid in oids[:1]]  # imports the class
    count = 0
    barrier.wait(_START_TIMEOUT)
    begun = now = time.monotonic()
    for oid in oids[shift:] + oids[:shift]:
        if oid == oids[0]:
            continue
        thing = connection.get(oid)
        thing._p_activate()
        objects.append(thing)
        count += 1
        now = time.monotonic()
        if now >= begun + job.seconds:
            break
    connection.transaction_manager.abort()
    return count, begun, now
