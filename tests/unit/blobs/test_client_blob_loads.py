"""Loading blobs from the scripted cluster: replicas that are lost, lag, or send damage; a full disk here."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import ZODB.POSException as E
from raftstorage.client import ClientStorage
from raftstorage.client.cluster import piping
from raftstorage.client.cluster.loop import run_in_loop
from raftstorage.client.storage.errors import (
    BlobDamaged,
    BlobDirectoryFull,
    ClientDisconnected,
)
from raftstorage.proto import storage_pb2 as pb
from ZODB.utils import p64

from tests.unit.blobs.blob_cluster import CHUNK, LARGE, OID, BlobCluster, commit, forget_file, loaded
from tests.unit.blobs.directories import leftovers
from tests.unit.client.conftest import Node


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
