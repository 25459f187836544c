"""The blob suites of ZODB and of ZEO's client against a live three-node cluster, as ZODB runs them against a
FileStorage; and ZODB's once more against a node in the test's own process, and over records that no node can read.

Each test gets empty databases. ZODB's suite wants a clock that jumps by a second whenever it is read: its test
runner has it as a layer, which here is put round each test. Only the one about packs goes without: it tells a pack
until when, and a cluster goes by its own clock. (It waits a second for each revision instead.)
"""

from __future__ import annotations

import contextlib
import doctest
import functools
import os
import threading
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transaction
import ZEO
import ZEO.tests
import ZEO.tests.forker
import zope.testing.setupstack
from raftstorage.client import ClientStorage
from raftstorage.client.blobs.layout import CacheLayout
from ZEO.tests.testZEO import CommonBlobTests
from ZODB import DB
from ZODB.blob import Blob, remove_committed
from ZODB.POSException import POSKeyError
from ZODB.tests import StorageTestBase, testblob

from tests.conformance.cases import Hex

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

#: Tests in ZODB 6.4's suite. A release may add some; that one runs fewer would be a silent loss.
SUITE_TESTS = 21

PACKING = "blob_packing_txt"

#: What else of testblob makes a storage: with ours in place of a BlobStorage over a MappingStorage.
OTHERS = ("testblob.BlobCloneTests.testDeepCopyCanInvalidate", "blob_tempdir_txt")

#: What of testblob says nothing about a storage, or something about another one than ours, and what that is.
LEFT_OUT = {
    "blob_basic_txt": "a Blob that is in no database",
    "blob_consume_txt": "a Blob that is in no database",
    "blob_layout_txt": "ZODB's FilesystemHelper, and how a FileStorage's directory is laid out anew",
    "testblob.BushyLayoutTests.testBushyLayoutOIDToPathUnicode": "one of ZODB's layouts, without a storage",
    "blobstorage_packing_txt": "a storage that keeps no old revisions, and BlobStorage's own flags",
    "testblob.ZODBBlobConfigTest.test_map_config1": "the section <blobstorage>; <raftstorage> has a blob-dir",
    "testblob.ZODBBlobConfigTest.test_file_config1": "the section <blobstorage>; <raftstorage> has a blob-dir",
    "testblob.ZODBBlobConfigTest.test_blob_dir_needed": "the section <blobstorage>; ours works without a blob-dir",
}

#: What makes a storage on an empty database: the name of its blob directory goes in. Set for each test.
_make: Callable[[str], Any]


class Mirror(ClientStorage):
    """After each pack its directory of blobs, which is a cache, has exactly what the cluster has: where a test
    looks for a file that a pack should have removed, it sees what the nodes still have."""

    def pack(self, *arguments: Any, **options: Any) -> None:
        def path_of(oid: bytes, tid: bytes) -> Path:
            return Path(self.fshelper.getBlobFilename(oid, tid))

        revisions = [(record.oid, record.tid) for each in self.iterator() for record in each]
        super().pack(*arguments, **options)
        blobs = [revision for revision in revisions if path_of(*revision).exists()]
        for revision in blobs:
            remove_committed(path_of(*revision))
        for revision in blobs:
            try:
                self.loadBlob(*revision)
            except POSKeyError:
                with contextlib.suppress(OSError):
                    path_of(*revision).parent.rmdir()


def suite_of(name: str) -> unittest.TestSuite:
    return testblob.storage_reusable_suite(
        name, lambda _, blob_dir: _make(blob_dir), test_blob_storage_recovery=True, test_packing=True
    )


def cases_of(suite: Any) -> list[Any]:
    if not isinstance(suite, unittest.TestSuite):
        return [suite]
    return [case for each in suite for case in cases_of(each)]


def name_of(case: Any) -> str:
    return str(case.id()).removeprefix("ZODB.tests.").rsplit("/", 1)[-1]


