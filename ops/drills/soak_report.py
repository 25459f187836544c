"""What a soak found: which series there are, what each may do, and how that is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from raftstorage.ops.drills.drift import Point, Tolerance, Verdict, condense, judge, second_half
from raftstorage.ops.drills.report import Ack, Report, percentile
from raftstorage.ops.drills.samples import Series
from raftstorage.ops.status import size
from rich.console import Console
from rich.table import Table

MIB = 1 << 20
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 20
#: So many points of each series are in the JSON report.
_POINTS = 60


@dataclass(frozen=True, slots=True)
class Kind:
    """`restarts`: a restart begins the series anew, so that it is judged within each process's life. Without a
    tolerance a series is shown and not judged."""

    unit: str
    tolerance: Tolerance | None
    restarts: bool = False


#: What is measured, and what it may do. A process's memory is not judged before it is ten minutes old: until then
#: RocksDB's tables and cache and the log's cache fill, by up to 256 MiB in a node.
KINDS = {
    "rss": Kind("B", Tolerance(step=24 * MIB, per_hour=32 * MIB, share_per_hour=0.1, least_seconds=600), True),
    "handles": Kind("", Tolerance(step=12, per_hour=40, least_seconds=60), True),
    "threads": Kind("", Tolerance(step=4, per_hour=6, least_seconds=60), True),
    "loop lag": Kind("s", Tolerance(step=0.02, share=0.5, share_per_hour=0.2, least_seconds=60), True),
    "log": Kind("B", Tolerance(step=192 * MIB, share_per_hour=0.05)),
    "log length": Kind("", Tolerance(step=200_000, share_per_hour=0.05)),
    "database": Kind("B", None),  # it keeps every commit; what one of them costs is judged
    "database a commit": Kind("B", Tolerance(step=64, share=0.25, share_per_hour=0.1, least_seconds=60)),
    "commits/s": Kind("", Tolerance(share=0.3, share_per_hour=0.1, falling=True)),
    "commit p50": Kind("s", Tolerance(step=0.005, share=0.3, share_per_hour=0.1)),
    "commit p99": Kind("s", Tolerance(step=0.25, share=0.5, share_per_hour=0.2)),
}


@dataclass(frozen=True, slots=True)
class Judged:
    subject: str
    name: str
    verdict: Verdict
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class SoakReport:
    """`commits`: what became of them. `reads`: transactions of readers; `wrong`: what they saw that cannot be.
    `ended`: nodes that ended without being killed. `struck`: what was done to the cluster, by name."""

    commits: Report
    nodes: int
    reads: int
    reads_retried: int
    struck: dict[str, int]
    wrong: tuple[str, ...]
    ended: tuple[str, ...]
    judged: tuple[Judged, ...]

    @property
    def drifting(self) -> list[Judged]:
        return [each for each in self.judged if each.verdict.drifts]

    @property
    def ok(self) -> bool:
        return self.commits.ok and not (self.wrong or self.ended or self.drifting)

    def as_json(self) -> dict[str, Any]:
        begun = min((each.points[0][0] for each in self.judged if each.points), default=0.0)
        commits = self.commits.as_json()
        del commits["ok"], commits["kills"]
        return {
            "ok": self.ok,
            "nodes": self.nodes,
            "struck": self.struck,
            **commits,
            "transactions_read": self.reads,
            "reads_retried": self.reads_retried,
            "wrong_reads": list(self.wrong[:100]),
            "nodes_that_ended": list(self.ended),
            "drifting": [f"{each.subject}: {each.name}" for each in self.drifting],
            "series": [
                {
                    "subject": each.subject,
                    "name": each.name,
                    "unit": KINDS[each.name].unit,
                    **each.verdict.as_json(),
                    "points": [[round(at - begun, 1), value] for at, value in condense(each.points, _POINTS)],
                }
                for each in self.judged
            ],
        }


def windows(acks: Sequence[Ack], seconds: float) -> list[Series]:
    """Commits a second and their latency, of all writers together, for each window of `seconds`."""
    rate, middle, slow = (Series("all writers", name) for name in ("commits/s", "commit p50", "commit p99"))
    if not acks:
        return [rate, middle, slow]
    begin = min(ack.acknowledged for ack in acks)
    by_window: dict[int, list[float]] = {}
    for ack in acks:
        by_window.setdefault(int((ack.acknowledged - begin) / seconds), []).append(ack.acknowledged - ack.begun)
    for number in range(max(by_window)):  # the last one is not whole
        took = by_window.get(number, [])
        at = begin + (number + 0.5) * seconds
        rate.add(at, len(took) / seconds)
        if took:
            middle.add(at, percentile(took, 50))
            slow.add(at, percentile(took, 99))
    return [rate, middle, slow]


def judge_all(series: Iterable[Series]) -> tuple[Judged, ...]:
    """Each by its kind's tolerance."""
    found = []
    for each in series:
        kind = KINDS[each.name]
        points = each.points()
        verdict = Verdict(why="it may grow with what is stored")
        if kind.tolerance is not None:
            verdict = judge(each.lives if kind.restarts else [points], kind.tolerance)
        found.append(Judged(each.subject, each.name, verdict, points))
    return tuple(found)


