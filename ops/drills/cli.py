"""`raftstorage drill kill-leader` and `soak`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from raftstorage.ops.console import guard, print_json
from rich.console import Console

drill_app = typer.Typer(help="Break a cluster on purpose, and see what its clients see.", no_args_is_help=True)


@drill_app.command("kill-leader")
@guard
def drill_kill_leader(
    kills: Annotated[int, typer.Option(min=1, help="How many times.")] = 5,
    writers: Annotated[int, typer.Option(min=1, help="Writer processes.")] = 4,
    nodes: Annotated[int, typer.Option(min=3, help="Nodes of the cluster.")] = 3,
    seconds_between: Annotated[float, typer.Option(min=0.0, help="From one kill to the next, at least.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Kill the leader under real writers. Exit code 1 when a commit was lost or doubled."""
    from raftstorage.ops.drills import kill_leader

    progress = Console(stderr=True, soft_wrap=True)
    report = kill_leader.kill_leader(
        kills=kills, writers=writers, nodes=nodes, seconds_between=seconds_between, say=progress.print
    )
    if as_json:
        print_json(report.as_json())
    else:
        kill_leader.show(report, Console())
    if not report.ok:
        raise typer.Exit(1)


@drill_app.command("soak")
@guard
def drill_soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 60.0,
    nodes: Annotated[int, typer.Option(min=3, help="Nodes of the cluster.")] = 3,
    writers: Annotated[int, typer.Option(min=1, help="Writer processes.")] = 3,
    readers: Annotated[int, typer.Option(min=0, help="Reader processes.")] = 2,
    kill_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds; leader and followers in turn. 0: nobody.")
    ] = 60.0,
    pack_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds; all but the last minute, garbage too. 0: never.")
    ] = 150.0,
    lose_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds; a follower loses its disk and is sent a snapshot. 0: never.")
    ] = 300.0,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="An empty place for the nodes' data; else a temporary one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the series into this file, .svg or .png.")] = None,
) -> None:
    """Load, kill, pack and refill a cluster for a long time. Exit code 1 on loss, and when something drifts.

    Memory, handles, threads, disk, latency and rate are sampled; each series says what it may do. --plot needs
    pip install 'raftstorage\\[drill]'.
    """
    from raftstorage.ops.drills import harm, soak, soak_plot, soak_report

    progress = Console(stderr=True, soft_wrap=True)
    if plot is not None and not soak_plot.available():
        progress.print(
            "matplotlib is not installed, so nothing is drawn: pip install 'raftstorage[drill]'", markup=False
        )
        plot = None
    report, struck = soak.run(
        minutes=minutes,
        nodes=nodes,
        writers=writers,
        readers=readers,
        harm=harm.hooks(kill_every, pack_every, lose_every),
        say=progress.print,
        directory=directory,
    )
    if plot is not None:
        soak_plot.plot(report, struck, plot)
    if as_json:
        print_json(report.as_json())
    else:
        soak_report.show(report, Console(width=None if sys.stdout.isatty() else 120))
    if not report.ok:
        raise typer.Exit(1)
