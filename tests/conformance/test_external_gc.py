"""ZODB's IExternalGC.test: on a cluster, there over wrapped records, too, and on a node in this process."""

from __future__ import annotations

import re
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ZODB.tests.util
from raftstorage.client import ClientStorage
from raftstorage.client.storage.errors import PackedAway
from ZODB import POSException
from ZODB.tests.PackableStorage import IExternalGC_suite
from zope.testing.renormalizing import RENormalizing

from tests.conformance.cases import Hex

if TYPE_CHECKING:
    from tests.conformance.conftest import Clusters

#: What is gone with a pack is told by an error that is a POSKeyError and can be retried, too.
OURS = re.compile(re.escape(f"{PackedAway.__module__}.{PackedAway.__qualname__}"))


class Storage(ClientStorage):
    def pack(self, *arguments: Any, **options: Any) -> None:
        """Files of blobs on the client's own disk stay until the room is wanted; the check looks sooner."""
        super().pack(*arguments, **options)
        for path in Path(self.blob_dir or "").glob("*/*.blob"):
            path.unlink()


class Wrapped(Hex):
    def pack(self, pack_time: float, referencesf: Any, gc: bool = False) -> None:
        """HexStorage has garbage collected where nobody says anything, however its base was opened."""
        super().pack(pack_time, referencesf, gc)


def run(addresses: str, blob_dir: Path, wrap: Callable[[Storage], Any] = lambda storage: storage) -> None:
    suite = IExternalGC_suite(lambda: wrap(Storage(addresses, pack_gc=False, blob_dir=blob_dir)))
    (check,) = suite
    check._dt_checker = ZODB.tests.util.checker + RENormalizing([(OURS, "ZODB.POSException.POSKeyError")])
    result = unittest.TestResult()
    check.run(result)
    assert result.testsRun == 1
    problems = [text for _, text in result.failures + result.errors]
    assert not problems, problems[0]


def test_on_a_cluster(clusters: Clusters, disk_directory: Path) -> None:
    with clusters.take() as cluster:
        run(cluster.addresses, disk_directory)


def test_embedded(disk_directory: Path) -> None:
    run(f"embedded:{disk_directory}/database", disk_directory / "blobs")


def test_over_hex(clusters: Clusters, disk_directory: Path) -> None:
    with clusters.take() as cluster:
        run(cluster.addresses, disk_directory, Wrapped)


def test_what_is_gone_is_a_poskeyerror() -> None:
    assert issubclass(PackedAway, POSException.POSKeyError)
    assert issubclass(PackedAway, POSException.ReadConflictError)
    with pytest.raises(KeyError, match="conflict"):
        raise PackedAway(oid=b"\0" * 8)
