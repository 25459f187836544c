"""How ZODB's own test mixins are run here: which ones, where their databases are, and that none is left out."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ZODB.tests.util
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


def in_real_time(case: type) -> type:
    """Takes the clock away that some checks put in place of their process's: a cluster goes by its own."""
    for name in dir(case):
        check = getattr(case, name)
        code = getattr(check, "__code__", None)
        if name.startswith("test") and code is not None and code.co_filename == ZODB.tests.util.__file__:
            setattr(case, name, check.__wrapped__)
    return case


def missing(mixin: type, case: type) -> set[str]:
    """The mixin's checks that a test runner would not find in `case`."""
    names = {name if name.startswith("test") else f"test_{name}" for name in checks_of(mixin)}
    return names - set(unittest.TestLoader().getTestCaseNames(case))


class Case(StorageTestBase.StorageTestBase):
    """Opens `self._storage`, as the mixins want it, on an empty database. A subclass says where that is."""

    _addresses: str

    def setUp(self) -> None:
        super().setUp()
        self.open()

    def client(self, **options: Any) -> Any:
        """A new storage on the same database, which shares nothing with others."""
        return ClientStorage(self._addresses, **options)

    def open(self, read_only: bool = False) -> None:
        self._storage = self.client(read_only=read_only)


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


class Hex(HexStorage):
    def invalidate(self, transaction_id: bytes, oids: Iterable[bytes], version: str = "") -> None:
        """HexStorage hands on a version, which no ZODB takes since 5. A FileStorage never calls this."""
        self.db.invalidate(transaction_id, oids)


class UnderHex(OnCluster):
    """Records are transformed between the database and ZODB: no node can read them."""

    def client(self, **options: Any) -> Any:
        return Hex(super().client(**options))


class LastOfEach:
    """A FileStorage as others hold what is in it: an object that several undos stored in one transaction is there
    twice, and the last one is what counts."""

    def __init__(self, storage: FileStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def iterator(self) -> Iterator[Any]:
        for found in self._storage.iterator():
            records: dict[bytes, Any] = {}
            for record in found:
                records.pop(record.oid, None)
                records[record.oid] = record
            yield Records(found, list(records.values()))


class Records:
    """A transaction, with these records."""

    def __init__(self, found: Any, records: list[Any]) -> None:
        self._found = found
        self._records = records

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._records)


class Recovery(RecoveryStorage.RecoveryStorage):
    """From a FileStorage into ours."""

    _dst: Any

    def compare(self, storage1: Any, storage2: Any) -> None:
        super().compare(LastOfEach(storage1), storage2)

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
        features = {
            "__module__": module,
            "_new_storage_client": lambda self: self.client(),
            # A client sends the extension's bytes as they are, and gets the same back.
            "use_extension_bytes": True,
        }
        cases[title] = in_real_time(run_old_prefix(type(title, (*MIXINS[name], place), features)))
    return cases
