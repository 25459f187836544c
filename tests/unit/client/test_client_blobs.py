"""A storage's blobs against the scripted cluster: failovers, damage, expiry, conflicts, and what is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ZODB.POSException as E
from prometheus_client import CollectorRegistry
from raftstorage.client import ClientStorage
from raftstorage.client.cluster import piping, uploads
from raftstorage.client.cluster.loop import run_in_loop
from raftstorage.client.storage.errors import (
    BlobDamaged,
    BlobDirectoryFull,
    ClientDisconnected,
    CommitOutcomeUnknown,
    StorageFull,
    UploadExpired,
)
from raftstorage.proto import storage_pb2 as pb
from ZODB.blob import remove_committed
from ZODB.Connection import TransactionMetaData
from ZODB.interfaces import IBlobStorage, IBlobStorageRestoreable
from ZODB.utils import p64, z64

from tests.unit.client.blob_cluster import CHUNK, RECORD, BlobCluster, begin, commit, content, leftovers
from tests.unit.client.conftest import Node

OID = p64(1)
LARGE = content(3 * uploads.WINDOW_CHUNKS * CHUNK + 12_345)


@pytest.fixture
def cluster() -> Iterator[BlobCluster]:
    fake = BlobCluster()
    yield fake
    fake.stop()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where an application has its file."""
    return tmp_path / "source"


@pytest.fixture
def open_client(cluster: BlobCluster) -> Iterator[Callable[..., ClientStorage]]:
    opened = []

    def open_(path: Path | None, **options: Any) -> ClientStorage:
        defaults = {"wait_timeout": 5.0, "commit_timeout": 5.0, "registry": CollectorRegistry(), "blob_dir": path}
        opened.append(ClientStorage(cluster.addresses, **defaults | options))
        return opened[-1]

    yield open_
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(open_client: Callable[..., ClientStorage], home: Path) -> ClientStorage:
    return open_client(home)


def forget_file(storage: ClientStorage, tid: bytes, oid: bytes = OID) -> None:
    """As if another client had stored it."""
    remove_committed(storage.fshelper.getBlobFilename(oid, tid))


def loaded(storage: ClientStorage, tid: bytes, oid: bytes = OID) -> bytes:
    return Path(storage.loadBlob(oid, tid)).read_bytes()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, len(LARGE)])
def test_a_blob_goes_in_and_comes_out(
    cluster: BlobCluster, storage: ClientStorage, source: Path, home: Path, size: int
) -> None:
    tid = commit(storage, source, LARGE[:size], OID)
    assert not source.exists()
    assert loaded(storage, tid) == cluster.blobs[OID, tid] == LARGE[:size]
    assert sum(node.served["load_blob"] for node in cluster.nodes.values()) == 0  # it was kept
    forget_file(storage, tid)
    assert loaded(storage, tid) == LARGE[:size]
    assert leftovers(home) == []
    sample = storage.cluster.metrics._families.blob_bytes.labels(storage.cluster.metrics._storage, "received")
    assert sample._value.get() == size


def test_it_is_uploaded_when_it_is_voted_for_and_a_finish_sends_no_bytes(
    cluster: BlobCluster, storage: ClientStorage, source: Path
) -> None:
    transaction = begin(storage, source, LARGE, OID)
    storage.tpc_vote(transaction)
    served = cluster.nodes[1].served["blob_chunk"]
    assert served > len(LARGE) // CHUNK
    storage.tpc_finish(transaction)
    assert cluster.nodes[1].served["blob_chunk"] == served


def test_it_is_there_before_anybody_here_can_know_of_it(
    storage: ClientStorage, source: Path, cluster: BlobCluster
) -> None:
    seen = []

    def look(tid: bytes) -> None:
        seen.append(Path(storage.fshelper.getBlobFilename(OID, tid)).read_bytes())

    transaction = begin(storage, source, b"early", OID)
    storage.tpc_vote(transaction)
    storage.tpc_finish(transaction, look)
    assert seen == [b"early"]


def test_an_abort_leaves_nothing(storage: ClientStorage, source: Path, home: Path, cluster: BlobCluster) -> None:
    transaction = begin(storage, source, b"never", OID)
    assert leftovers(home) != []
    storage.tpc_abort(transaction)
    assert leftovers(home) == []
    transaction = begin(storage, source, b"never", OID)
    storage.tpc_vote(transaction)
    storage.tpc_abort(transaction)
    assert leftovers(home) == []
    assert cluster.blobs == {}


