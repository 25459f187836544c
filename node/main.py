"""The node's process: options, signals, exit codes."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import typer.main
from raftstorage.node.ending import EXIT_DAMAGED, EXIT_DIRECTORY, EXIT_FATAL
from raftstorage.node.engine.api import EngineError, EngineWriteError
from raftstorage.node.identity import DirectoryError
from raftstorage.node.joining import JoinError
from raftstorage.node.node import Node
from raftstorage.node.options import MIB, NodeOptions, OptionError, parse_members, parse_versions
from raftstorage.node.service.logging import configure
from raftstorage.node.service.server import PortInUse
from raftstorage.node.snapshots.install import InstallError
from raftstorage.node.versions import Versions
from raftstorage.node.wal import WalError

log = logging.getLogger(__name__)

EXIT_OPTIONS = 2
EXIT_PORT = 4
EXIT_NOT_JOINED = 6

#: A thread back from a sync must take the interpreter lock again; beside a busy loop it would wait Python's whole
#: default interval of 5 ms for it, and every commit with it.
SWITCH_INTERVAL_SECONDS = 0.0002

#: Whatever is wrong with a command line; its class has moved between typer's releases, its place has not.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


async def _serve(options: NodeOptions, versions: Versions, ready: str) -> None:
    context = configure(options.node_id, options.log_format, options.log_level, sys.stderr)
    node = Node(options, versions=versions)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await node.start()
    # What is there now stays: to look through it for garbage again and again would hold the loop 30 ms each time.
    gc.collect()
    gc.freeze()
    context.node_id = node.identity.node_id
    context.source = lambda: (node.driver.term, node.driver.role.value)
    log.info("serves", extra={"address": node.address, "cluster_id": node.identity.cluster_id})
    told = {
        "event": "ready",
        "node_id": node.identity.node_id,
        "address": node.address,
        "metrics": node.metrics_address,
    }
    line = f'\n  ClientStorage("{options.advertised}")\n'
    sys.stdout.write((json.dumps(told) if ready == "json" else line) + "\n")
    sys.stdout.flush()
    await stop.wait()
    log.info("stops")
    await node.stop()
    log.info("stopped")


def _run(
    directory: Annotated[Path, typer.Option("--dir", help="Where it keeps its log and database.")],
    node_id: Annotated[
        int, typer.Option("--id", help="Founding a cluster: this node's id, never used again for another one.")
    ] = 0,
    member: Annotated[
        list[str] | None,
        typer.Option(help="Founding a cluster: ID=HOST:PORT of a member, once for each, this one included."),
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(help="Entering a cluster: HOST:PORT of a member; may be repeated. Needs an empty --dir."),
    ] = None,
    learner: Annotated[bool, typer.Option("--learner", help="With --join: never ask for a vote.")] = False,
    standby: Annotated[
        bool,
        typer.Option("--standby", help="With an empty --dir: wait until a cluster's operator adds this node."),
    ] = False,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="An empty --dir becomes a cluster of one, to which others can be added."),
    ] = False,
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind; else this node's member address.")] = "",
    advertise: Annotated[str, typer.Option(help="HOST:PORT that others dial; else the one it listens on.")] = "",
    cluster_id: Annotated[str, typer.Option(help="32 hexadecimal digits; else derived from the members.")] = "",
    metrics: Annotated[str, typer.Option(help="HOST:PORT of the Prometheus page; else there is none.")] = "",
    tick_ms: Annotated[int, typer.Option(help="Length of a tick in milliseconds; a heartbeat each.")] = 50,
    election_ticks: Annotated[
        int, typer.Option(help="Ticks of silence before an election, doubled at most.")
    ] = 10,
    max_record_bytes: Annotated[int, typer.Option(help="Largest record of an object.")] = 16 * MIB,
    max_transaction_bytes: Annotated[int, typer.Option(help="Largest transaction.")] = 64 * MIB,
    lease_ms: Annotated[int, typer.Option(help="How long a vote holds its objects.")] = 30_000,
    log_keep_mib: Annotated[
        int, typer.Option(help="So much of the log is kept for members that were away, in MiB.")
    ] = 256,
    log_keep_seconds: Annotated[int, typer.Option(help="Nothing older is kept.")] = 86_400,
    snapshot_mib_per_second: Annotated[int, typer.Option(help="How fast snapshots are sent at most.")] = 64,
    log_format: Annotated[str, typer.Option(help="json or text.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    disk_reserve_bytes: Annotated[
        int, typer.Option(help="With less room on the disk, no new writes; 0: 256 MiB or 2 %, a tenth at most.")
    ] = 0,
    join_seconds: Annotated[float, typer.Option(help="With --join: how long it asks before it gives up.")] = 60.0,
    rejoin: Annotated[
        bool,
        typer.Option(
            "--rejoin", help="An empty --dir whose place is taken or gone joins; a removed one is refused."
        ),
    ] = False,
    ask: Annotated[
        list[str] | None,
        typer.Option(help="With --rejoin: HOST:PORT of one more who may know of a cluster; may be repeated."),
    ] = None,
    max_blob_bytes: Annotated[int, typer.Option(help="Largest blob; 0: as large as there is room for.")] = 0,
    cache_mib: Annotated[int, typer.Option(help="Memory for what is read of the database, in MiB.")] = 64,
    ready: Annotated[str, typer.Option(help="What it prints when it serves: json or text.")] = "json",
    pretend_versions: Annotated[
        str, typer.Option(hidden=True, help="For tests: MIN:MAX:LEVEL, versions of software that this is not.")
    ] = "",
) -> None:
    """Runs one RaftStorage node until SIGTERM or SIGINT.

    Exit status: 0 stopped cleanly, 2 bad options, 3 damaged log or database (at start, or when it shows),
    4 address in use, 5 another node's, a lost or a locked directory, 6 no cluster let it in, 70 a write or sync
    failed.
    """
    options = NodeOptions(
        node_id,
        directory,
        parse_members(member or ()),
        listen,
        cluster_id,
        metrics,
        tick_ms,
        election_ticks,
        max_record_bytes,
        max_transaction_bytes,
        lease_ms,
        log_format,
        log_level,
        tuple(join or ()),
        learner,
        standby,
        alone,
        advertise,
        log_keep_mib * MIB,
        log_keep_seconds,
        snapshot_mib_per_second * MIB,
        disk_reserve_bytes,
        join_seconds,
        rejoin,
        max_blob_bytes,
        cache_mib * MIB,
        tuple(ask or ()),
    )
    if ready not in ("json", "text"):
        raise OptionError(f"--ready {ready!r} is not one of json, text")
    versions = parse_versions(pretend_versions)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    asyncio.run(_serve(options, versions, ready))


def main(arguments: Sequence[str]) -> int:
    """Runs a node; returns the process's exit status. What went wrong is one line on standard error."""
    application = typer.Typer(add_completion=False)
    application.command()(_run)
    command = typer.main.get_command(application)
    try:
        status = command.main(list(arguments), prog_name="python -m raftstorage.node", standalone_mode=False)
    except (_UsageError, OptionError) as error:
        return failed(EXIT_OPTIONS, getattr(error, "format_message", error.__str__)())
    except EngineWriteError as error:
        return failed(EXIT_FATAL, error)
    except (WalError, EngineError) as error:
        return failed(EXIT_DAMAGED, error)
    except PortInUse as error:
        return failed(EXIT_PORT, error)
    except (DirectoryError, InstallError) as error:
        return failed(EXIT_DIRECTORY, error)
    except JoinError as error:
        return failed(EXIT_NOT_JOINED, error)
    except OSError as error:
        return failed(EXIT_FATAL, error)
    return status if isinstance(status, int) else 0


def failed(status: int, problem: object) -> int:
    """Says in one line what is wrong; returns `status`."""
    sys.stderr.write(f"raftstorage node: {' '.join(str(problem).split())}\n")
    sys.stderr.flush()
    return status
