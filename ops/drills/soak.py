"""`raftstorage drill soak`: a cluster under steady load and steady harm, watched for loss and for drift.

Real node processes, real writers and readers. What is done to the cluster is a list of `Hook`s. In the second half
of the run one node, the last, is left alone, so that one process lives long enough to show a leak. The nodes keep
a short log, so that checkpoints are made all the time and whoever was away for long is sent a snapshot, and a
small cache, so that it is full soon, and what grows then is a leak.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from raftstorage.ops.drills.crowd import PATIENCE, Readers, Writers
from raftstorage.ops.drills.harm import Ground, Hook
from raftstorage.ops.drills.kill_leader import prepare, read_marks
from raftstorage.ops.drills.report import analyse
from raftstorage.ops.drills.samples import Sampler
from raftstorage.ops.drills.soak_report import SoakReport, judge_all, windows
from raftstorage.ops.errors import CommandError, require_node, require_zodb
from raftstorage.ops.local import LocalCluster

_LOG_KEEP_MIB = 16
_CACHE_MIB = 16
_WINDOW_SECONDS = 10.0
_WINDOWS_AT_LEAST = 20
#: Nothing is begun so shortly before the end.
_MARGIN_SECONDS = 3.0
_LOOK_SECONDS = 0.5


def run(
    *,
    minutes: float,
    nodes: int,
    writers: int,
    readers: int,
    harm: Sequence[Hook],
    say: Callable[[str], None],
    directory: Path | None = None,
    wait_timeout: float = 30.0,
) -> tuple[SoakReport, list[float]]:
    """The report, and when something was done to the cluster. CommandError when it does not recover from harm."""
    require_zodb("raftstorage drill")
    require_node("raftstorage drill")
    if nodes < 3:
        raise CommandError("a cluster that shall survive its leader has at least 3 nodes", 2)
    with ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(nodes, directory, log_keep_mib=_LOG_KEEP_MIB, cache_mib=_CACHE_MIB)
        )
        addresses = cluster.addresses
        prepare(addresses, writers, wait_timeout)
        crowd = stack.enter_context(Writers(writers, addresses, wait_timeout, cluster.directory))
        audience = stack.enter_context(Readers(readers, addresses, wait_timeout, cluster.directory))
        crowd.wait_ready()
        audience.wait_ready()
        say(f"{nodes} nodes, {writers} writers and {readers} readers run for {minutes:g} minutes")
        pids = {f"writer {number}": pid for number, pid in enumerate(crowd.pids())}
        pids |= {f"reader {number}": pid for number, pid in enumerate(audience.pids())}
        begun = time.monotonic()
        ground = Ground(cluster, crowd, say, begun, begun + minutes * 60)
        with Sampler(cluster, pids, lambda: len(crowd.acks)) as sampler:
            ended = _go_on(ground, sampler, [crowd, audience], harm)
        for hook in harm:
            hook.harm.finish(ground)
        crowd.stop()
        audience.stop()
        if not crowd.acks:
            raise CommandError("no commit was acknowledged")
        say(f"{len(crowd.acks):,} commits acknowledged; reading all back")
        cluster.leader(timeout=PATIENCE)
        committed = read_marks(addresses, wait_timeout)
    end = max(ack.acknowledged for ack in crowd.acks)
    commits = analyse(
        crowd.acks,
        ground.times,
        committed,
        end=end,
        seconds=end - begun,
        writers=writers,
        retries=crowd.retries,
    )
    window = max(0.5, min(_WINDOW_SECONDS, minutes * 60 / _WINDOWS_AT_LEAST))
    series = [*sampler.series.values(), *windows(crowd.acks, window)]
    judged = judge_all(series)
    report = SoakReport(
        commits,
        nodes,
        audience.reads,
        audience.retries,
        dict(ground.struck),
        tuple(audience.wrong),
        tuple(ended),
        judged,
    )
    return report, ground.times


def _go_on(ground: Ground, sampler: Sampler, crowds: Sequence[Writers], harm: Sequence[Hook]) -> list[str]:
    """Until the end, or until a node ends by itself: which did."""
    due = [ground.begun + hook.every for hook in harm]
    while (left := ground.ends - time.monotonic()) > 0:
        for crowd in crowds:
            crowd.check_alive()
        if sampler.error is not None:
            raise CommandError(f"the sampling ended: {sampler.error!r}") from sampler.error
        ended = [i for i in range(len(ground.cluster)) if not ground.cluster.is_running(i)]
        if ended:
            return [_end_of(ground.cluster, i) for i in ended]
        now = time.monotonic()
        if harm and min(due) <= now and left > _MARGIN_SECONDS:
            number = due.index(min(due))  # who waits longest: where all take long, each has its turn
            harm[number].harm.strike(ground)
            due[number] = max(due[number] + harm[number].every, now)
        else:
            time.sleep(min(left, _LOOK_SECONDS))
    return []


def _end_of(cluster: LocalCluster, i: int) -> str:
    code = cluster.wait_exit(i)
    last = cluster.log_path(i).read_text(errors="replace").splitlines()[-1:]
    return f"node {cluster.node_id(i)} ended by itself with exit code {code}: {''.join(last)}"