def parameters(name: str) -> list[Any]:
    suite = suite_of(name)
    return [pytest.param((suite.layer, case), id=name_of(case)) for case in cases_of(suite)]


@pytest.fixture
def on_a_cluster(start_cluster: Callable[..., LocalCluster]) -> Callable[[str], Any]:
    return lambda blob_dir: Mirror(start_cluster().addresses, blob_dir=blob_dir)


@pytest.fixture
def embedded(disk_directory: Path) -> Iterator[Callable[..., Any]]:
    places = [f"embedded:{disk_directory}/{number}" for number in range(2)]
    # Their nodes run already: a test that breaks `os.rename` means that of the storages.
    nodes = [ClientStorage(place) for place in places]
    unused = iter(places)
    yield lambda blob_dir, **options: Mirror(next(unused), blob_dir=blob_dir, **options)
    for node in nodes:
        node.close()


def open_as_a_user(name: Any, mode: str = "r", **options: Any) -> Any:
    """For root may write what is read-only, which a doctest wants to see refused."""
    path = Path(name)
    if "w" in mode and path.exists() and not path.stat().st_mode & 0o222:
        raise PermissionError(f"{name} is read-only")
    return path.open(mode, **options)


def run(layer: Any, case: Any, make: Callable[[str], Any]) -> None:
    global _make
    made: list[Any] = []

    def make_and_note(blob_dir: str) -> Any:
        made.append(make(blob_dir))
        return made[-1]

    _make = make_and_note
    if isinstance(case, doctest.DocTestCase):
        case._dt_test.globs["open"] = open_as_a_user  # type: ignore[attr-defined]
    own_clock = name_of(case) != PACKING
    if own_clock:
        layer.testSetUp()
    try:
        passes(case)
    finally:
        if own_clock:
            layer.testTearDown()
        for storage in made:
            storage.close()
    assert made or "create_storage" not in str(getattr(case, "_dt_test", "create_storage").docstring)


def passes(case: Any) -> None:
    result = unittest.TestResult()
    case.run(result)
    assert result.testsRun == 1
    assert not result.skipped
    for _, text in [*result.errors, *result.failures]:
        raise AssertionError(text)


@pytest.mark.parametrize("layered", parameters("Cluster"))
def test_zodbs_suite(layered: tuple[Any, Any], on_a_cluster: Callable[[str], Any]) -> None:
    run(*layered, on_a_cluster)


@pytest.mark.parametrize("layered", parameters("Shared"))
def test_zodbs_suite_in_a_shared_directory(layered: tuple[Any, Any], embedded: Callable[..., Any]) -> None:
    run(*layered, functools.partial(embedded, shared_blob_dir=True))


@pytest.mark.parametrize("layered", parameters("Embedded"))
def test_zodbs_suite_embedded(layered: tuple[Any, Any], embedded: Callable[..., Any]) -> None:
    run(*layered, embedded)


@pytest.mark.parametrize("layered", parameters("Hex"))
def test_zodbs_suite_over_hex(layered: tuple[Any, Any], embedded: Callable[..., Any]) -> None:
    run(*layered, lambda blob_dir: Hex(embedded(blob_dir)))


def test_the_suite_is_as_large_as_it_was() -> None:
    names = [name_of(case) for case in cases_of(suite_of("Counted"))]
    assert len(names) >= SUITE_TESTS
    assert PACKING in names


#: All of the module's own, but the reusable suite, which it runs on a FileStorage.
MODULE = {name_of(case): case for case in cases_of(testblob.test_suite())}


