"""`ClientStorage("embedded:DIR")`: one node inside the process, shared, locked, and ended without the process."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import transaction
import ZODB
from raftstorage.client import ClientStorage, CommitOutcomeUnknown, DirectoryInUse, EmbeddedError
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.identity import NodeDirectory, NodeIdentity
from raftstorage.node.wal import Wal
from zc.lockfile import LockError
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import StorageError
from ZODB.utils import z64

from tests.unit.client.embedding import commit, directory, locked

# ---- life ------------------------------------------------------------------------------------------------------


def test_a_database_is_there_again_after_it_was_closed(place: str) -> None:
    for count in range(3):
        db = ZODB.DB(ClientStorage(place))
        with db.transaction() as connection:
            assert connection.root().get("count", 0) == count
            connection.root()["count"] = count + 1
        assert db.storage.getName() == place
        db.close()
        assert not locked(place)


def test_storages_of_one_process_share_the_node(place: str) -> None:
    first = ZODB.DB(ClientStorage(place))
    relative = Path(place.removeprefix("embedded:")).parent / "database" / ".." / "database"
    second = ZODB.DB(ClientStorage(f"embedded:{relative}"))
    with first.transaction() as connection:
        connection.root()["told"] = "by the first"
    second.storage.sync()
    with second.transaction() as connection:
        assert connection.root()["told"] == "by the first"
    first.close()
    assert locked(place)
    with second.transaction() as connection:
        connection.root()["told"] = "by the second, alone"
    second.close()
    assert not locked(place)


def test_it_listens_nowhere_and_leaves_the_interpreter_as_it_is(place: str) -> None:
    before = sys.getswitchinterval()
    storage = ClientStorage(place)
    try:
        listening = [c for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert listening == []
        assert sys.getswitchinterval() == before
    finally:
        storage.close()


def test_many_threads_open_commit_and_close_at_once(place: str) -> None:
    def use(number: int) -> list[tuple[bytes, bytes]]:
        done = []
        for turn in range(4):
            storage = ClientStorage(place)
            data = b"%d %d" % (number, turn)
            done.append((commit(storage, data), data))
            storage.close()
            storage.close()  # again: does nothing, and takes nobody else's share
        return done

    with ThreadPoolExecutor(6) as pool:
        stored = [each for done in pool.map(use, range(6)) for each in done]
    assert not locked(place)
    storage = ClientStorage(place)
    assert [storage.load(oid)[0] for oid, _ in stored] == [data for _, data in stored]
    assert len({oid for oid, _ in stored}) == 24
    storage.close()


def test_what_was_committed_is_read_by_one_who_may_only_read(place: str) -> None:
    storage = ClientStorage(place)
    oid = commit(storage, b"here")
    storage.close()
    storage = ClientStorage(place, read_only=True)
    assert storage.load(oid)[0] == b"here"
    storage.close()


# ---- refused ---------------------------------------------------------------------------------------------------


def test_a_directory_in_use_is_what_zodbs_users_know() -> None:
    from raftstorage.client.storage import errors

    assert issubclass(errors.DirectoryInUse, DirectoryInUse | LockError)
    assert issubclass(errors.DirectoryInUse, StorageError)
    assert issubclass(errors.DirectoryInUse, EmbeddedError)


@pytest.mark.parametrize("name", ["embedded:", " embedded: "])
def test_a_directory_must_be_named(name: str) -> None:
    with pytest.raises(ValueError, match="needs a directory"):
        ClientStorage(name)


def test_a_reader_makes_no_database(place: str) -> None:
    with pytest.raises(EmbeddedError, match="no database"):
        ClientStorage(place, read_only=True)
    assert not directory(place).exists()


def test_a_node_that_has_others_beside_it_is_not_run_alone(place: str) -> None:
    identity = NodeIdentity("ab" * 16, 2, {1: "a:1", 2: "b:1", 3: "c:1"})
    opened = NodeDirectory.open(directory(place))
    opened.claim(identity)
    opened.close()
    with pytest.raises(EmbeddedError, match="other members"):
        ClientStorage(place)
    assert not locked(place)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        ClientStorage(f"embedded:{tmp_path}/file")


def test_a_damaged_database_is_refused_and_its_lock_given_back(place: str) -> None:
    storage = ClientStorage(place)
    commit(storage, b"x" * 1000)
    storage.close()
    current = directory(place) / "db" / "CURRENT"
    content = current.read_bytes()
    current.write_bytes(b"nonsense")
    for _ in range(2):
        with pytest.raises(EmbeddedError, match=str(directory(place))):
            ClientStorage(place)
    current.write_bytes(content)
    ClientStorage(place).close()


# ---- the node ends ---------------------------------------------------------------------------------------------


@pytest.fixture
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Once it is set the log cannot be written."""
    fails = threading.Event()
    write_many = Wal.write_many

    def write(self: Wal, writes: Any) -> None:
        write_many(self, writes)
        if fails.is_set():
            raise OSError(errno.EIO, "the sync failed")

    monkeypatch.setattr(Wal, "write_many", write)
    return fails


