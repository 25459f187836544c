"""ZODB's own storage tests while the cluster's leader is killed again and again: an application sees none of it.

CI runs those that take longest, so that each has several leaders; `--thorough` runs all of them. ZODB's races of
loads and invalidations run once more with caches in files, which a thread's storages take over from one another.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from raftstorage.ops.local import LocalCluster
from ZODB.tests.racetest import RaceTests

from tests.conformance.cases import MIXINS, Case, checks_of, make_cases

if TYPE_CHECKING:
    from tests.conformance.conftest import Clusters

IN_CI = ("MT", "Packable")
#: From the start of a check to the first death, at most, and from each restart to the next death. Seconds.
FIRST_DEATH, NEXT_DEATH = 0.3, 2.0


class Killer:
    """Kills whoever leads with SIGKILL and starts it again, until it is told to stop."""

    def __init__(self, cluster: LocalCluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._pause = rng.uniform(0.0, FIRST_DEATH)
        self.errors: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name="killer")

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause):
                leader = self._cluster.leader()
                self._cluster.kill(leader)
                if self._stop.is_set():
                    break
                self._cluster.start(leader)
                self._pause = NEXT_DEATH
        except Exception as error:
            self.errors.append(error)


class LeaderKilled(Case):
    @pytest.fixture(autouse=True)
    def _place(self, clusters: Clusters, rng: random.Random) -> Iterator[None]:
        with clusters.take() as cluster:
            self._addresses = cluster.addresses
            with Killer(cluster, rng) as killer:
                yield
            assert not killer.errors, killer.errors

    def client(self, **options: Any) -> Any:
        return super().client(wait_timeout=120.0, commit_timeout=120.0, **options)


for name, case in make_cases(LeaderKilled, __name__).items():
    if not any(name == f"Test{each}LeaderKilled" for each in IN_CI):
        case.pytestmark = [pytest.mark.thorough]  # type: ignore[attr-defined]
    globals()[name] = case


class TestRacesWithCachesInFiles(LeaderKilled, RaceTests):  # type: ignore[misc]
    @pytest.fixture(autouse=True)
    def _caches(self, tmp_path: Path) -> None:
        self._directory = tmp_path
        self.resumed = 0

    def client(self, **options: Any) -> Any:
        """A thread has one storage after the other: each begins with what the one before it left."""
        path = self._directory / f"cache-{threading.get_ident()}"
        self.resumed += path.exists()
        return super().client(cache_path=path, **options)

    def _new_storage_client(self) -> Any:
        return self.client()

    def tearDown(self) -> None:
        super().tearDown()
        if "disconnect" in self._testMethodName:
            assert self.resumed


def test_all_races_are_collected() -> None:
    assert len(checks_of(RaceTests)) == 3


def test_there_is_a_part_for_ci() -> None:
    assert set(IN_CI) < set(MIXINS)