def test_an_object_stored_again_has_the_last_blob_only(
    storage: ClientStorage, source: Path, home: Path, cluster: BlobCluster
) -> None:
    transaction = begin(storage, source, b"first", OID)
    source.write_bytes(b"second")
    storage.storeBlob(OID, z64, RECORD, os.fspath(source), "", transaction)
    assert len(leftovers(home)) == 1
    begun = storage._begun(transaction)
    source.write_bytes(b"third")
    storage.storeBlob(p64(2), z64, RECORD, os.fspath(source), "", transaction)
    begun.store(p64(2), z64, b"no blob any more")
    storage.tpc_vote(transaction)
    tid = storage.tpc_finish(transaction)
    assert cluster.blobs == {(OID, tid): b"second"}
    assert leftovers(home) == []


def test_the_cluster_is_another_ones(open_client: Callable[..., ClientStorage], home: Path, source: Path) -> None:
    one, other = open_client(home), open_client(home.with_name("other"), consistency="linearizable")
    tid = commit(one, source, LARGE, OID)
    other.sync(True)
    assert loaded(other, tid) == LARGE


# ---- trouble on the way in ------------------------------------------------------------------------------------


def test_an_upload_goes_on_after_a_failover(
    cluster: BlobCluster, storage: ClientStorage, source: Path, home: Path
) -> None:
    def move(offset: int) -> None:
        if offset == 10 * CHUNK:
            cluster.on_chunk = lambda offset: None
            cluster.lead(2)

    cluster.on_chunk = move
    tid = commit(storage, source, LARGE, OID)
    assert cluster.blobs[OID, tid] == LARGE
    taken = [r.blob_chunk.offset for r in cluster.nodes[2].seen if r.blob_chunk.data]
    assert min(taken) == 11 * CHUNK  # what the first leader had was not sent again


def test_an_upload_survives_a_stream_that_breaks(
    cluster: BlobCluster, storage: ClientStorage, source: Path
) -> None:
    def break_it(offset: int) -> None:
        if offset == 5 * CHUNK:
            cluster.on_chunk = lambda offset: None
            for queue in cluster.nodes[1].sessions:
                queue.put_nowait(None)

    cluster.on_chunk = break_it
    assert cluster.blobs[OID, commit(storage, source, LARGE, OID)] == LARGE


def test_a_full_cluster_is_told_and_the_file_is_gone(
    cluster: BlobCluster, open_client: Callable[..., ClientStorage], home: Path, source: Path
) -> None:
    storage = open_client(home, wait_timeout=0.5)
    cluster.fail_next["blob_chunk"] = [pb.STORAGE_FULL] * 10_000
    with pytest.raises(StorageFull):
        commit(storage, source, LARGE, OID)
    assert leftovers(home) == []


def test_no_leader_at_all(
    cluster: BlobCluster, open_client: Callable[..., ClientStorage], home: Path, source: Path
) -> None:
    storage = open_client(home, wait_timeout=0.5)
    cluster.lead(9)
    with pytest.raises(ClientDisconnected):
        commit(storage, source, LARGE, OID)
    assert leftovers(home) == []


