"""Clusters for checks that each want an empty one: the next is started while a check runs on the last."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from raftstorage.ops.local import LocalCluster

from tests.conformance.forked import ForkedCluster

#: Elections are held after half the usual silence: an empty cluster is there for one check.
QUICK = {"tick_ms": 25}


class Clusters:
    """Starting one takes longer than most checks: half of it is waiting, which overlaps with a check.

    `end` kills a cluster's nodes and looks for faults in their logs.
    """

    def __init__(self, directory: Path, end: Callable[[LocalCluster], None]) -> None:
        self._directory = directory
        self._end = end
        self._thread = ThreadPoolExecutor(1, "next-cluster")
        self._started = 0
        self._next = self._start()

    def _start(self) -> Future[LocalCluster]:
        self._started += 1
        directory = self._directory / f"cluster-{self._started}"

        def start() -> LocalCluster:
            return ForkedCluster(nodes=3, directory=directory, options=QUICK).__enter__()

        return self._thread.submit(start)

    @contextlib.contextmanager
    def take(self) -> Iterator[LocalCluster]:
        """An empty cluster, which is removed afterwards."""
        cluster = self._next.result()
        self._next = self._start()
        try:
            yield cluster
        finally:
            self._end(cluster)
            cluster.close()
            shutil.rmtree(cluster.directory)

    def close(self) -> None:
        cluster = self._next.result()
        self._end(cluster)
        cluster.close()
        self._thread.shutdown()


@pytest.fixture(autouse=True)
def _back_home() -> Iterator[None]:
    """Some of ZODB's tests change into a directory of their own and leave the next test there."""
    here, temporary = Path.cwd(), tempfile.tempdir
    yield
    os.chdir(here)
    tempfile.tempdir = temporary


@pytest.fixture(scope="package")  # an idle cluster takes processor time from all tests that follow
def clusters(
    make_disk_directory: Callable[[], contextlib.AbstractContextManager[Path]],
    end_cluster: Callable[[LocalCluster], None],
) -> Iterator[Clusters]:
    with make_disk_directory() as directory:
        clusters = Clusters(directory, end_cluster)
        yield clusters
        clusters.close()
