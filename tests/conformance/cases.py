"""How ZODB's own test mixins are run here: which ones, where their databases are, and that none is left out."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from raftstorage.client import ClientStorage
from ZODB.FileStorage import FileStorage
from ZODB.tests import (
    BasicStorage,
    ConflictResolution,
    HistoryStorage,
    IteratorStorage,
    MTStorage,
    PackableStorage,
    PersistentStorage,
    ReadOnlyStorage,
    RecoveryStorage,
    RevisionStorage,
    StorageTestBase,
    Synchronization,
    TransactionalUndoStorage,
)
from ZODB.tests.hexstorage import HexStorage

if TYPE_CHECKING:
    from .conftest import Clusters

#: What each mixin holds in ZODB 6.4. A release may add checks; that one runs fewer would be a silent loss.
CHECKS = {
    BasicStorage.BasicStorage: 19,
    RevisionStorage.RevisionStorage: 7,
    HistoryStorage.HistoryStorage: 1,
    MTStorage.MTStorage: 5,
    PersistentStorage.PersistentStorage: 1,
    Synchronization.SynchronizedStorage: 7,
    ConflictResolution.ConflictResolvingStorage: 5,
    ConflictResolution.ConflictResolvingTransUndoStorage: 2,
    IteratorStorage.IteratorStorage: 8,
    IteratorStorage.ExtendedIteratorStorage: 1,
    ReadOnlyStorage.ReadOnlyStorage: 2,
    TransactionalUndoStorage.TransactionalUndoStorage: 18,
    PackableStorage.PackableStorageWithOptionalGC: 11,
    PackableStorage.PackableUndoStorage: 3,
    RecoveryStorage.RecoveryStorage: 5,
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


def missing(mixin: type, case: type) -> set[str]:
    """The mixin's checks that a test runner would not find in `case`."""
    names = {name if name.startswith("test") else f"test_{name}" for name in checks_of(mixin)}
    return names - set(unittest.TestLoader().getTestCaseNames(case))


class Case(StorageTestBase.StorageTestBase):
    """Opens `self._storage`, as the mixins want it, on an empty database. A subclass says where that is."""

    use_extension_bytes = True  # a client sends the extension's bytes as they are and gets the same back
    _addresses: str

    def setUp(self) -> None:
        super().setUp()
        self.open()

    def client(self, **options: Any) -> Any:
        """A new storage on the same database, which shares nothing with others."""
        return ClientStorage(self._addresses, **options)

    def open(self, read_only: bool = False) -> None:
        self._storage = self.client(read_only=read_only)

    def _new_storage_client(self) -> Any:
        return self.client()


class OnCluster(Case):
    """On three processes of their own."""

    @pytest.fixture(autouse=True)
    def _place(self, clusters: Clusters) -> Iterator[None]:
        with clusters.take() as cluster:
            self._addresses = cluster.addresses
            yield


class Embedded(Case):
    """On a directory, without another process."""

    @pytest.fixture(autouse=True)
    def _place(self, disk_directory: Path) -> None:
        self._addresses = f"embedded:{disk_directory}/database"


class UnderHex(Embedded):
    """Records are transformed between the database and ZODB: no node can read them."""

    def client(self, **options: Any) -> Any:
        return HexStorage(super().client(**options))


class Recovery(RecoveryStorage.RecoveryStorage):
    """From a FileStorage into ours."""

    _dst: Any

    def setUp(self) -> None:
        super().setUp()
        self._dst = self._storage
        self._storage = FileStorage("Source.fs")

    def tearDown(self) -> None:
        self._dst.close()
        super().tearDown()


class RecoveryToFile(RecoveryStorage.RecoveryStorage):
    """From ours into a FileStorage."""

    _dst: Any

    def setUp(self) -> None:
        super().setUp()
        self._dst = FileStorage("Dest.fs")

    def tearDown(self) -> None:
        self._dst.close()
        super().tearDown()


#: Each is run on a database of its own, so that a failure tells more. The direction is told by the name.
MIXINS: dict[str, tuple[type, ...]] = {
    "Basic": (BasicStorage.BasicStorage,),
    "Revision": (RevisionStorage.RevisionStorage,),
    "History": (HistoryStorage.HistoryStorage,),
    "MT": (MTStorage.MTStorage,),
    "Persistent": (PersistentStorage.PersistentStorage,),
    "Synchronization": (Synchronization.SynchronizedStorage,),
    "ConflictResolution": (
        ConflictResolution.ConflictResolvingTransUndoStorage,
        ConflictResolution.ConflictResolvingStorage,
        TransactionalUndoStorage.TransactionalUndoStorage,
    ),
    "Iterator": (IteratorStorage.ExtendedIteratorStorage, IteratorStorage.IteratorStorage),
    "ReadOnly": (ReadOnlyStorage.ReadOnlyStorage,),
    "Packable": (PackableStorage.PackableStorageWithOptionalGC, PackableStorage.PackableUndoStorage),
    "RecoveryFromFile": (Recovery,),
    "RecoveryToFile": (RecoveryToFile,),
}


def make_cases(place: type[Case], module: str, names: Iterable[str] = tuple(MIXINS)) -> dict[str, type]:
    """One test case for each of the named groups of mixins, by a name that test runners find."""
    cases = {}
    for name in names:
        title = f"Test{name}{place.__name__}"
        cases[title] = run_old_prefix(type(title, (*MIXINS[name], place), {"__module__": module}))
    return cases
