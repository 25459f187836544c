"""A run: a cluster, clients, faults from one seed, and the check of everything that was seen."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from raftstorage.ops.drills.report import longest_gap, percentile
from raftstorage.ops.local import ClusterError

from tests.e2e.nemesis.clients import Crowd
from tests.e2e.nemesis.cluster import NemesisCluster
from tests.e2e.nemesis.faults import (
    LEADER_CUTS,
    PATIENCE,
    Fault,
    Faults,
    NemesisError,
    draw,
    draw_damage,
    possible_kinds,
)
from tests.e2e.nemesis.network import Namespaces
from tests.simulation.checks import Checked

BEFORE = 50  # commits before the first fault
AFTER_EACH = 10  # commits after each fault, before the next
HUNG_SECONDS = 120.0  # without a commit when all faults are over


@dataclass
class Report:
    """What a run did. Times in seconds; a write gap is the longest time without any acknowledged commit, from when
    a fault struck to the first commits after it."""

    seed: int
    before: int = 0
    during: int = 0
    seconds: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    gaps: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    checked: Checked | None = None

    def gap(self, percent: float) -> float:
        return percentile(self.gaps, percent)

    def __str__(self) -> str:
        struck = ", ".join(f"{count} {kind}" for kind, count in sorted(self.struck.items()))
        return (
            f"seed {self.seed}: {self.before} commits before the faults, {self.during} during them, "
            f"{self.seconds:.0f} s; {self.struck.total()} faults: {struck}; no commit by anyone for "
            f"{self.gap(50):.2f} s p50, {self.gap(99):.2f} s p99, {max(self.gaps, default=0.0):.2f} s max; "
            f"{self.checked}{'; ' if self.told else ''}{', '.join(self.told)}"
        )


@dataclass(frozen=True)
class Plan:
    """`longest`: seconds of one fault. `enough`: commits acknowledged during faults that a run needs to count."""

    seed: int
    seconds: float
    nodes: int = 3
    clients: int = 4
    longest: float = 4.0
    enough: int = 50
    damage: bool = True


class Run:
    """One cluster with clients, faults one after the other. `say` is told what happens."""

    def __init__(self, cluster: NemesisCluster, crowd: Crowd, seed: int, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.crowd = crowd
        self.faults = Faults(cluster, crowd)
        self.report = Report(seed)
        self._say = say
        self._began = time.monotonic()
        self._windows: list[tuple[float, float]] = []  # struck, over

    def warm_up(self) -> None:
        """NemesisError when there are not enough commits before anything happens."""
        if not self.crowd.wait_commits(BEFORE, PATIENCE):
            raise NemesisError(f"less than {BEFORE} commits in {PATIENCE:g} s, without any fault{self._errors()}")
        self.report.before = len(self.crowd.acknowledged)

    def strike(self, fault: Fault) -> None:
        """One fault; commits flow again when it returns. NemesisError, ClusterError."""
        self._say(f"{time.monotonic() - self._began:7.2f} {fault}")
        struck = time.monotonic()
        self.faults.strike(fault)
        over = time.monotonic()
        self.report.struck[fault.kind] += 1
        if fault.cut:
            self.report.struck[fault.cut] += 1
        if not self.crowd.wait_commits(AFTER_EACH, HUNG_SECONDS):
            raise NemesisError(f"no {AFTER_EACH} commits within {HUNG_SECONDS:g} s after {fault}{self._errors()}")
        self.faults.check_running()
        gap = longest_gap(sorted(self.crowd.acknowledged), struck, time.monotonic())
        self._say(f"{'':7} no commit by anyone for {gap:.2f} s")
        self.report.gaps.append(gap)
        self._windows.append((struck, over))

    def finish(self) -> Report:
        """Heals, waits until all hold the same, stops the clients and checks. Broken, NemesisError."""
        self.cluster.heal_all()
        self.faults.check_running()
        self.cluster.leader(timeout=PATIENCE)
        if not self.crowd.wait_commits(AFTER_EACH, HUNG_SECONDS):
            raise NemesisError(f"no {AFTER_EACH} commits within {HUNG_SECONDS:g} s after all{self._errors()}")
        self.crowd.stop()
        report = self.report
        report.checked = self.crowd.check()
        self._check_nodes()
        times = self.crowd.acknowledged
        report.during = sum(struck <= at <= over for at in times for struck, over in self._windows)
        report.seconds = time.monotonic() - self._began
        report.told = self.faults.told
        return report

    def _check_nodes(self) -> None:
        """Who was not damaged holds the same, and none met an error that nobody made."""
        deadline = time.monotonic() + PATIENCE
        never = threading.Event()
        while True:
            states = {i: self.cluster.status(i, PATIENCE) for i in self.faults.sound}
            if len({(state.last_tid, state.objects, state.applied_index) for state in states.values()}) == 1:
                break
            if time.monotonic() > deadline:
                raise NemesisError(f"the nodes do not come to hold the same: {states}")
            never.wait(0.1)  # nodes have no event to tell an operator of what they applied
        for i in range(len(self.cluster)):
            text = self.cluster.log_text(i)
            at = text.find("Traceback")
            if at >= 0 and i not in self.faults.scarred:
                raise NemesisError(
                    f"node {i + 1} logged an unexpected error:\n{text[max(0, at - 2000) : at + 4000]}"
                )

    def _errors(self) -> str:
        return "".join(f"\n{error}" for error in self.crowd.errors)


def run(plan: Plan, say: Callable[[str], None] = lambda line: None, directory: Path | None = None) -> Report:
    """Everything of `plan`. Broken: a promise was; NemesisError, ClusterError: a node did not do what it should.

    AssertionError: a client hung or met what no application expects, or there were not enough commits.
    """
    rng = random.Random(plan.seed)
    full = rng.randrange(plan.nodes)
    with started(plan, rng, say, directory, small_disks=(full,)) as running:
        running.warm_up()
        end = time.monotonic() + plan.seconds
        faults = draw(rng, plan.longest, possible_kinds())
        damage = draw_damage(rng, plan.nodes) if plan.damage else []
        for fault in itertools.takewhile(lambda _: time.monotonic() < end, faults):
            running.strike(fault)
        for fault in damage:
            running.strike(fault)
        report = running.finish()
    say(str(report))
    if report.during < plan.enough:
        raise NemesisError(f"only {report.during} of {plan.enough} commits during faults: the run says too little")
    return report


@contextlib.contextmanager
def started(
    plan: Plan,
    rng: random.Random,
    say: Callable[[str], None],
    directory: Path | None = None,
    *,
    small_disks: tuple[int, ...] = (),
) -> Iterator[Run]:
    """A cluster with clients at work. What fails inside comes out with the last lines of all nodes' logs."""
    with Namespaces(plan.nodes) as network, NemesisCluster(network, directory, small_disks=small_disks) as cluster:
        try:
            with Crowd(cluster.addresses, plan.clients, rng) as crowd:
                yield Run(cluster, crowd, plan.seed, say)
        except (AssertionError, ClusterError) as error:
            for i in range(plan.nodes):
                tail = "\n".join(cluster.log_text(i).splitlines()[-40:])
                error.add_note(f"--- seed {plan.seed}, node {i + 1}\n{tail}")
            raise


def partition_leader(
    plan: Plan, times: int, say: Callable[[str], None] = lambda line: None, directory: Path | None = None
) -> Report:
    """Cuts the leader off `times` times, in every way that a net can, while clients write; checks. As `run`."""
    rng = random.Random(plan.seed)
    with started(plan, rng, say, directory) as running:
        running.warm_up()
        for number in range(times):
            seconds = rng.uniform(0.2, 1.0) * plan.longest
            kind = LEADER_CUTS[number % len(LEADER_CUTS)]
            running.strike(Fault(kind, seconds, rng.getrandbits(64), leader=True))
        return running.finish()