@pytest.mark.parametrize("when", ["vote", "commit"])
def test_what_expired_is_uploaded_again(
    cluster: BlobCluster, storage: ClientStorage, source: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    kinds = []
    real = cluster.answer

    def answer(node: Node, kind: str, request: pb.Request) -> pb.Event | None:
        if kind == when and kind not in kinds:
            cluster.expire()
        kinds.append(kind)
        return real(node, kind, request)

    monkeypatch.setattr(cluster, "answer", answer)
    transaction = begin(storage, source, b"twice", OID)
    storage.tpc_vote(transaction)
    if when == "commit":
        cluster.votes.clear()  # the leader has forgotten the vote too: the finish becomes a commit
    tid = storage.tpc_finish(transaction)
    assert cluster.blobs[OID, tid] == b"twice"
    assert kinds.count("blob_chunk") == 2
    assert loaded(storage, tid) == b"twice"


def test_what_expires_again_and_again_is_an_error_that_is_tried_again(
    cluster: BlobCluster, storage: ClientStorage, source: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_missing", lambda transaction: pb.Event(failure=pb.Failure(reason=pb.NO_UPLOAD)))
    with pytest.raises(UploadExpired) as caught:
        commit(storage, source, b"never", OID)
    assert isinstance(caught.value, E.StorageTransactionError)
    assert leftovers(home) == []


def test_a_commit_whose_outcome_is_unknown_can_be_asked_for(
    cluster: BlobCluster, open_client: Callable[..., ClientStorage], home: Path, source: Path
) -> None:
    storage = open_client(home, commit_timeout=0.5)
    transaction = begin(storage, source, b"perhaps", OID)
    storage.tpc_vote(transaction)
    for node in cluster.nodes.values():
        node.silent = True
    with pytest.raises(CommitOutcomeUnknown) as caught:
        storage.tpc_finish(transaction)
    assert leftovers(home) == []
    for node in cluster.nodes.values():
        node.silent = False
    tid = storage.commit_outcome(caught.value)
    assert loaded(storage, tid) == b"perhaps"


def test_a_conflict_on_a_blob_is_not_resolved(
    cluster: BlobCluster, storage: ClientStorage, source: Path, home: Path
) -> None:
    tid = commit(storage, source, b"one", OID)
    commit(storage, source, b"two", OID, tid)
    with pytest.raises(E.ConflictError) as caught:
        commit(storage, source, b"three", OID, tid)
    assert caught.value.oid == OID
    assert leftovers(home) == []


def test_a_file_that_is_cut_while_it_is_uploaded(
    cluster: BlobCluster, storage: ClientStorage, source: Path, home: Path
) -> None:
    transaction = begin(storage, source, LARGE, OID)
    (taken,) = leftovers(home)

    def cut(offset: int) -> None:
        os.truncate(home / taken, CHUNK)

    cluster.on_chunk = cut
    with pytest.raises(OSError, match="has become shorter"):
        storage.tpc_vote(transaction)
    storage.tpc_abort(transaction)
    assert run_in_loop(lambda: list(storage.cluster._replicas._running)) == []


def test_a_file_that_cannot_be_kept_is_fetched_later(
    storage: ClientStorage, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = storage._directory()

    def fail(*args: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(directory, "keep", fail)
    tid = commit(storage, source, b"safe all the same", OID)
    assert "the disk is gone" in caplog.text
    assert loaded(storage, tid) == b"safe all the same"


# ---- trouble on the way out -----------------------------------------------------------------------------------


@pytest.fixture
def tid(storage: ClientStorage, source: Path) -> bytes:
    """Of a large blob that is in the cluster only."""
    found = commit(storage, source, LARGE, OID)
    forget_file(storage, found)
    return found


def askers(cluster: BlobCluster) -> list[int]:
    """Nodes that were asked for pieces."""
    return [number for number, node in cluster.nodes.items() if node.served["load_blob"]]


def test_a_download_goes_on_elsewhere_when_a_replica_is_lost(
    cluster: BlobCluster, storage: ClientStorage, tid: bytes
) -> None:
    asked = []

    def lose(node: Node, offset: int) -> None:
        asked.append((node.node_id, offset))
        if offset == 20 * CHUNK:
            cluster.on_piece = lambda node, offset: asked.append((node.node_id, offset))
            node.silent = True
            for queue in node.sessions:
                queue.put_nowait(None)

    cluster.on_piece = lose
    assert loaded(storage, tid) == LARGE
    first = asked[0][0]
    others = [offset for node, offset in asked if node != first]
    assert others
    assert min(others) > 0  # what had come was not asked for again


def test_a_replica_that_sends_damage_is_passed_over(
    cluster: BlobCluster, storage: ClientStorage, tid: bytes, home: Path
) -> None:
    def flip(piece: pb.BlobData) -> None:
        piece.data = bytes([piece.data[0] ^ 1]) + piece.data[1:]

    cluster.damage = {2: flip, 3: flip}
    assert loaded(storage, tid) == LARGE
    assert sorted(askers(cluster)) == [1, 2, 3]
    cluster.damage[1] = flip
    forget_file(storage, tid)
    with pytest.raises(BlobDamaged, match=OID.hex()):
        storage.loadBlob(OID, tid)
    assert leftovers(home) == []
    assert not Path(storage.fshelper.getBlobFilename(OID, tid)).exists()


def test_a_replica_whose_blob_is_cut_short_is_passed_over(
    cluster: BlobCluster, storage: ClientStorage, tid: bytes
) -> None:
    def cut(piece: pb.BlobData) -> None:
        piece.data = piece.data[:-1]

    cluster.damage = {2: cut, 3: cut}
    assert loaded(storage, tid) == LARGE


def test_a_replica_that_lags_is_not_asked_twice(cluster: BlobCluster, storage: ClientStorage, tid: bytes) -> None:
    cluster.nodes[2].lagging = cluster.nodes[3].lagging = True
    assert loaded(storage, tid) == LARGE


def test_there_is_no_such_blob(storage: ClientStorage, tid: bytes) -> None:
    for call in (storage.loadBlob, storage.openCommittedBlobFile):
        with pytest.raises(E.POSKeyError):
            call(OID, p64(3))
        with pytest.raises(E.POSKeyError):
            call(p64(99), tid)


def test_a_full_disk_here(storage: ClientStorage, tid: bytes, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(piping.os, "pwrite", full)
    with pytest.raises(BlobDirectoryFull, match=str(home)) as caught:
        storage.loadBlob(OID, tid)
    assert isinstance(caught.value, E.StorageSystemError)
    assert leftovers(home) == []
    monkeypatch.undo()
    assert loaded(storage, tid) == LARGE


def test_a_download_ends_when_the_storage_is_closed(
    cluster: BlobCluster, storage: ClientStorage, tid: bytes, home: Path
) -> None:
    asked = threading.Event()

    def hold(node: Node, offset: int) -> None:
        node.silent = True
        asked.set()

    cluster.on_piece = hold
    errors = []

    def load() -> None:
        try:
            storage.loadBlob(OID, tid)
        except ClientDisconnected as error:
            errors.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    assert asked.wait(10)
    storage.close()
    thread.join(10)
    assert len(errors) == 1
    assert leftovers(home) == []


def test_nothing_is_held_in_memory_for_a_slow_disk(
    cluster: BlobCluster, storage: ClientStorage, tid: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    real = os.pwrite
    sinks: list[piping.FileSink] = []
    init = piping.FileSink.__init__

    def note(self: piping.FileSink, descriptor: int) -> None:
        init(self, descriptor)
        sinks.append(self)

    def slow(*args: Any) -> int:
        nonlocal most
        most = max(most, sinks[0].waiting)
        run_in_loop(lambda: None)
        return real(*args)

    monkeypatch.setattr(piping.FileSink, "__init__", note)
    monkeypatch.setattr(piping.os, "pwrite", slow)
    assert loaded(storage, tid) == LARGE
    assert most <= 16


# ---- what a storage says it can do ----------------------------------------------------------------------------


def test_with_a_directory_it_is_a_blob_storage(storage: ClientStorage, home: Path) -> None:
    assert IBlobStorage.providedBy(storage)
    assert IBlobStorageRestoreable.providedBy(storage)
    assert storage.temporaryDirectory() == os.fspath(home / "tmp")
    assert storage.blob_dir == str(home)


def test_without_one_it_is_none(open_client: Callable[..., ClientStorage], source: Path) -> None:
    storage = open_client(None)
    assert not IBlobStorage.providedBy(storage)
    assert storage.fshelper is None
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    source.write_bytes(b"stays")
    with pytest.raises(E.Unsupported):
        storage.storeBlob(OID, z64, RECORD, os.fspath(source), "", transaction)
    assert source.exists()
    for call in (storage.loadBlob, storage.openCommittedBlobFile):
        with pytest.raises(E.Unsupported):
            call(OID, z64)
    with pytest.raises(E.Unsupported):
        storage.temporaryDirectory()


def test_a_cluster_whose_members_do_not_all_know_blobs(
    cluster: BlobCluster,
    open_client: Callable[..., ClientStorage],
    home: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raftstorage.client.cluster.cluster.LEVEL_SECONDS", 0.1)
    cluster.level = 1
    storage = open_client(home)
    with pytest.raises(E.Unsupported, match="know blobs"):
        commit(storage, source, b"too early", OID)
    assert source.exists()


def test_a_cluster_whose_members_are_only_just_finding_out(
    cluster: BlobCluster, open_client: Callable[..., ClientStorage], home: Path, source: Path
) -> None:
    cluster.level = 1
    storage = open_client(home)

    def rise() -> None:
        message = cluster.leader_message()
        message.level = 2
        for node in cluster.nodes.values():
            node.publish(pb.Event(leader=message))

    timer = threading.Timer(0.1, lambda: run_in_loop(rise))
    timer.start()
    assert loaded(storage, commit(storage, source, b"in time", OID)) == b"in time"
    timer.join()


def test_a_read_only_storage_reads_blobs(
    open_client: Callable[..., ClientStorage], storage: ClientStorage, home: Path, source: Path
) -> None:
    tid = commit(storage, source, b"read me", OID)
    reader = open_client(home.with_name("other"), read_only=True)
    assert loaded(reader, tid) == b"read me"
    with pytest.raises(E.ReadOnlyError):
        begin(reader, source, b"not me", OID)
    assert source.exists()


def test_storing_for_another_transaction_or_a_version(storage: ClientStorage, source: Path) -> None:
    source.write_bytes(b"stays")
    transaction = TransactionMetaData()
    with pytest.raises(E.StorageTransactionError):
        storage.storeBlob(OID, z64, RECORD, os.fspath(source), "", transaction)
    storage.tpc_begin(transaction)
    with pytest.raises(E.Unsupported):
        storage.storeBlob(OID, z64, RECORD, os.fspath(source), "a version", transaction)
    assert source.exists()