@pytest.mark.parametrize("name", OTHERS)
def test_others_of_zodbs(name: str, shared_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make(blob_dir: str, base: Any) -> Any:
        made.append(ClientStorage(shared_cluster.addresses, blob_dir=blob_dir))
        return made[-1]

    monkeypatch.setattr("ZODB.blob.BlobStorage", make)
    passes(MODULE[name])
    assert made
    for storage in made:
        storage.close()


def test_nothing_of_the_module_is_forgotten() -> None:
    reusable = {
        name_of(case).replace("Counted", "BlobAdaptedFileStorage") for case in cases_of(suite_of("Counted"))
    }
    assert set(MODULE) - reusable == {*OTHERS, *LEFT_OUT}


# ---- ZEO's --------------------------------------------------------------------------------------------------


class BlobChecks(StorageTestBase.StorageTestBase, CommonBlobTests):  # type: ignore[misc]
    shared = False

    @pytest.fixture(autouse=True)
    def _start(self, shared_cluster: LocalCluster, tmp_path: Path) -> None:
        self._addresses = shared_cluster.addresses
        self.blob_cache_dir = os.fspath(tmp_path / "cache")

    def setUp(self) -> None:
        super().setUp()
        self._storage = ClientStorage(self._addresses, blob_dir=self.blob_cache_dir, shared_blob_dir=self.shared)


def run_old_prefix(case: type) -> type:
    """Gives each `check*` method a `test_check*` twin, which test runners find."""
    for name in [name for name in dir(case) if name.startswith("check")]:
        check: Callable[[Any], None] = getattr(case, name)
        setattr(case, f"test_{name}", lambda self, check=check: check(self))
    return case


@run_old_prefix
class TestZeosChecks(BlobChecks):
    pass


@run_old_prefix
class TestZeosChecksShared(BlobChecks):
    shared = True


def test_zeos_checks_are_all_collected() -> None:
    names = {name for name in dir(CommonBlobTests) if name.startswith(("check", "test"))}
    assert len(names) >= 5
    for case in (TestZeosChecks, TestZeosChecksShared):
        assert {f"test_{name}" for name in names} <= set(unittest.TestLoader().getTestCaseNames(case))


def test_many_threads_load_one_that_is_not_there(
    shared_cluster: LocalCluster, open_storage: Callable[..., Any], tmp_path: Path
) -> None:
    """As ZEO's checkStoreAndLoadBlob, which looks into its server's directory besides."""
    data = b"".join(b"%d\n" % number for number in range(1_000_000))
    storage = open_storage(shared_cluster.addresses, blob_dir=tmp_path / "cache")
    db = DB(storage)
    with db.transaction() as connection:
        connection.root()["blob"] = Blob(data)
    blob = db.open().root()["blob"]
    with blob.open() as file:
        assert file.read() == data
    path = storage.loadBlob(blob._p_oid, blob._p_serial)
    remove_committed(path)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(storage.loadBlob(blob._p_oid, blob._p_serial)))
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [path] * 10
    assert Path(path).read_bytes() == data
    transaction.abort()
    db.close()


@pytest.fixture
def in_zeos_place(shared_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """For a doctest of ZEO's that starts a server and opens databases on it: they are the cluster's."""
    monkeypatch.setattr(CacheLayout, "directories", 11)  # the test wants names to collide

    def open_db(addresses: str, **options: Any) -> DB:
        return DB(ClientStorage(addresses, **options))

    monkeypatch.setattr(ZEO, "DB", open_db)

    def set_up(test: Any) -> None:
        zope.testing.setupstack.setUpDirectory(test)
        test.globs["start_server"] = lambda **_: (shared_cluster.addresses, None)

    return set_up


def test_zeos_bounded_cache(in_zeos_place: Callable[[Any], None]) -> None:
    """Ten clients pound on one directory, which is much too small for what they read."""
    suite = doctest.DocFileSuite(
        "zeo_blob_cache.test", package=ZEO.tests, setUp=in_zeos_place, tearDown=zope.testing.setupstack.tearDown
    )
    (case,) = cases_of(suite)
    result = unittest.TestResult()
    case.run(result)
    for _, text in [*result.errors, *result.failures]:
        raise AssertionError(text)