def sparkline(points: Sequence[Point], width: int = _WIDTH) -> str:
    """The series in one line of characters, from its lowest value to its highest."""
    values = [value for _, value in condense(points, width)]
    if not values:
        return ""
    low, high = min(values), max(values)
    step = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_BARS[round((value - low) / step)] for value in values)


def _figure(value: float, unit: str) -> str:
    sign = "-" if value < 0 else ""
    match unit:
        case "B":
            return sign + size(round(abs(value)))
        case "s":
            return f"{value * 1000:,.1f} ms"
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _worst(judged: Iterable[Judged]) -> list[Judged]:
    """For each series of nodes, of writers and so on the subject that is nearest to what it may do, or beyond."""
    best: dict[tuple[str, str], Judged] = {}
    for each in judged:
        key = each.subject.split()[0], each.name
        if key not in best or _badness(each) > _badness(best[key]):
            best[key] = each
    return list(best.values())


def _badness(each: Judged) -> tuple[bool, bool, float]:
    verdict = each.verdict
    return verdict.drifts, not verdict.why, verdict.change / verdict.allowed if verdict.allowed else 0.0


def show(report: SoakReport, console: Console) -> None:
    """Prints the report for a person; of several nodes (writers, readers) the worst one."""
    commits = report.commits
    table = Table(title="drill soak", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, heading in enumerate(("of", "series", "", "level", "worse by", "allowed", "verdict")):
        table.add_column(heading, justify="right" if 3 <= number <= 5 else "left", no_wrap=True)
    worst = _worst(report.judged)
    for each in worst:
        unit, verdict = KINDS[each.name].unit, each.verdict
        colour = "red" if verdict.drifts else "yellow" if verdict.why else "green"
        figures = [_figure(value, unit) for value in (verdict.level, verdict.change, verdict.allowed)]
        if verdict.why:
            figures = [_figure(median(value for _, value in second_half(each.points) or [(0, 0.0)]), unit), "", ""]
        table.add_row(each.subject, each.name, sparkline(each.points), *figures, f"[{colour}]{verdict.word}[/]")
    console.print(table)
    console.print("Judged: the second half, of each process's life for what a restart begins anew.")
    for why in dict.fromkeys(f"{each.name}: {each.verdict.why}" for each in worst if each.verdict.why):
        console.print(f"not judged: {why}", style="yellow", highlight=False)
    struck = ", ".join(f"{name} {count}" for name, count in report.struck.items()) or "nothing"
    console.print(f"done to {report.nodes} nodes: {struck}", highlight=False)
    console.print(
        f"{commits.acknowledged:,} commits acknowledged in {commits.seconds:.0f} s: {len(commits.lost)} lost, "
        f"{len(commits.doubled)} doubled, {len(commits.misplaced)} at another tid; {commits.retries} retried; "
        f"{report.reads:,} transactions read, {len(report.wrong)} times wrong",
        highlight=False,
    )
    for what in (*report.ended, *report.wrong[:10]):
        console.print(what, style="red", markup=False)
    bad = {"lost": commits.lost, "doubled": commits.doubled, "at another tid": commits.misplaced}
    for what in [f"{title}: {uid}" for title, uids in bad.items() for uid in uids[:10]]:
        console.print(what, style="red", markup=False)
    for each in report.drifting:
        console.print(f"drifts: {each.subject}, {each.name}", style="red", markup=False)
    console.print("[bold green]held[/]" if report.ok else "[bold red]did not hold[/]")
