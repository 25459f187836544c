"""`python -m tests.simulation --seeds N --from S`: exit status 0 only if every seed held."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.campaign import Campaign
from tests.simulation.faults import CRASH_POINTS, KINDS, PACK_POINTS, SCENES
from tests.simulation.mutants import BY_NAME, CAUGHT_FILE, FOCUS, MUTANTS
from tests.simulation.shrink import shrink, tell
from tests.simulation.simulation import Plan, Result, Simulation

console = Console()


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to run.")] = 1000,
    start: Annotated[int, typer.Option("--from", min=0, help="The first seed.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    stop_after: Annotated[int, typer.Option(min=1, help="Stop when so many seeds have failed.")] = 3,
    mutant: Annotated[str, typer.Option(help="Run with this mistake in the code; it should fail.")] = "",
    mutants: Annotated[bool, typer.Option(help="Say how soon each known mistake is caught.")] = False,
    remember: Annotated[bool, typer.Option(help="With --mutants: have the tests try these seeds first.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this kind of fault; may be repeated.")] = None,
    trace: Annotated[bool, typer.Option(help="Print the whole traces, one run after another.")] = False,
) -> None:
    """Runs simulated clusters under faults, one for each seed, and checks every promise."""
    if mutant and mutant not in BY_NAME:
        raise typer.BadParameter(f"there are: {', '.join(BY_NAME)}", param_hint="--mutant")
    kinds = sorted([*KINDS, *SCENES])
    if only and not set(only) <= set(kinds):
        raise typer.BadParameter(f"there are: {', '.join(kinds)}", param_hint="--only")
    numbers = range(start, start + seeds)
    only = only or []
    if mutants:
        raise typer.Exit(not _all_mutants(numbers, jobs, remember))
    with BY_NAME[mutant]() if mutant else nullcontext():
        if trace:
            held = not [seed for seed in numbers if _traced(seed, only)]
        else:
            held = _run(numbers, jobs, stop_after, mutant, only)
    raise typer.Exit(not held)


def _all_mutants(numbers: range, jobs: int, remember: bool) -> bool:
    """A Markdown table; True when every one is caught."""
    found: dict[str, int] = {}
    console.out("| mistake | faults | caught by seed | as |\n|---|---|--:|---|", highlight=False)
    with Campaign(jobs) as campaign:
        for name in (mutant.__name__ for mutant in MUTANTS):
            only = FOCUS.get(name, ())
            caught = next(((s, r.failure) for s, r in campaign.run(numbers, name, only) if r.failure), None)
            if caught is not None:
                found[name] = caught[0]
            seed, failure = caught or ("-", "**not caught**")
            what = " ".join(name.split("_"))
            console.out(f"| {what} | {', '.join(only) or 'all'} | {seed} | {failure[:70]} |", highlight=False)
    if remember:
        CAUGHT_FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return len(found) == len(MUTANTS)


def _traced(seed: int, only: Sequence[str]) -> bool:
    result = Simulation(Plan.draw(seed, only), lambda line: console.out(line, highlight=False)).run()
    console.out(f"==> seed {seed} {result.failure or 'holds'}", highlight=False)
    return bool(result.failure)


def _run(numbers: range, jobs: int, stop_after: int, mutant: str, only: Sequence[str]) -> bool:
    failed: dict[int, Result] = {}
    totals: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    began = time.monotonic()
    bar = Progress(
        TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), TextColumn("[red]{task.fields[bad]}"), console=console,
    )  # fmt: skip
    done = 0
    with Campaign(jobs) as campaign, bar, suppress(KeyboardInterrupt):  # what was done counts
        task = bar.add_task("", total=len(numbers), rate="", bad="")
        for done, (seed, result) in enumerate(campaign.run(numbers, mutant, only), 1):
            if result.failure:
                failed[seed] = result
                console.print(f"[red]seed {seed}:[/red] {result.failure}", highlight=False)
            totals.update(result.totals())
            struck += result.struck
            rate = done / (time.monotonic() - began)
            bar.update(task, advance=1, rate=f"{rate:.1f}/s", bad=f"{len(failed)} failed" if failed else "")
            if len(failed) >= stop_after:
                break
    for seed, result in failed.items():
        console.rule(f"seed {seed}, shrunk")
        for line in tell(shrink(Plan.draw(seed, only), result.failure)):
            console.out(line, highlight=False)
    points = (*CRASH_POINTS, *PACK_POINTS)
    never = [point for point in points if not struck[point]]
    console.print(
        f"{done} seeds from {numbers.start} in {time.monotonic() - began:.0f} s: {len(failed)} failed; "
        + ", ".join(f"{count:,} {name}" for name, count in totals.items())
        + f"; {struck.total():,} crashes at {len(points) - len(never)} of {len(points)} points"
        + (f" (never {', '.join(never)})" if never else ""),
        highlight=False,
    )
    return done == len(numbers) and not failed


if __name__ == "__main__":
    typer.run(main)
