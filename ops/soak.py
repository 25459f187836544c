"""`raftstorage drill soak`: a cluster under steady load and steady harm, watched for loss and for drift.

Real node processes, real writers and readers. What is done to the cluster is a list of `Hook`s. In the second half
of the run one node, the last, is left alone, so that one process lives long enough to show a leak.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from raftstorage.ops.drill import Writers, prepare, read_marks
from raftstorage.ops.drill_report import analyse, longest_gap
from raftstorage.ops.errors import CommandError, require_zodb
from raftstorage.ops.local import LocalCluster
from raftstorage.ops.soak_report import SoakReport, judge_all, windows
from raftstorage.ops.soak_samples import Sampler
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc

_PATIENCE = 60.0
_COMMITS_AFTER = 20  # acknowledged after each harm before the next
_WINDOW_SECONDS = 10.0
_WINDOWS_AT_LEAST = 20
#: Nothing is begun so shortly before the end.
_MARGIN_SECONDS = 3.0
_LOOK_SECONDS = 0.5


class Readers(Writers):
    """Reader processes and what they have seen."""

    role = "reader"
    module = "raftstorage.ops.drill_reader"

    def __init__(self, count: int, addresses: str, wait_timeout: float, logs: Path) -> None:
        self.reads = 0
        self.wrong: list[str] = []
        super().__init__(count, addresses, wait_timeout, logs)

    def heard(self, number: int, event: dict[str, Any]) -> None:
        if event["event"] == "wrong":
            self.wrong.append(f"reader {number}: {event['what']}")
        else:
            self.reads += event["count"]


@dataclass
class Ground:
    """What a hook acts on. `begun`, `ends`: the run's, in seconds of the monotonic clock."""

    cluster: LocalCluster
    writers: Writers
    say: Callable[[str], None]
    begun: float
    ends: float
    #: When something was done to the cluster, and what and how often.
    times: list[float] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)

    @property
    def left_alone(self) -> int | None:
        """The node that nobody is to restart any more, by index."""
        return len(self.cluster) - 1 if time.monotonic() > (self.begun + self.ends) / 2 else None

    def note(self, what: str) -> float:
        """Something is being done now; returns when that is."""
        self.struck[what] += 1
        self.times.append(time.monotonic())
        return self.times[-1]

    def wait_commits(self, since: float) -> None:
        """Returns when commits flow again that were begun after `since`."""
        self.writers.wait_commits(since, _COMMITS_AFTER)


@dataclass
class Hook:
    """Something done to a running cluster every so many seconds. `strike` returns when the cluster is well again;
    CommandError when it does not become so."""

    every: float
    strike: Callable[[Ground], None]


class Killer:
    """SIGKILL, the leader and a follower in turn; the node comes back when commits flow."""

    def __init__(self) -> None:
        self._turn = 0

    def strike(self, ground: Ground) -> None:
        cluster, spared = ground.cluster, ground.left_alone
        leader = cluster.leader(timeout=_PATIENCE)
        self._turn += 1
        wants_leader = self._turn % 2 == 1
        if wants_leader and leader == spared:
            leader = self._hand_over(ground, leader)
        followers = [i for i in range(len(cluster)) if i not in (leader, spared)]
        victim = leader if wants_leader and leader != spared else followers[self._turn // 2 % len(followers)]
        acks = ground.writers.acks
        before = max(0, len(acks) - 1)
        killed = ground.note("leader killed" if victim == leader else "follower killed")
        cluster.kill(victim)
        ground.wait_commits(killed)
        times = sorted(ack.acknowledged for ack in acks[before:])
        gap = longest_gap(times, killed, times[-1])
        cluster.start(victim)
        ground.wait_commits(time.monotonic())
        what = "the leader" if victim == leader else "a follower"
        ground.say(f"node {cluster.node_id(victim)}, {what}, was killed: no commit for {gap:.2f} s")

    def _hand_over(self, ground: Ground, leader: int) -> int:
        """Who leads afterwards."""
        with grpc.insecure_channel(ground.cluster.address(leader)) as channel:
            stub = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
            try:
                stub.TransferLeader(pb.TransferLeaderRequest(), timeout=10)
            except grpc.RpcError:
                return leader  # nobody took over in time: a follower is killed this time
        ground.note("leadership handed over")
        return ground.cluster.leader(timeout=_PATIENCE)


def hooks(kill_every: float) -> list[Hook]:
    """What is done to a cluster in a soak. Snapshots and packs join here."""
    return [Hook(kill_every, Killer().strike)] if kill_every > 0 else []


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
    if nodes < 3:
        raise CommandError("a cluster that shall survive its leader has at least 3 nodes", 2)
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(nodes, directory))
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
        crowd.stop()
        audience.stop()
        if not crowd.acks:
            raise CommandError("no commit was acknowledged")
        say(f"{len(crowd.acks):,} commits acknowledged; reading all back")
        cluster.leader(timeout=_PATIENCE)
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
        for number, hook in enumerate(harm):
            if due[number] <= time.monotonic() and left > _MARGIN_SECONDS:
                hook.strike(ground)
                due[number] = max(due[number] + hook.every, time.monotonic())
                break
        else:
            time.sleep(min(left, _LOOK_SECONDS))
    return []


def _end_of(cluster: LocalCluster, i: int) -> str:
    code = cluster.wait_exit(i)
    last = cluster.log_path(i).read_text(errors="replace").splitlines()[-1:]
    return f"node {cluster.node_id(i)} ended by itself with exit code {code}: {''.join(last)}"
