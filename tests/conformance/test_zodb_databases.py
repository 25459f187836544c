"""ZODB's own tests of databases and connections, with our storage wherever they make one.

They say `MappingStorage()`, `DB(None)`, `<mappingstorage/>`, `FileStorage("test.fs")` or `DB("test.fs")`: all of
that makes an embedded storage here, the same one again for the same file name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import shutil
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
from raftstorage.client import ClientStorage
from raftstorage.node.service.sessions import StorageService

#: What each module holds in ZODB 6.4 when those below are left out.
MODULES = {
    "testDB": 17,
    "testConnection": 39,
    "testConnectionSavepoint": 7,
    "testZODB": 11,
    "testCache": 16,
    "testcrossdatabasereferences": 6,
    "testhistoricalconnections": 1,
    "testpersistentclass": 3,
    "testPersistentWeakref": 3,
}

#: Checks that say something about another storage than ours, and what that is.
LEFT_OUT = {
    "testDB.connectionDebugInfo": "counts calls of time.time(): a node in the process looks at the clock, too",
    "testDB.passing_None_to_DB": "is about the class that DB(None) makes",
    "testDB.passing_a_file_name_to_DB": "is about the class and the file that DB(name) makes",
    "testDB.warn_when_data_records_are_big": "a record that ZODB begins to warn of, 16 MiB, is where ours refuses",
}


def flat(suite: Any) -> Iterator[unittest.TestCase]:
    if isinstance(suite, unittest.TestSuite):
        for each in suite:
            yield from flat(each)
    else:
        yield suite


def name_of(check: unittest.TestCase) -> str:
    return check.id().removeprefix("ZODB.tests.").rsplit("/", 1)[-1]


def checks_of(module: str) -> list[unittest.TestCase]:
    found = importlib.import_module(f"ZODB.tests.{module}")
    make = getattr(found, "test_suite", None)
    suite = unittest.defaultTestLoader.loadTestsFromModule(found) if make is None else make()
    return [check for check in flat(suite) if name_of(check) not in LEFT_OUT]


CHECKS = {module: checks_of(module) for module in MODULES}


class Storages:
    """Makes embedded storages in a directory, by name, and closes them all in the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = contextlib.ExitStack()
        self._made = 0

    def __call__(
        self, name: str = "", create: bool = False, read_only: bool = False, blob_dir: str | None = None, **_: Any
    ) -> ClientStorage:
        self._made += 1
        place = self._directory / (Path(name).name if name.endswith(".fs") else f"memory-{self._made}")
        if create and place.exists():
            shutil.rmtree(place)
        storage = ClientStorage(f"embedded:{place}", read_only=read_only, blob_dir=blob_dir)
        self._files.callback(storage.close)
        return storage

    def close(self) -> None:
        self._files.close()


@pytest.fixture
def storages(disk_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storages]:
    made = Storages(disk_directory)
    # Some put a clock in place of the process's own: a node in that process goes by it, as a FileStorage does.
    clocked = functools.partial(StorageService, clock=lambda: time.time())
    monkeypatch.setattr("raftstorage.node.embedded.StorageService", clocked)
    importlib.import_module("ZODB.tests.MVCCMappingStorage")  # derives from the one that is replaced
    for module in ("ZODB.MappingStorage.MappingStorage", "ZODB.FileStorage.FileStorage"):
        monkeypatch.setattr(module, made)
    yield made
    transaction.abort()
    made.close()


@pytest.mark.parametrize("check", [check for checks in CHECKS.values() for check in checks], ids=name_of)
def test_zodb(check: unittest.TestCase, storages: Storages) -> None:
    result = unittest.TestResult()
    check.run(result)
    assert result.testsRun == 1
    problems = [text for _, text in result.failures + result.errors]
    assert not problems, problems[0]


@pytest.mark.parametrize("module", MODULES)
def test_every_check_is_collected(module: str) -> None:
    assert len(CHECKS[module]) >= MODULES[module]
