"""A storage's blobs against the scripted cluster: failovers, damage, expiry, conflicts, and what is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import ZODB.POSException as E
from raftstorage.client import ClientStorage
from raftstorage.client.cluster.loop import run_in_loop
from raftstorage.client.storage.errors import (
    ClientDisconnected,
    CommitOutcomeUnknown,
    StorageFull,
    UploadExpired,
)
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.interfaces import IBlobStorage, IBlobStorageRestoreable
from ZODB.utils import p64, z64

from tests.unit.blobs.blob_cluster import (
    CHUNK,
    LARGE,
    OID,
    RECORD,
    BlobCluster,
    begin,
    commit,
    forget_file,
    loaded,
)
from tests.unit.blobs.directories import leftovers
from tests.unit.client.conftest import Node


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
