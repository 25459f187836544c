"""ZODB's own storage tests against a live three-node cluster, as ZODB runs them against FileStorage; all of them
once more against a node in the test's own process, and once more with records that no node can read.

Each check gets an empty database, as the mixins expect (some choose the tids 1, 2, 3; others count objects).
"""

from __future__ import annotations

import pytest

from tests.conformance.cases import CHECKS, Case, Embedded, OnCluster, UnderHex, checks_of, make_cases, missing

PLACES: list[type[Case]] = [OnCluster, Embedded, UnderHex]
CASES = {place: make_cases(place, __name__) for place in PLACES}
for cases in CASES.values():  # where a test runner looks for them
    globals().update(cases)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("mixin", CHECKS, ids=lambda mixin: mixin.__name__)
def test_every_check_is_collected(mixin: type, place: type[Case]) -> None:
    cases = [case for case in CASES[place].values() if issubclass(case, mixin)]
    assert cases
    assert len(checks_of(mixin)) >= CHECKS[mixin]
    assert [missing(mixin, case) for case in cases] == [set() for _ in cases]
