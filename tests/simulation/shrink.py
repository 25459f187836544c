"""A failing plan made small: fewer faults, fewer clients, a shorter run, a calmer network; and its story told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.simulation.network import Weather
from tests.simulation.simulation import Plan, Result, Simulation

Run = Callable[[Plan], Result]

#: Runs that one shrinking may take.
BUDGET = 300
#: So many of a trace's last lines are told in full; of those before, only what is not a message.
LAST_LINES = 60
_MESSAGE = re.compile(r"^ *[\d.]+ \d->\d ")


def kind(failure: str) -> str:
    """The failure without what differs from run to run: numbers and names."""
    return re.sub(r"0x\w+|\b[nc]?\d\w*\b", "*", failure)[:60]


def run(plan: Plan) -> Result:
    return Simulation(plan).run()


def shrink(plan: Plan, failure: str, run: Run = run) -> Plan:
    """The smallest plan found that fails in the same way; `plan` itself if none is smaller."""
    wanted = kind(failure)
    left = BUDGET

    def fails(candidate: Plan) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and kind(run(candidate).failure) == wanted

    smaller = True
    while smaller and left > 0:
        smaller = False
        for candidate in _smaller(plan):
            if fails(candidate):
                plan, smaller = candidate, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Bold cuts first (delta debugging), single faults last."""
    faults = plan.faults
    size = len(faults)
    while size:
        for start in range(0, len(faults), size):
            yield replace(plan, faults=faults[:start] + faults[start + size :])
        size //= 2
    if plan.weather != Weather():
        yield replace(plan, weather=Weather())
    if plan.part_bytes:
        yield replace(plan, part_bytes=0)
    if plan.clients > 1:
        yield replace(plan, clients=plan.clients - 1)
    last = max((fault.at for fault in faults), default=0.0)
    for seconds in (plan.seconds / 2, last + 0.5):
        if last < seconds < plan.seconds - 0.1:
            yield replace(plan, seconds=seconds)


def tell(plan: Plan) -> list[str]:
    """The plan and its trace, for a person to read."""
    lines: list[str] = []
    result = Simulation(plan, lines.append).run()
    early = [line for line in lines[:-LAST_LINES] if not _MESSAGE.match(line)]
    left_out = len(lines) - LAST_LINES - len(early)
    story = [
        f"seed {plan.seed}: {plan.nodes} nodes, {plan.clients} clients, {plan.seconds:.1f} s, {plan.weather}",
        *(f"  {fault}" for fault in plan.faults),
        *early,
    ]
    if left_out > 0:
        story.append(f"... ({left_out} messages up to here are left out)")
    return [*story, *lines[-LAST_LINES:], f"==> {result.failure or 'holds'}"]
