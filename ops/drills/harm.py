"""What a soak does to a cluster: kills, packs, lost disks. Each is a `Hook`, done every so many seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from raftstorage.ops import packing
from raftstorage.ops.drills.crowd import PATIENCE, Writers
from raftstorage.ops.drills.report import longest_gap
from raftstorage.ops.errors import CommandError
from raftstorage.ops.local import LocalCluster
from raftstorage.ops.status import size
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc
from raftstorage.proto import storage_pb2 as storage_pb

_COMMITS_AFTER = 20  # acknowledged after each harm before the next
_POLL_SECONDS = 0.2
#: What is younger is never packed away, nor is the last tenth of a short run.
KEPT_SECONDS = 60.0
#: A lost disk is filled again, and a pack is done, within this time.
HEALED_SECONDS = 300.0


@dataclass
class Ground:
    """What a hook acts on. `begun`, `ends`: the run's, in seconds of the monotonic clock."""

    cluster: LocalCluster
    writers: Writers
    say: Callable[[str], None]
    begun: float
    ends: float
    #: When something was done to the cluster that may stop commits, and all that was done and how often.
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


class Harm(Protocol):
    def strike(self, ground: Ground) -> None:
        """Returns when the cluster serves again; CommandError when it does not."""

    def finish(self, ground: Ground) -> None:
        """Returns when nothing of it is under way any more. Called once, before the cluster is stopped."""


@dataclass
class Hook:
    """Something done to a running cluster every so many seconds."""

    every: float
    harm: Harm


class Killer:
    """SIGKILL, the leader and a follower in turn; the node comes back when commits flow."""

    def __init__(self) -> None:
        self._turn = 0

    def strike(self, ground: Ground) -> None:
        cluster, spared = ground.cluster, ground.left_alone
        leader = cluster.leader(timeout=PATIENCE)
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

    def finish(self, ground: Ground) -> None:
        """A kill is over when commits flow."""

    def _hand_over(self, ground: Ground, leader: int) -> int:
        """Who leads afterwards."""
        with grpc.insecure_channel(ground.cluster.address(leader)) as channel:
            stub = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
            try:
                stub.TransferLeader(pb.TransferLeaderRequest(), timeout=10)
            except grpc.RpcError:
                return leader  # nobody took over in time: a follower is killed this time
        ground.note("leadership handed over")
        return ground.cluster.leader(timeout=PATIENCE)


class Packer:
    """Packs all but the last minute, garbage too, while everything else goes on: kills hit packs."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstorage-soak-pack")
        self._begun = 0.0
        self._running: Future[storage_pb.PackState] | None = None

    def strike(self, ground: Ground) -> None:
        if self._running is not None and not self._running.done():
            if time.monotonic() - self._begun > HEALED_SECONDS:
                raise CommandError(f"a pack was not done in {HEALED_SECONDS:.0f} s")
            return
        self._take(ground)
        self._begun = time.monotonic()
        ground.struck["pack begun"] += 1
        kept = min(KEPT_SECONDS, (ground.ends - ground.begun) / 10)
        arguments = ground.cluster.addresses, time.time() - kept, True, PATIENCE, lambda state: None
        self._running = self._thread.submit(packing.pack, *arguments)

    def finish(self, ground: Ground) -> None:
        try:
            self._take(ground)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self, ground: Ground) -> None:
        """What the last pack brought. CommandError when it was not to be done."""
        if self._running is None:
            return
        try:
            state = self._running.result(HEALED_SECONDS)
        except TimeoutError:
            raise CommandError(f"a pack was not done in {HEALED_SECONDS:.0f} s") from None
        self._running = None
        if state.problem:
            raise CommandError(f"a pack did not collect garbage: {state.problem}")
        ground.struck["pack done"] += 1
        ground.say(
            f"packed: {state.removed_records:,} records and {state.removed_objects:,} objects, "
            f"{size(state.removed_bytes)}, are gone"
        )


class DiskTaker:
    """A follower loses its directory and comes back as a new member, which has to be sent a snapshot."""

    def __init__(self) -> None:
        self._turn = 0

    def strike(self, ground: Ground) -> None:
        cluster = ground.cluster
        leader = cluster.leader(timeout=PATIENCE)
        followers = [i for i in range(len(cluster)) if i not in (leader, ground.left_alone)]
        victim = followers[self._turn % len(followers)]
        self._turn += 1
        lost = ground.note("disk lost")
        was = cluster.node_id(victim)
        cluster.kill(victim)
        cluster.lose_disk(victim)
        ground.wait_commits(lost)
        cluster.start(victim)
        self._await_vote(cluster, victim)
        ground.wait_commits(time.monotonic())
        ground.say(
            f"node {was} lost its disk and is node {cluster.node_id(victim)} now: "
            f"a voter again after {time.monotonic() - lost:.1f} s"
        )

    def finish(self, ground: Ground) -> None:
        """A disk is filled again when the node votes."""

    def _await_vote(self, cluster: LocalCluster, i: int) -> None:
        deadline = time.monotonic() + HEALED_SECONDS
        role = "no member"
        while time.monotonic() < deadline:
            reply = cluster.status(cluster.leader(timeout=PATIENCE))
            found = [peer for peer in reply.peers if peer.node_id == cluster.node_id(i)]
            role = found[0].member_role if found else role
            if role == "voter" and not reply.joint:
                return
            time.sleep(_POLL_SECONDS)  # nodes have no event to tell an operator of a promotion
        raise CommandError(f"node {cluster.node_id(i)} is a {role} {HEALED_SECONDS:.0f} s after it lost its disk")


def hooks(kill_every: float, pack_every: float, lose_every: float) -> list[Hook]:
    """What is done to a cluster in a soak, each every so many seconds; 0: never."""
    wanted: list[Hook] = [
        Hook(kill_every, Killer()),
        Hook(pack_every, Packer()),
        Hook(lose_every, DiskTaker()),
    ]
    return [hook for hook in wanted if hook.every > 0]
