"""`raftstorage verify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from raftstorage.ops import verify as module
from raftstorage.ops.console import guard, print_json
from raftstorage.ops.looking.names import parse_tid
from raftstorage.ops.status import DEFAULT_ADDRESSES, size, split_addresses
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Problems of a node that are shown, one a line; all of them with --json.
SHOWN = 20


@guard
def verify(
    tid: Annotated[str, typer.Option(help="As of this transaction; else of the newest one.")] = "",
    references: Annotated[
        bool, typer.Option("--references", help="Also whether what current objects refer to is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    addresses: Annotated[str, typer.Option(help="Some nodes, host:port,host:port,...")] = DEFAULT_ADDRESSES,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for news of a node.")] = 30.0,
) -> None:
    """Have every node read all its records and blobs and compare checksums; compare the nodes.

    It goes on beside their other work. Exit status 1 when something is damaged, differs, or could not be read.
    """
    wanted = parse_tid(tid) if tid else None
    with _Bars() as bars:
        verdict = module.verify(
            split_addresses(addresses), tid=wanted, references=references, timeout=timeout, progress=bars.told
        )
    if as_json:
        print_json(module.as_json(verdict))
    else:
        _show(verdict)
    if not verdict.ok:
        raise typer.Exit(1)


class _Bars:
    """One for each node, of its objects."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[int, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def told(self, nodes: Sequence[module.Found]) -> None:
        for node in nodes:
            if node.node_id not in self._tasks:
                self._tasks[node.node_id] = self._progress.add_task(f"node {node.node_id}", total=None)
            report = node.report
            total = report.records if report.done else max(report.objects, report.records) or None
            self._progress.update(self._tasks[node.node_id], completed=report.records, total=total)


def _show(verdict: module.Verdict) -> None:
    for node in verdict.nodes:
        report = node.report
        name = f"node {node.node_id} at {node.address}"
        if node.error or not report.done:
            typer.echo(f"{name}: not verified: {node.error or 'it did not answer to the end'}")
            continue
        blobs = f", {report.blobs} blobs" if report.blobs else ""
        state = "sound" if node.sound else f"{len(node.problems)} problems"
        typer.echo(f"{name}: {report.records} records{blobs}, {size(report.bytes)}: {state}")
        for problem in node.problems[:SHOWN]:
            typer.echo(f"  {problem}")
        if len(node.problems) > SHOWN:
            typer.echo(f"  and {len(node.problems) - SHOWN} more")
    for difference in verdict.differences:
        typer.echo(difference)
    if verdict.ok:
        typer.echo(f"all nodes hold the same up to {verdict.tid.hex()}")
