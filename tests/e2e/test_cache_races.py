"""Clients' caches while leaders die, hang and are cut off, and while clients are away: no snapshot is stale or
mixed, and what did not change meanwhile is not fetched again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.client.cache import RecordCache
from raftstorage.client.cache.disk import CacheFile, Origin
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import POSKeyError
from ZODB.utils import z64

from tests.e2e import ledger
from tests.e2e.nemesis import network
from tests.e2e.nemesis.cluster import NemesisCluster
from tests.e2e.nemesis.network import Namespaces

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

#: What happens to the leader, and for how long.
FAULTS = ("kill", "stop", "part", "isolate")
FAULT_SECONDS = 1.5
PATIENCE = 60.0
#: More objects than a cache remembers the newest changes of.
MANY = 21_000


class ClientProcess:
    def __init__(self, addresses: str, seed: int, readers: int = 2, writers: int = 1, **options: Any) -> None:
        options |= {"addresses": addresses, "seed": seed, "readers": readers, "writers": writers}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.cache_client", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the client ended with {self._process.wait(PATIENCE)}"
        found: dict[str, Any] = json.loads(line)
        assert not found["problems"], found["problems"][0]
        return found

    def ready(self) -> dict[str, Any]:
        """What its first look at everything cost."""
        return self._line()

    def stop(self) -> dict[str, Any]:
        """Has it close its storage; what it did. AssertionError with what it found wrong."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = self._line()
        assert self._process.wait(PATIENCE) == 0
        return found

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""
        self._process.kill()
        self._process.wait(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start_client() -> Iterator[Callable[..., ClientProcess]]:
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> ClientProcess:
            client = ClientProcess(*arguments, **options)
            stack.callback(client.kill)
            return client

        yield start


class Bank:
    """The test's own client, which founds the ledger."""

    def __init__(self, addresses: str, rng: random.Random) -> None:
        self._db = ZODB.DB(ClientStorage(addresses, wait_timeout=PATIENCE, consistency="linearizable"))
        self._rng = rng
        with self._db.transaction() as connection:
            ledger.found(connection.root())

    def number(self) -> int:
        with self._db.transaction() as connection:
            return ledger.look(connection.root(), self._rng)

    def move(self, times: int = 1) -> int:
        number = 0
        for _ in range(times):
            with self._db.transaction() as connection:
                number = ledger.move(connection.root(), self._rng)
        return number

    def last(self) -> bytes:
        tid: bytes = self._db.lastTransaction()
        return tid

    def store_many(self) -> None:
        with self._db.transaction() as connection:
            connection.root()["many"] = [PersistentMapping() for _ in range(MANY)]

    def pack(self) -> None:
        self._db.pack(time.time())

    def close(self) -> None:
        self._db.close()


@pytest.fixture
def found_bank(rng: random.Random) -> Iterator[Callable[[str], Bank]]:
    with ExitStack() as stack:

        def found(addresses: str) -> Bank:
            bank = Bank(addresses, rng)
            stack.callback(bank.close)
            return bank

        yield found


# ---- in one process, calm -----------------------------------------------------------------------------------


def cuts_catch_up_short(patch: pytest.MonkeyPatch, newest: bytes) -> None:
    """A client that was away goes on with what is changed from now on."""
    load = CacheFile.load

    def load_as_if_new(self: CacheFile, cache: RecordCache) -> Origin | None:
        origin = load(self, cache)
        return None if origin is None else origin._replace(known=newest)

    patch.setattr(CacheFile, "load", load_as_if_new)


def forgets_to_tell_the_cache(patch: pytest.MonkeyPatch, newest: bytes) -> None:
    """Changes reach the connections, and not the cache of records."""
    tell = RecordCache.invalidate
    patch.setattr(RecordCache, "invalidate", lambda self, tid, oids: tell(self, tid, ()))


@pytest.mark.parametrize(
    "mutant", [None, cuts_catch_up_short, forgets_to_tell_the_cache], ids=lambda m: m.__name__ if m else "sound"
)
def test_the_ledger_shows_a_stale_cache(
    mutant: Callable[[pytest.MonkeyPatch, bytes], None] | None,
    shared_cluster: LocalCluster,
    found_bank: Callable[[str], Bank],
    rng: random.Random,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = shared_cluster.addresses
    bank = found_bank(addresses)

    def visit() -> None:
        db = ZODB.DB(ClientStorage(addresses, cache_path=tmp_path / "cache"))
        try:
            with db.transaction() as connection:
                assert ledger.look(connection.root(), rng) == newest
        finally:
            db.close()

    newest = bank.move(3)
    visit()
    newest = bank.move(3)
    if mutant is None:
        visit()
        return
    mutant(monkeypatch, bank.last())
    with pytest.raises(AssertionError):
        visit()


# ---- away ---------------------------------------------------------------------------------------------------


def test_clients_come_back_to_their_caches(
    cluster: LocalCluster,
    start_client: Callable[..., ClientProcess],
    found_bank: Callable[[str], Bank],
    seed: int,
    tmp_path: Path,
    wait_for: Callable[..., Any],
) -> None:
    bank = found_bank(cluster.addresses)
    bank.move(20)

    def visit() -> ClientProcess:
        return start_client(cluster.addresses, seed, cache_path=str(tmp_path / "cache"))

    client = visit()
    assert client.ready()["fetched"] == ledger.STONES
    client.stop()

    # Another leader, and more changes than anybody remembers one by one.
    cluster.kill(leader := cluster.leader(timeout=PATIENCE))
    bank.store_many()
    newest = bank.move(20)
    cluster.start(leader)
    client = visit()
    first = client.ready()
    assert first["newest"] >= newest
    assert first["fetched"] == 0
    wait_for(lambda: bank.number() > newest + 20, "more transactions")
    report = client.stop()
    assert report["hits"] > first["hits"]
    assert report["looks"] > 0 < report["moves"]

    # One that is killed goes on with what it saved before: an absence that it does not know of.
    client = visit()
    newest = client.ready()["newest"]
    wait_for(lambda: bank.number() > newest + 20, "more transactions")
    client.kill()
    newest = bank.move(20)
    client = visit()
    first = client.ready()
    assert first["newest"] >= newest
    assert first["fetched"] == 0
    client.stop()

    # What a pack took cannot be told one by one: then the cache may be empty, but never wrong.
    bank.move(20)
    bank.pack()
    newest = bank.move(20)
    client = visit()
    assert client.ready()["newest"] >= newest
    wait_for(lambda: bank.number() > newest + 20, "more transactions")
    client.stop()


def test_what_was_deleted_and_packed_meanwhile_is_not_served(
    shared_cluster: LocalCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    commit_new: Callable[..., tuple[bytes, bytes]],
    tmp_path: Path,
) -> None:
    """The deletion is gone when the client comes back: that there is a gap is all that it is told."""
    other = open_storage(shared_cluster.addresses)
    if other.lastTransaction() == z64:
        commit(other, {z64: (z64, b"root")})
    (deleted, serial), (kept, _) = commit_new(other, b"deleted"), commit_new(other, b"kept")
    client = open_storage(shared_cluster.addresses, cache_path=tmp_path / "cache", consistency="linearizable")
    client.sync()
    assert [client.load(oid)[0] for oid in (deleted, kept)] == [b"deleted", b"kept"]
    client.close()

    t = TransactionMetaData()
    other.tpc_begin(t)
    other.deleteObject(deleted, serial, t)
    other.tpc_vote(t)
    other.tpc_finish(t)
    commit_new(other, b"another")
    other.pack(gc=False)

    client = open_storage(shared_cluster.addresses, cache_path=tmp_path / "cache")
    with pytest.raises(POSKeyError):
        client.load(deleted)
    assert client.load(kept)[0] == b"kept"


# ---- under faults -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def strike(nodes: NemesisCluster, fault: str) -> Iterator[None]:
    """The leader fails at the beginning, and is well in the end."""
    leader = nodes.leader(timeout=PATIENCE)
    match fault:
        case "kill":
            nodes.kill(leader)
        case "stop":
            nodes.pause(leader)
        case "part":  # clients go on reaching it
            nodes.network.part([leader])
        case "isolate":
            nodes.network.isolate([leader])
    yield
    threading.Event().wait(FAULT_SECONDS)
    match fault:
        case "kill":
            nodes.start(leader)
        case "stop":
            nodes.resume(leader)
        case _:
            nodes.network.heal()


def test_leaders_fail_and_clients_come_and_go(
    start_client: Callable[..., ClientProcess],
    found_bank: Callable[[str], Bank],
    rng: random.Random,
    disk_directory: Path,
    request: pytest.FixtureRequest,
    wait_for: Callable[..., Any],
) -> None:
    reason = network.why_not()
    if reason:
        pytest.skip(reason)
    rounds = 10 if request.config.option.thorough else 2
    with Namespaces(3) as namespaces, NemesisCluster(namespaces, disk_directory / "cluster") as nodes:
        bank = found_bank(nodes.addresses)
        newest = bank.move(10)

        def start(**options: Any) -> ClientProcess:
            return start_client(nodes.addresses, rng.randrange(1 << 32), **options)

        staying = [start(), start(cache_size=100_000, writers=0, readers=3)]
        paths = [str(disk_directory / f"cache-{number}") for number in range(2)]
        coming = [start(cache_path=path) for path in paths]
        for client in [*staying, *coming]:
            client.ready()
        faults = [fault for _ in range(rounds) for fault in rng.sample(FAULTS, len(FAULTS))]
        for fault, turn in zip(faults, itertools.cycle(range(len(coming))), strict=False):
            leave = rng.choice([coming[turn].stop, coming[turn].kill])
            before = rng.random() < 0.5
            print(f"{fault}; client {turn}: {leave.__name__} {'before' if before else 'in it'}")
            if before:
                leave()
            with strike(nodes, fault):
                if not before:
                    leave()
            wait_for(lambda least=newest + 20: bank.number() > least, "more transactions")
            newest = bank.number()
            saved = Path(paths[turn]).exists()
            coming[turn] = start(cache_path=paths[turn])
            first = coming[turn].ready()
            assert first["newest"] >= newest
            assert not saved or first["fetched"] == 0
        reports = [client.stop() for client in [*staying, *coming]]
        print(reports)
        assert all(report["looks"] for report in reports)
        assert reports[0]["hits"] > 0
