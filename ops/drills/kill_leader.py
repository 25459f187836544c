"""`raftstorage drill kill-leader`: what a cluster does to its clients when its leader is killed, again and again.

Real node processes, real writer processes, SIGKILL. Nothing is reported that was not compared with the database
in the end: every transaction is read back.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raftstorage.ops.drills.crowd import PATIENCE, Writers
from raftstorage.ops.drills.report import Report, analyse, longest_gap, percentile
from raftstorage.ops.drills.writer import MARK
from raftstorage.ops.errors import CommandError, require_node, require_zodb
from raftstorage.ops.local import LocalCluster
from rich.console import Console
from rich.table import Table

_UID = re.compile(re.escape(MARK.encode()) + b"([0-9a-f]{32})")
_COMMITS_BETWEEN = 20  # acknowledged under a new leader before it is killed in turn


def kill_leader(
    *,
    kills: int,
    writers: int,
    nodes: int,
    seconds_between: float,
    say: Callable[[str], None],
    directory: Path | None = None,
    wait_timeout: float = 30.0,
    options: Mapping[str, str | int | float] | None = None,
) -> Report:
    """Runs the drill on a new local cluster and reports.

    The leader is killed `kills` times, each time only after commits were acknowledged under it, and
    `seconds_between` seconds after the kill before at the earliest. The killed node comes back when the next
    leader stands and commits flow. `options` go to the nodes. CommandError when the cluster does not recover.
    """
    require_zodb("raftstorage drill")
    require_node("raftstorage drill")
    if nodes < 3:
        raise CommandError("a cluster that shall survive its leader has at least 3 nodes", 2)
    with LocalCluster(nodes, directory, options=options) as cluster:
        say(f"{nodes} nodes at {cluster.addresses}, node {cluster.leader(timeout=30) + 1} leads")
        prepare(cluster.addresses, writers, wait_timeout)
        with Writers(writers, cluster.addresses, wait_timeout, cluster.directory) as crowd:
            crowd.wait_ready()
            began = time.monotonic()
            crowd.wait_commits(began, max(_COMMITS_BETWEEN, writers))
            times = [_kill_once(cluster, crowd, number, seconds_between, say) for number in range(kills)]
            crowd.stop()
            end = max(ack.acknowledged for ack in crowd.acks)
        say(f"{len(crowd.acks):,} commits acknowledged; reading all back")
        cluster.leader(timeout=PATIENCE)
        committed = read_marks(cluster.addresses, wait_timeout)
    return analyse(
        crowd.acks,
        times,
        committed,
        end=end,
        seconds=end - began,
        writers=writers,
        retries=crowd.retries,
    )


def _kill_once(
    cluster: LocalCluster, crowd: Writers, number: int, seconds_between: float, say: Callable[[str], None]
) -> float:
    """One kill and the recovery from it; when (monotonic seconds) the leader was killed."""
    victim = cluster.leader(timeout=PATIENCE)
    before = max(0, len(crowd.acks) - 1)
    killed = time.monotonic()
    cluster.kill(victim)
    crowd.wait_commits(killed, _COMMITS_BETWEEN)
    successor = cluster.leader(timeout=PATIENCE)
    times = sorted(ack.acknowledged for ack in crowd.acks[before:])
    gap = longest_gap(times, killed, times[-1])
    cluster.start(victim)
    # Commits under a full cluster, before the next leader falls; a pause longer than that only if asked for.
    crowd.wait_commits(time.monotonic(), _COMMITS_BETWEEN)
    rest = killed + seconds_between - time.monotonic()
    if rest > 0:
        time.sleep(rest)
    say(f"kill {number + 1}: node {victim + 1} killed, node {successor + 1} leads; no commit for {gap:.2f} s")
    return killed


def prepare(addresses: str, writers: int, wait_timeout: float) -> None:
    """Makes the writers' places in the database, so that they never meet in one object."""
    import ZODB
    from raftstorage.client import ClientStorage
    from raftstorage.ops.drills.objects import Slot

    storage = ClientStorage(addresses, wait_timeout=wait_timeout)
    with contextlib.closing(ZODB.DB(storage)) as db, db.transaction() as connection:
        for number in range(writers):
            connection.root()[f"drill-{number}"] = Slot()


def read_marks(addresses: str, wait_timeout: float) -> dict[str, list[str]]:
    """Unique id -> tids (hexadecimal) of all transactions that store it, from the database itself."""
    from raftstorage.client import ClientStorage

    with contextlib.closing(
        ClientStorage(addresses, read_only=True, wait_timeout=wait_timeout, consistency="linearizable")
    ) as storage:
        storage.sync()
        return marks_in(storage.iterator())


def marks_in(transactions: Iterable[Any]) -> dict[str, list[str]]:
    """Unique id -> tids (hexadecimal) of all `transactions` (of a storage's iterator) that store it."""
    found: dict[str, list[str]] = {}
    for transaction in transactions:
        for uid in set(_uids(transaction)):
            found.setdefault(uid, []).append(transaction.tid.hex())
    return found


def _uids(transaction: Any) -> Iterator[str]:
    for record in transaction:
        if record.data is not None:
            for match in _UID.finditer(record.data):
                yield match[1].decode()


def show(report: Report, console: Console) -> None:
    """Prints the report for a person."""
    table = Table(title="drill kill-leader", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    client, service = [g.client for g in report.gaps], [g.service for g in report.gaps]

    def count(number: int) -> str:
        return f"[bold {'red' if number else 'green'}]{number}[/]"

    table.add_row("leader killed (SIGKILL)", f"{report.kills} times")
    table.add_row("writers", str(report.writers))
    table.add_row("commits acknowledged", f"{report.acknowledged:,} in {report.seconds:.1f} s")
    table.add_row("commits lost", count(len(report.lost)))
    table.add_row("commits doubled", count(len(report.doubled)))
    table.add_row("commits at another tid than acknowledged", count(len(report.misplaced)))
    table.add_row("commits retried by writers", str(report.retries))
    table.add_row("write gap of the slowest client, p50", f"{percentile(client, 50):.2f} s")
    table.add_row("write gap of the slowest client, max", f"{max(client, default=0.0):.2f} s")
    table.add_row("no commit by anyone, p50", f"{percentile(service, 50):.2f} s")
    table.add_row("no commit by anyone, max", f"{max(service, default=0.0):.2f} s")
    console.print(table)
    for title, uids in (("lost", report.lost), ("doubled", report.doubled), ("at another tid", report.misplaced)):
        for uid in uids[:10]:
            console.print(f"[red]{title}: {uid}[/]")
