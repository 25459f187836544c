"""Directories, scripted clusters and storages on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from raftstorage.client import ClientStorage
from raftstorage.client.blobs import BlobDirectory

from tests.unit.blobs.blob_cluster import BlobCluster
from tests.unit.blobs.directories import CLUSTER, Remote


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def opened(tmp_path: Path, remote: Remote) -> Iterator[Callable[..., BlobDirectory]]:
    """Opens a directory, by default always the same one."""
    with contextlib.ExitStack() as stack:

        def open_(path: Path = tmp_path / "blobs", cluster: str = CLUSTER, **options: Any) -> BlobDirectory:
            found = BlobDirectory(path, cluster, options.pop("fetch", remote), **options)
            stack.callback(found.close)
            return found

        yield open_


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


@pytest.fixture
def place(disk_directory: Path) -> str:
    """What ClientStorage takes for a new database in a directory."""
    return f"embedded:{disk_directory}/database"
