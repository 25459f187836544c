"""The `raftstorage` command."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from raftstorage.ops import status as status_module
from raftstorage.ops.console import guard, print_json
from raftstorage.ops.diagnosis import diagnose, show_findings
from raftstorage.ops.drills.cli import drill_app
from raftstorage.ops.errors import require_node
from raftstorage.ops.local import LocalCluster
from raftstorage.ops.looking_cli import log, show, undo
from raftstorage.ops.member_cli import member_app, transfer_leader
from raftstorage.ops.pack_cli import pack
from raftstorage.ops.transfer_cli import export, import_
from raftstorage.ops.verify_cli import verify
from rich.console import Console

app = typer.Typer(
    help="RaftStorage: a replicated, fault-tolerant object database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(drill_app, name="drill")
app.add_typer(member_app, name="member")
app.command("transfer-leader")(transfer_leader)
app.command("import")(import_)
app.command("export")(export)
app.command("log")(log)
app.command("show")(show)
app.command("undo")(undo)
app.command("verify")(verify)
app.command("pack")(pack)

_DEFAULT = status_module.DEFAULT_ADDRESSES


@app.command()
@guard
def up(
    directory: Annotated[Path, typer.Option("--dir", help="Where the nodes keep their data; made if missing.")],
    nodes: Annotated[int, typer.Option(min=1, max=99, help="How many nodes.")] = 3,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65000, help="First node's port, the others' follow. New cluster: 7441."),
    ] = None,
) -> None:
    """Run a local cluster in the foreground, until Ctrl-C."""
    require_node("raftstorage up")
    console = Console()
    if port is None and not (directory / "cluster.json").exists():
        port = 7441
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    cluster = LocalCluster(nodes, directory, base_port=port)
    try:

        def on_ready(i: int) -> None:
            console.print(
                f"node {cluster.node_id(i)} is up at {cluster.address(i)}, process {cluster.pid(i)}, "
                f"metrics http://{cluster.metrics_address(i)}/metrics, log {cluster.log_path(i)}",
                soft_wrap=True,
            )

        cluster.start_all(on_ready)
        cluster.wait_ready()
        console.print(f'\n  ZODB.DB(ClientStorage("{cluster.addresses}"))\n', soft_wrap=True, highlight=False)
        _follow(cluster, console, stop)
        console.print("stopping")
    finally:
        cluster.close()


def _follow(cluster: LocalCluster, console: Console, stop: threading.Event) -> None:
    """Says who leads, each time that changes, and who died, until `stop`."""
    shown: int | None = -1
    alive = set(range(len(cluster)))
    while not stop.is_set():
        for i in sorted(alive):
            if not cluster.is_running(i):
                alive.discard(i)
                console.print(f"node {cluster.node_id(i)} has ended; see {cluster.log_path(i)}", soft_wrap=True)
        leader = cluster.leader()
        if leader != shown:
            shown = leader
            console.print("no leader" if leader is None else f"node {cluster.node_id(leader)} leads")
        stop.wait(0.5)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@guard
def serve(
    context: typer.Context,
    directory: Annotated[Path, typer.Option("--dir", help="Where the node keeps its data; made if missing.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind.")] = "127.0.0.1:7441",
    advertise: Annotated[str, typer.Option(help="HOST:PORT that others dial, when it is another one.")] = "",
    metrics: Annotated[str, typer.Option(help="HOST:PORT of the Prometheus page; else there is none.")] = "",
) -> None:
    """Run one node in the foreground: begin a database of one node, or go on with one that was there.

    Also with a directory that was embedded: in an application. With --join HOST:PORT it becomes another member of
    a running cluster, with --standby it waits until `member add` lets it in. Further options are the node's own,
    as --lease-ms; python -m raftstorage.node --help tells them, and the exit status.
    """
    from raftstorage.ops import serve as serve_module

    serve_module.become_node(directory, listen, advertise, metrics, context.args)


@app.command()
@guard
def status(
    addresses: Annotated[str, typer.Option(help="The nodes, host:port,host:port,...")] = _DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a node.")] = 2.0,
) -> None:
    """Show every node's state, what is wrong and what to do. Exit code 1 without a leader and its majority."""
    with status_module.StatusClient(status_module.split_addresses(addresses)) as client:
        statuses = client.ask(timeout)
    if as_json:
        findings = [asdict(finding) for finding in diagnose(statuses)]
        print_json(status_module.as_json(statuses) | {"findings": findings})
    else:
        console = Console()
        status_module.show(statuses, console)
        show_findings(statuses, console)
    if not status_module.has_quorum(statuses):
        raise typer.Exit(1)


@app.command()
@guard
def demo() -> None:
    """Start a cluster, run a ZODB application on it, kill its leader: is everything still there?"""
    from raftstorage.ops import demo as demo_module

    demo_module.run(Console(soft_wrap=True))


@app.command()
@guard
def bench(
    seconds: Annotated[float, typer.Option(min=0.2, help="Length of one measurement.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; both systems take turns in each.")] = 3,
    clients: Annotated[str, typer.Option(help="Numbers of client processes, each at most 8.")] = "1,4,8",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table into this file.")] = None,
) -> None:
    """Measure commits, cold loads and blobs, side by side with ZEO on this machine."""
    from raftstorage.ops import bench as bench_module

    progress = Console(stderr=True, soft_wrap=True)
    numbers = tuple(int(number) for number in clients.split(","))
    result = bench_module.run(seconds=seconds, rounds=rounds, say=progress.print, clients=numbers)
    if markdown is not None:
        bench_module.write_markdown(result, markdown)
    if as_json:
        print_json(result.as_json())
    else:
        bench_module.show(result, Console())


if __name__ == "__main__":
    app()
