"""Every guarantee of Raft holds in random clusters; `raft_cluster.Cluster` checks them all along."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.unit.raft import chaos_changes
from tests.unit.raft.chaos import run


@pytest.mark.parametrize("part", range(10))
def test_random_clusters_keep_every_guarantee(part: int, seed: int) -> None:
    for number in range(12):
        run(f"{seed}/{part}/{number}")


@pytest.mark.soak
def test_random_clusters_for_long(seed: int) -> None:
    for number in range(5_000):
        run(f"{seed}/soak/{number}", 1_000)


def test_the_runs_do_something() -> None:
    runs = [run(f"fixed/{number}") for number in range(30)]
    assert sum(len(each.cluster.committed) for each in runs) > 1_000
    assert sum(len(each.cluster.leaders) for each in runs) > 150
    answered = sum(len(it.reads) for each in runs for it in each.cluster.nodes.values())
    assert answered > 100


@pytest.mark.parametrize("part", range(10))
def test_random_changes_keep_every_guarantee(part: int, seed: int) -> None:
    for number in range(8):
        chaos_changes.run(f"{seed}/changes/{part}/{number}")


@pytest.mark.soak
def test_random_changes_for_long(seed: int) -> None:
    for number in range(5_000):
        chaos_changes.run(f"{seed}/changes/soak/{number}")


def test_the_changing_runs_do_something() -> None:
    runs = [chaos_changes.run(f"fixed/{number}") for number in range(30)]
    did = sum((each.did for each in runs), Counter[str]())
    assert did["joint"] > 50
    assert did["simple"] > 30
    assert did["installed"] > 20
    assert did["stale"] > 10
    assert sum(count for what, count in did.items() if what.startswith("refused")) > 100
    removed = [set(each.cluster.nodes) - each.cluster[each.calm_leader()].membership.ids for each in runs]
    assert sum(map(len, removed)) > 20
