"""`python -m tests.e2e.nemesis --minutes M --seed S` or `--partitions N`: exit status 0 only if all held."""

from __future__ import annotations

import logging
import random
import traceback
from collections import Counter
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from tests.e2e.nemesis.disk import why_no_shim
from tests.e2e.nemesis.nemesis import Plan, Report, partition_leader, run
from tests.e2e.nemesis.network import why_no_delay, why_not

#: A campaign goes in rounds, each with a cluster of its own: histories stay short enough to be searched.
ROUND_SECONDS = 100.0
ROUND_PARTITIONS = 30

console = Console()


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to strike.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of the first round; the next ones count up. Else random.")] = -1,
    partitions: Annotated[int, typer.Option(min=0, help="Instead: cut the leader off so many times.")] = 0,
    nodes: Annotated[int, typer.Option(min=3, help="Nodes of a cluster.")] = 3,
    clients: Annotated[int, typer.Option(min=1, help="Client threads.")] = 4,
    longest: Annotated[
        float | None, typer.Option(min=0.1, help="Longest fault in seconds; else 30, or 4 for a cut.")
    ] = None,
    keep_going: Annotated[bool, typer.Option(help="Do not stop at the first round that fails.")] = False,
) -> None:
    """Strikes real clusters in network namespaces with faults while clients work, and checks all they saw.

    Exit status: 0 everything held, 1 something did not, 2 it cannot be done here.
    """
    for reason in (why_not(), why_no_shim(), why_no_delay()):
        if reason:
            console.print(f"left out: {reason}", style="yellow", highlight=False)
    logging.getLogger("raftstorage").setLevel(logging.ERROR)  # clients tell of each node that does not answer
    if why_not():
        raise typer.Exit(2)
    if seed < 0:
        seed = random.SystemRandom().randrange(1 << 32)
    plan = Plan(seed, ROUND_SECONDS, nodes, clients, longest or (4.0 if partitions else 30.0))
    if partitions:
        full, rest = divmod(partitions, ROUND_PARTITIONS)
        counts = [ROUND_PARTITIONS] * full + ([rest] if rest else [])
    else:
        counts = [0] * max(1, round(minutes * 60 / ROUND_SECONDS))
        plan = replace(plan, seconds=minutes * 60 / len(counts))
    reports, failed = [], 0
    for number, count in enumerate(counts):
        report = _round(replace(plan, seed=seed + number), count)
        if report is not None:
            reports.append(report)
            continue
        failed += 1
        if not keep_going:
            break
    _show(reports, failed)
    raise typer.Exit(bool(failed))


def _round(plan: Plan, count: int) -> Report | None:
    """One cluster; None when something did not hold, which is printed."""
    console.rule(f"seed {plan.seed}")

    def say(line: str) -> None:
        console.out(line, highlight=False)

    try:
        return partition_leader(plan, count, say) if count else run(plan, say)
    except Exception as error:
        say(f"seed {plan.seed} fails: {type(error).__name__}")
        say(traceback.format_exc())
        return None


def _show(reports: list[Report], failed: int) -> None:
    """The campaign's sum."""
    if reports:
        struck = sum((report.struck for report in reports), Counter[str]())
        total = Report(reports[0].seed, struck=struck, gaps=[gap for each in reports for gap in each.gaps])
        for each in reports:
            total.before += each.before
            total.during += each.during
            total.seconds += each.seconds
        checks = [each.checked for each in reports if each.checked is not None]
        console.rule("all rounds")
        console.print(str(total).removesuffix("; None"), highlight=False)
        console.print(
            f"checked: {sum(c.acknowledged for c in checks):,} commits acknowledged, none lost, none doubled; "
            f"{sum(c.refused for c in checks):,} refused, {sum(c.unknown for c in checks):,} unknown; "
            f"{sum(c.reads for c in checks):,} reads, {sum(c.linearizable for c in checks):,} of them "
            f"linearizable, none stale; {sum(c.told for c in checks):,} invalidations",
            highlight=False,
        )
    style = "bold red" if failed else "bold green"
    console.print(f"{len(reports)} rounds held, {failed} failed", style=style, highlight=False)


if __name__ == "__main__":
    typer.run(main)