def test_a_write_that_failed_ends_the_node_and_not_the_process(place: str, failing_disk: threading.Event) -> None:
    storage, other = ClientStorage(place, cache_size=0), ClientStorage(place, cache_size=0)
    oid = commit(storage, b"before")
    failing_disk.set()
    begun = time.monotonic()
    meta = TransactionMetaData()
    storage.tpc_begin(meta)
    storage.store(oid, storage.load(oid)[1], b"unsure", "", meta)
    storage.tpc_vote(meta)
    with pytest.raises(CommitOutcomeUnknown, match="the sync failed") as unsure:
        storage.tpc_finish(meta)
    for each in (storage, other):
        with pytest.raises(EmbeddedError, match="the sync failed"):
            each.loadSerial(oid, storage.lastTransaction())
        with pytest.raises(EmbeddedError, match=str(directory(place))):
            each.history(oid)
    assert time.monotonic() - begun < 10  # nobody waits for a node that will never answer

    failing_disk.clear()
    again = ClientStorage(place)  # though the others were not closed
    tid = again.commit_outcome(unsure.value)
    assert again.load(oid) == (b"unsure", tid)
    storage.close()
    other.close()
    commit(again, b"after")
    again.close()
    assert not locked(place)


def test_a_database_that_cannot_be_read_ends_the_node(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ClientStorage(place, cache_size=0)
    oid = commit(storage, b"before")

    def damaged(self: StateMachine, oid: bytes, tid: bytes) -> None:
        raise EngineError("the stored value is damaged")

    with monkeypatch.context() as patched:
        patched.setattr(StateMachine, "load_before", damaged)
        with pytest.raises(EmbeddedError, match="the stored value is damaged"):
            storage.load(oid)
    storage.close()
    assert not locked(place)
    storage = ClientStorage(place)
    assert storage.load(oid)[0] == b"before"
    storage.close()


def test_a_node_that_fails_as_it_starts(place: str, failing_disk: threading.Event) -> None:
    failing_disk.set()
    with pytest.raises(EmbeddedError, match="the sync failed"):
        ClientStorage(place)
    failing_disk.clear()
    assert not locked(place)
    ClientStorage(place).close()


def test_a_storage_that_is_closed_while_it_commits_does_not_say_that_nothing_happened(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ClientStorage(place)
    oid = commit(storage, b"before")
    entered, leave = threading.Event(), threading.Event()
    write_many = Wal.write_many

    def write(self: Wal, writes: Any) -> None:
        entered.set()
        assert leave.wait(30)
        write_many(self, writes)

    monkeypatch.setattr(Wal, "write_many", write)
    with ThreadPoolExecutor(2) as pool:
        outcome = pool.submit(commit, storage, b"under way")
        assert entered.wait(30)
        closing = pool.submit(storage.close)
        with pytest.raises(CommitOutcomeUnknown, match="closed"):
            outcome.result(30)
        leave.set()
        closing.result(30)
    storage = ClientStorage(place)
    assert storage.load(oid)[0] == b"before"
    storage.close()


def test_a_transaction_that_is_too_large_is_refused_as_in_a_cluster(
    place: str, open_storage: Callable[..., ClientStorage]
) -> None:
    storage = open_storage(place)
    meta = TransactionMetaData()
    storage.tpc_begin(meta)
    with pytest.raises(StorageError, match="limit"):
        storage.store(storage.new_oid(), z64, b"x" * (17 << 20), "", meta)
    storage.tpc_abort(meta)
    transaction.abort()
