"""Blobs while nodes die, and how much memory a client needs for a large one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from raftstorage.client.cluster import piping
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.tests.StorageTestBase import zodb_pickle
from ZODB.utils import z64

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

MEGABYTE = 1 << 20
#: How much a client may grow by, whatever the size of a blob.
GROWTH = 64 * MEGABYTE
SIZE = 24 * MEGABYTE + 321


@pytest.fixture
def data(rng: random.Random) -> bytes:
    return rng.randbytes(SIZE)


def commit(storage: Any, data: bytes, path: Path) -> tuple[bytes, bytes]:
    """Oid and tid of a new blob."""
    path.write_bytes(data)
    oid: bytes = storage.new_oid()
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    storage.storeBlob(oid, z64, zodb_pickle(Blob()), os.fspath(path), "", transaction)
    storage.tpc_vote(transaction)
    return oid, storage.tpc_finish(transaction)


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_the_leader_dies_or_hangs_in_the_middle_of_an_upload(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    tmp_path: Path,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    real = os.pread
    struck: list[int] = []

    def strike(descriptor: int, count: int, offset: int) -> bytes:
        if offset >= SIZE // 2 and not struck:
            struck.append(cluster.leader(timeout=30))
            getattr(cluster, how)(struck[0])
        return real(descriptor, count, offset)

    monkeypatch.setattr(piping.os, "pread", strike)
    writer = open_storage(cluster.addresses, blob_dir=tmp_path / "writer", wait_timeout=60.0)
    oid, tid = commit(writer, data, tmp_path / "source")
    assert struck
    reader = open_storage(
        cluster.addresses, blob_dir=tmp_path / "reader", consistency="linearizable", wait_timeout=60.0
    )
    assert Path(reader.loadBlob(oid, tid)).read_bytes() == data
    if how == "pause":
        cluster.resume(struck[0])


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_the_replica_dies_or_hangs_in_the_middle_of_a_download(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    tmp_path: Path,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    oid, tid = commit(open_storage(cluster.addresses, blob_dir=tmp_path / "writer"), data, tmp_path / "source")
    numbers = {cluster.address(i): i for i in range(len(cluster))}
    real = piping.FileSink.put
    struck: list[int] = []
    received = 0
    sources = set()

    def strike(self: piping.FileSink, piece: bytes, address: str) -> None:
        nonlocal received
        received += len(piece)
        sources.add(address)
        if received >= SIZE // 2 and not struck:
            struck.append(numbers[address])
            getattr(cluster, how)(struck[0])
        real(self, piece, address)

    monkeypatch.setattr(piping.FileSink, "put", strike)
    reader = open_storage(
        cluster.addresses, blob_dir=tmp_path / "reader", consistency="linearizable", wait_timeout=60.0
    )
    reader.sync(True)
    assert Path(reader.loadBlob(oid, tid)).read_bytes() == data
    assert struck
    assert len(sources) > 1
    assert received == SIZE  # nothing was fetched twice
    if how == "pause":
        cluster.resume(struck[0])


def test_a_cluster_that_was_cold_has_its_blobs(
    cluster: LocalCluster, open_storage: Callable[..., Any], tmp_path: Path, data: bytes
) -> None:
    writer = open_storage(cluster.addresses, blob_dir=tmp_path / "writer")
    oid, tid = commit(writer, data, tmp_path / "source")
    writer.close()
    for number in range(len(cluster)):
        cluster.kill(number)
    cluster.start_all()
    reader = open_storage(cluster.addresses, blob_dir=tmp_path / "reader")
    assert Path(reader.loadBlob(oid, tid)).read_bytes() == data


def test_a_large_blob_takes_little_memory(
    cluster: LocalCluster, disk_directory: Path, pytestconfig: pytest.Config
) -> None:
    megabytes = pytestconfig.option.blob_megabytes
    place = disk_directory / "client"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.blob_client", cluster.addresses, str(place), str(megabytes)],
        capture_output=True,
        text=True,
        timeout=30 + megabytes,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(measured)
    assert measured["same"]
    assert measured["write"]["growth"] < GROWTH
    assert measured["read"]["growth"] < GROWTH
