"""`raftstorage bench`: three nodes side by side with ZEO over FileStorage, on this machine, in one run.

The two take turns in every round (A B, A B, ...), so that what else the machine does hits both. The disk's synced
append is measured in each round too, for nobody can commit faster than that. Figures are ratios first.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raftstorage.ops.bench_client import CLIENTS_MAX, Job, Target, measure, populate
from raftstorage.ops.child import PARENT_VARIABLE
from raftstorage.ops.drills.report import percentile
from raftstorage.ops.errors import CommandError, require_node, require_zodb
from raftstorage.ops.local import LocalCluster
from raftstorage.ops.ports import free_ports
from rich.console import Console
from rich.table import Table

_SYNCS = 200
_SYNC_BYTES = 4096
_BEGIN = "<!-- raftstorage bench: begin -->"
_END = "<!-- raftstorage bench: end -->"
CLIENTS = (1, 4, 8)
#: What is measured, with any number of clients.
JOBS = (
    ("commit 1 object", Job(1, 0, 0.0)),
    ("commit 100 objects", Job(100, 0, 0.0)),
    ("cold load", Job(0, 0, 0.0)),
    ("blob MB written", Job(0, 0, 0.0, "write")),
    ("blob MB read", Job(0, 0, 0.0, "read")),
)


@dataclass
class Row:
    """One job's rates a second, a value for each round."""

    name: str
    clients: int
    raftstorage: list[float] = field(default_factory=list)
    zeo: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios, RaftStorage to ZEO; above 1 is faster."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.raftstorage, self.zeo, strict=True))


@dataclass
class Result:
    seconds: float
    rounds: int
    rows: list[Row]
    syncs: list[float]  # seconds of each synced append
    load: float = 0.0  # the machine's load average before anything was started

    def facts(self) -> dict[str, str]:
        """What one must know to read the figures."""
        return {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
            "load average before": f"{self.load:.1f}",
            "python": platform.python_version(),
            "raftstorage": version("raftstorage"),
            "ZODB": version("ZODB"),
            "ZEO": version("ZEO"),
            "rounds": f"{self.rounds} of {self.seconds:g} s",
            "fdatasync of a 4 KiB append": (
                f"p50 {percentile(self.syncs, 50) * 1000:.2f} ms, p99 {percentile(self.syncs, 99) * 1000:.2f} ms"
            ),
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "facts": self.facts(),
            "fdatasync_ms": {
                "p50": round(percentile(self.syncs, 50) * 1000, 3),
                "p99": round(percentile(self.syncs, 99) * 1000, 3),
            },
            "rows": [
                {
                    "name": row.name,
                    "clients": row.clients,
                    "raftstorage_per_second": [round(rate, 1) for rate in row.raftstorage],
                    "zeo_per_second": [round(rate, 1) for rate in row.zeo],
                    "ratio": round(row.ratio, 3),
                }
                for row in self.rows
            ],
        }


def run(
    *,
    seconds: float,
    rounds: int,
    say: Callable[[str], None],
    clients: tuple[int, ...] = CLIENTS,
    directory: Path | None = None,
) -> Result:
    """Measures everything in `directory` (default: a temporary one). CommandError when a system fails."""
    require_zodb("raftstorage bench")
    require_node("raftstorage bench")
    try:
        import ZEO  # noqa: F401
    except ImportError:
        raise CommandError("raftstorage bench compares with ZEO: pip install ZEO", 2) from None
    if not clients or not all(1 <= number <= CLIENTS_MAX for number in clients):
        raise CommandError(f"a bench has 1 to {CLIENTS_MAX} clients", 2)
    jobs = [(name, replace(job, clients=n, seconds=seconds)) for name, job in JOBS for n in clients]
    result = Result(seconds, rounds, [Row(name, job.clients) for name, job in jobs], [], os.getloadavg()[0])
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raftstorage-bench-", dir=directory)))
        say("starting three storage nodes and a ZEO server")
        cluster = stack.enter_context(LocalCluster(3, base / "cluster"))
        ours = Target("raftstorage", cluster.addresses, base)
        theirs = Target("zeo", stack.enter_context(_zeo_server(base)), base)
        for target in (ours, theirs):
            populate(target)
        for number in range(rounds):
            result.syncs += sync_latencies(base)
            for row, (_, job) in zip(result.rows, jobs, strict=True):
                row.raftstorage.append(measure(ours, job))
                row.zeo.append(measure(theirs, job))
                say(
                    f"round {number + 1} of {rounds}: {row.name}, {row.clients} clients: "
                    f"{row.raftstorage[-1]:.0f}/s, ZEO {row.zeo[-1]:.0f}/s"
                )
    return result


def sync_latencies(directory: Path, count: int = _SYNCS) -> list[float]:
    """Seconds of `count` appends of 4 KiB, each with its fdatasync, to a new file in `directory`."""
    latencies = []
    block = os.urandom(_SYNC_BYTES)
    path = directory / "sync-probe"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for _ in range(count):
            begun = time.perf_counter()
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            latencies.append(time.perf_counter() - begun)
    finally:
        os.close(descriptor)
        path.unlink()
    return latencies


_ZEO = """\
<zeo>
  address {address}
  pid-filename {directory}/pid
</zeo>
<filestorage 1>
  path {directory}/Data.fs
  blob-dir {directory}/blobs
</filestorage>
"""


@contextlib.contextmanager
def _zeo_server(base: Path) -> Iterator[str]:
    """ZEO over a FileStorage with blobs in `base`; its address."""
    directory = base / "zeo"
    directory.mkdir()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    configuration = directory / "zeo.conf"
    configuration.write_text(_ZEO.format(address=address, directory=directory))
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "raftstorage.ops.child",
                "ZEO.runzeo",
                *("-C", str(configuration)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,
        )
    try:
        _wait_listening(address, process)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_listening(address: str, process: subprocess.Popen[bytes], timeout: float = 30.0) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), 1.0).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"the ZEO server did not come up: {error}") from error
            time.sleep(0.05)  # it has no way to say that it listens


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    ours, theirs = statistics.median(row.raftstorage), statistics.median(row.zeo)
    return row.name, str(row.clients), f"{ours:,.0f}", f"{theirs:,.0f}", f"{row.ratio:.2f}"


_HEADINGS = ("a second", "clients", "RaftStorage, 3 nodes", "ZEO, FileStorage", "ratio")


def show(result: Result, console: Console) -> None:
    """Prints the table for a person."""
    table = Table(title="RaftStorage and ZEO on this machine (medians)")
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in result.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for name, value in result.facts().items():
        console.print(f"{name}: {value}", highlight=False)


def as_markdown(result: Result) -> str:
    """The table and its facts, between the marks that `write_markdown` looks for."""
    lines = [_BEGIN, "", "| " + " | ".join(_HEADINGS) + " |", "|---|--:|--:|--:|--:|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in result.rows]
    lines += ["", "; ".join(f"{name}: {value}" for name, value in result.facts().items()) + ".", "", _END]
    return "\n".join(lines)


def write_markdown(result: Result, path: Path) -> None:
    """Puts the table into the file at `path`: in place of the one that is there, or at its end."""
    text = path.read_text() if path.exists() else "# Performance\n\n"
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        before, after = text.rstrip("\n") + "\n\n", "\n"
    path.write_text(before + as_markdown(result) + after)
