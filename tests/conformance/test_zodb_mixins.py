"""ZODB's own storage tests against a live three-node cluster, as ZODB runs them against FileStorage; and all of
them once more against a node in the test's own process.

Each check gets an empty database, as the mixins expect (some choose the tids 1, 2, 3; others count objects).
"""

from __future__ import annotations

import unittest
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from raftstorage.client import ClientStorage
from ZODB.Connection import TransactionMetaData
from ZODB.interfaces import IStorageUndoable
from ZODB.POSException import ReadOnlyError
from ZODB.tests import (
    BasicStorage,
    ConflictResolution,
    HistoryStorage,
    IteratorStorage,
    MTStorage,
    PersistentStorage,
    ReadOnlyStorage,
    RevisionStorage,
    StorageTestBase,
    Synchronization,
)
from ZODB.utils import z64

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

#: What each mixin holds in ZODB 6.4. A release may add checks; that one runs fewer would be a silent loss.
CHECKS = {
    BasicStorage.BasicStorage: 19,
    RevisionStorage.RevisionStorage: 7,
    HistoryStorage.HistoryStorage: 1,
    MTStorage.MTStorage: 5,
    PersistentStorage.PersistentStorage: 1,
    Synchronization.SynchronizedStorage: 7,
    ConflictResolution.ConflictResolvingStorage: 5,
    IteratorStorage.IteratorStorage: 8,
    IteratorStorage.ExtendedIteratorStorage: 1,
    ReadOnlyStorage.ReadOnlyStorage: 2,
}


def checks_of(mixin: type) -> set[str]:
    """Names of a mixin's checks, by the new prefix and the old one."""
    return {name for name in dir(mixin) if name.startswith(("test", "check")) and callable(getattr(mixin, name))}


def run_old_prefix(case: type) -> type:
    """Gives each `check*` method a `test_check*` twin, which test runners find."""
    for name in [name for name in dir(case) if name.startswith("check")]:
        check: Callable[[Any], None] = getattr(case, name)
        setattr(case, f"test_{name}", lambda self, check=check: check(self))
    return case


class ClusterCase(StorageTestBase.StorageTestBase):
    """Opens `self._storage`, as the mixins want it, on a cluster of its own."""

    @pytest.fixture(autouse=True)
    def _start(self, start_cluster: Callable[..., LocalCluster]) -> None:
        self._start_cluster = start_cluster

    def begin(self) -> str:
        """What ClientStorage takes, for an empty database."""
        return self._start_cluster().addresses

    def setUp(self) -> None:
        super().setUp()
        self._addresses = self.begin()
        self.open()

    def open(self, read_only: bool = False) -> None:
        self._storage = ClientStorage(self._addresses, read_only=read_only)

    def _new_storage_client(self) -> ClientStorage:
        # shares nothing with self._storage: connections, caches and client id are its own
        return ClientStorage(self._addresses)

    def _require_undo(self) -> None:
        if not IStorageUndoable.providedBy(self._storage):
            self.skipTest("undo is optional: the storage does not provide IStorageUndoable")


@run_old_prefix
class TestBasic(ClusterCase, BasicStorage.BasicStorage):
    pass


@run_old_prefix
class TestRevision(ClusterCase, RevisionStorage.RevisionStorage):
    def testLoadBeforeUndo(self) -> None:
        self._require_undo()
        super().testLoadBeforeUndo()


@run_old_prefix
class TestHistory(ClusterCase, HistoryStorage.HistoryStorage):
    pass


@run_old_prefix
class TestMT(ClusterCase, MTStorage.MTStorage):
    pass


@run_old_prefix
class TestPersistent(ClusterCase, PersistentStorage.PersistentStorage):
    pass


@run_old_prefix
class TestSynchronization(ClusterCase, Synchronization.SynchronizedStorage):
    pass


@run_old_prefix
class TestConflictResolution(ClusterCase, ConflictResolution.ConflictResolvingStorage):
    pass


@run_old_prefix
class TestIterator(ClusterCase, IteratorStorage.IteratorStorage, IteratorStorage.ExtendedIteratorStorage):
    use_extension_bytes = True  # a client sends the extension's bytes as they are and gets the same back

    def testUndoZombie(self) -> None:
        self._require_undo()
        super().testUndoZombie()


@run_old_prefix
class TestReadOnly(ClusterCase, ReadOnlyStorage.ReadOnlyStorage):
    def testWriteMethods(self) -> None:
        self._require_undo()
        super().testWriteMethods()

    def testWriteMethodsButUndo(self) -> None:
        self._make_readonly()
        t = TransactionMetaData()
        self.assertRaises(ReadOnlyError, self._storage.new_oid)
        self.assertRaises(ReadOnlyError, self._storage.tpc_begin, t)
        self.assertRaises(ReadOnlyError, self._storage.store, z64, None, b"", "", t)


CASES = [
    TestBasic,
    TestRevision,
    TestHistory,
    TestMT,
    TestPersistent,
    TestSynchronization,
    TestConflictResolution,
    TestIterator,
    TestReadOnly,
]


class Embedded(ClusterCase):
    """As its sibling, on a directory and without another process."""

    @pytest.fixture(autouse=True)
    def _start(self, disk_directory: Path) -> None:  # type: ignore[override]
        self._directory = disk_directory

    def begin(self) -> str:
        return f"embedded:{self._directory}/database"


EMBEDDED = [type(f"{case.__name__}Embedded", (Embedded, case), {"__module__": __name__}) for case in CASES]
globals().update({case.__name__: case for case in EMBEDDED})  # where a test runner looks for them


@pytest.mark.parametrize("cases", [CASES, EMBEDDED], ids=["cluster", "embedded"])
@pytest.mark.parametrize("mixin", CHECKS, ids=lambda mixin: mixin.__name__)
def test_every_check_is_collected(mixin: type, cases: list[type]) -> None:
    names = checks_of(mixin)
    assert len(names) >= CHECKS[mixin]
    (case,) = (case for case in cases if issubclass(case, mixin))
    collected = set(unittest.TestLoader().getTestCaseNames(case))
    assert {name if name.startswith("test") else f"test_{name}" for name in names} <= collected
