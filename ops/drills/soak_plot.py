"""A soak's series as a picture. Needs matplotlib: `pip install 'raftstorage[drill]'`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from raftstorage.ops.drills.soak_report import KINDS, SoakReport
from raftstorage.ops.errors import CommandError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 2


def available() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def plot(report: SoakReport, struck: list[float], path: Path) -> None:
    """Writes one panel for each kind of series; SVG, PNG or PDF by the name's ending. CommandError.

    `struck`: when something was done to the cluster, in the clock of the points; drawn as thin lines.
    """
    from matplotlib.figure import Figure

    names = [name for name in KINDS if any(each.name == name for each in report.judged)]
    rows = max(1, math.ceil(len(names) / _COLUMNS))
    figure = Figure(figsize=(6 * _COLUMNS, 2.4 * rows), layout="constrained")
    begun = min((each.points[0][0] for each in report.judged if each.points), default=0.0)
    for number, name in enumerate(names):
        _panel(figure, rows, number, report, name, [(at - begun) / 60 for at in struck], begun)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot draw {path}: {error}") from error


def _panel(
    figure: Figure, rows: int, number: int, report: SoakReport, name: str, struck: list[float], begun: float
) -> None:
    axes = figure.add_subplot(rows, _COLUMNS, number + 1)
    unit = KINDS[name].unit
    scale, shown = {"B": (1 << 20, "MiB"), "s": (0.001, "ms")}.get(unit, (1, ""))
    if name == "database a commit":
        scale, shown = 1, "B"
    for at in struck:
        axes.axvline(at, color="0.85", linewidth=0.6, zorder=0)
    for each in report.judged:
        if each.name == name:
            minutes = [(at - begun) / 60 for at, _ in each.points]
            label = each.subject + (" (drifts)" if each.verdict.drifts else "")
            axes.plot(minutes, [value / scale for _, value in each.points], linewidth=0.9, label=label)
    axes.set_title(f"{name}, {shown}" if shown else name, fontsize="small", loc="left")
    axes.set_xlabel("minutes", fontsize="x-small")
    axes.tick_params(labelsize="x-small")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.legend(fontsize="xx-small", loc="best")
