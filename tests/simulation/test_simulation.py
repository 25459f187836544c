"""What the simulator promises of itself, a thousand seeds, and every mutant."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import typer

from tests.simulation.__main__ import main
from tests.simulation.campaign import Campaign
from tests.simulation.faults import CRASH_POINTS, PACK_POINTS
from tests.simulation.mutants import BY_NAME, FOCUS, MUTANTS, SEEDS, likely_first
from tests.simulation.shrink import kind, shrink, tell
from tests.simulation.simulation import Plan, Result, Simulation

HELD = 1000
ROOT = Path(__file__).parents[2]
HASHES = """
from tests.simulation.simulation import Plan, Result, Simulation
for seed in range({start}, {stop}):
    print(Simulation(Plan.draw(seed)).run().digest)
"""


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    with Campaign(os.cpu_count() or 1) as running:
        yield running


def test_a_seed_is_the_same_run_in_every_interpreter() -> None:
    def hashes(hash_seed: str) -> list[str]:
        code = HASHES.format(start=0, stop=15)
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return run.stdout.split()

    first = hashes("1")
    assert len(set(first)) == 15
    assert hashes("2") == first


def test_a_trace_is_what_its_hash_says() -> None:
    lines: list[str] = []
    plan = Plan.draw(3)
    traced = Simulation(plan, lines.append).run()
    assert len(lines) == traced.lines > 100
    assert Simulation(plan).run().digest == traced.digest
    assert Simulation(Plan.draw(4)).run().digest != traced.digest


@pytest.mark.timeout(1200)
def test_every_promise_holds(campaign: Campaign) -> None:
    struck: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    failed = {}
    for seed, result in campaign.run(range(HELD)):
        if result.failure:
            failed[seed] = result.failure
        struck += result.struck
        totals.update(result.totals())
    assert failed == {}
    assert [point for point in (*CRASH_POINTS, *PACK_POINTS) if not struck[point]] == []
    assert totals["acknowledged"] > 20 * HELD, "enough happened to say something"
    assert min(totals["refused"], totals["unknown"]) > 0
    assert totals["packs"] > HELD / 2
    assert totals["objects collected"] > HELD / 20  # where there are no blobs: in a third of the runs
    assert min(totals["membership changes"], totals["snapshots installed"]) > HELD / 4
    assert totals["acknowledged in parts"] > 4 * HELD


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [mutant.__name__ for mutant in MUTANTS])
def test_every_mutant_is_caught(campaign: Campaign, name: str) -> None:
    for _seed, result in campaign.run(likely_first(name), name, FOCUS.get(name, ())):
        if result.failure:
            return
    pytest.fail(f"{name} lives through {SEEDS} seeds")


def test_a_failure_is_shrunk_and_told() -> None:
    with BY_NAME["does_not_check_what_was_read"]():
        seed, failure = next(
            (seed, result.failure)
            for seed in range(SEEDS)
            if (result := Simulation(Plan.draw(seed)).run()).failure
        )
        plan = Plan.draw(seed)
        small = shrink(plan, failure)
        story = tell(small)
    assert kind(story[-1].removeprefix("==> ")) == kind(failure)
    assert len(small.faults) < len(plan.faults) or not plan.faults
    assert len(story) < 1000


def test_the_command_says_by_its_status_whether_all_seeds_held() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "4", "--jobs", "2"]
    held = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (held.returncode, "0 failed" in held.stdout) == (0, True), held.stdout + held.stderr
    command += ["--mutant", "never_syncs", "--stop-after", "1"]
    broke = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert (broke.returncode, "shrunk" in broke.stdout) == (1, True), broke.stdout + broke.stderr


def test_a_campaign_that_is_interrupted_has_not_held() -> None:
    def interrupted(*_: object) -> Iterator[tuple[int, Result]]:
        yield 0, Simulation(Plan.draw(0)).run()
        raise KeyboardInterrupt

    with mock.patch.object(Campaign, "run", interrupted), pytest.raises(typer.Exit) as end:
        main(seeds=2, start=0, jobs=1)
    assert end.value.exit_code == 1
