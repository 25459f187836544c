"""What the model makes passes; with any one mistake in it, it does not."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.simulation.checks import Broken, Checked, check_all
from tests.simulation.history import Committed, History
from tests.unit.checks.histories import ACCOUNTS, FIRST, LISTS, STEPS, TOTAL, Model, run
from tests.unit.checks.mutations import MUTATIONS, Mutation

STORIES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS)), max_size=60)


def check(history: History, truth: list[Committed]) -> Checked:
    return check_all(
        history, truth, accounts=ACCOUNTS, total=TOTAL, lists=LISTS, others=frozenset({FIRST})
    )  # fmt: skip


def told(story: list[tuple[int, str]], seed: int) -> Model:
    model = Model(random.Random(seed), silent=seed % 2 == 1)
    for client, step in story:
        model.step(client, step)
    return model


@settings(max_examples=300, deadline=None)
@given(story=STORIES, seed=st.integers(0, 1 << 32))
def test_good_histories_pass(story: list[tuple[int, str]], seed: int) -> None:
    model = told(story, seed)
    checked = check(model.history, model.truth)
    assert checked.reads == len(model.history.reads())
    assert checked.acknowledged + checked.refused + checked.unknown == len(model.history.commits())


@pytest.mark.parametrize("mutate", MUTATIONS)
@settings(max_examples=40, deadline=None)
@given(
    story=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS)), min_size=40, max_size=60),
    seed=st.integers(0, 1 << 32),
)
def test_any_one_mistake_is_noticed(mutate: Mutation, story: list[tuple[int, str]], seed: int) -> None:
    model = told(story, seed)
    assume(mutate(random.Random(seed), model.history.events, model.truth))
    with pytest.raises(Broken):
        check(model.history, model.truth)


def test_the_model_makes_enough_of_everything() -> None:
    checked = [check(model.history, model.truth) for model in (run(seed, 120) for seed in range(20))]
    for what in ("acknowledged", "refused", "unknown", "reads", "linearizable", "told"):
        assert min(getattr(each, what) for each in checked) >= 5
