"""Every mistake with memberships and snapshots is noticed: by chance, or when its story is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from raftstorage.node.raft.types import RaftInvariantError

from tests.unit.raft import change_mutants
from tests.unit.raft.change_mutants import CHANGE_MUTANTS
from tests.unit.raft.change_stories import STORIES
from tests.unit.raft.chaos_changes import run
from tests.unit.raft.mutants import Mutant

RUNS = 400


@pytest.mark.parametrize("mutant", CHANGE_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught(mutant: Mutant) -> None:
    with mutant():
        for number in range(RUNS):
            try:
                run(f"mutant/{number}")
            except (AssertionError, RaftInvariantError, IndexError) as error:
                print(f"run {number}: {error!r}")
                return
    pytest.fail(f"{RUNS} runs did not find it")


@pytest.mark.parametrize("story", STORIES.values(), ids=lambda story: story.__name__)
def test_stories_end_well(story: Callable[[], None]) -> None:
    story()


@pytest.mark.parametrize("mutant", STORIES, ids=lambda mutant: mutant.__name__)
def test_stories_catch_their_mutants(mutant: Mutant) -> None:
    with mutant(), pytest.raises((AssertionError, IndexError)):
        STORIES[mutant]()


def test_no_mutant_is_forgotten() -> None:
    there = {
        each
        for name, each in inspect.getmembers(change_mutants, inspect.isfunction)
        if each.__module__ == change_mutants.__name__ and not name.startswith("_") and name != "together"
    }
    assert there == {*CHANGE_MUTANTS, *STORIES}
