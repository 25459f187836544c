"""BTrees' tests of conflicts between transactions, over our storage: they are resolved in the client, with what a
node tells it."""

from __future__ import annotations

import unittest
from typing import Any

import pytest
import ZODB
from BTrees.tests import testConflict

from tests.conformance.cases import Case, Embedded, OnCluster, checks_of, missing

#: What there is in BTrees 6; each but one opens a database.
CHECKS = 9


class OpensOurs:
    client: Any

    def openDB(self) -> ZODB.DB:
        self.storage = self.client()
        self.storage.cleanup = lambda: None  # of a FileStorage's files
        self.db = ZODB.DB(self.storage)
        return self.db


class TestConflictsOnCluster(OpensOurs, testConflict.NastyConfictFunctionalTests, OnCluster):
    pass


class TestConflictsEmbedded(OpensOurs, testConflict.NastyConfictFunctionalTests, Embedded):
    pass


@pytest.mark.parametrize("case", [TestConflictsOnCluster, TestConflictsEmbedded])
def test_every_check_is_collected(case: type[Case]) -> None:
    assert len(unittest.TestLoader().getTestCaseNames(case)) >= CHECKS
    assert missing(testConflict.NastyConfictFunctionalTests, case) == set()
    assert len(checks_of(testConflict.NastyConfictFunctionalTests)) >= CHECKS
