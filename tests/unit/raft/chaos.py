"""Random runs: loss, repetition, reordering, crashes that lose what was not written, restarts, transfers."""

from __future__ import annotations

import random

from raftstorage.node.raft.types import NotLeader, Role

from tests.unit.raft.raft_cluster import Cluster


class Chaos:
    """One random run over a cluster."""

    SIZES: tuple[int, ...] = (1, 2, 3, 3, 3, 4, 5, 5)

    def __init__(self, seed: str) -> None:
        self.rng = rng = random.Random(seed)
        size = rng.choice(self.SIZES)
        learners = (9,) if rng.random() < 0.2 else ()
        self.cluster = Cluster(
            range(1, size + 1),
            learners,
            random=lambda node: random.Random(f"{seed}/{node}"),
            election_ticks=rng.choice((3, 4, 6)),
            max_message_entries=rng.choice((1, 2, 64)),
            max_message_bytes=rng.choice((4, 64, 1024)),
            max_inflight_messages=rng.choice((1, 3, 16)),
            max_inflight_bytes=rng.choice((8, 1024)),
            max_apply_bytes=rng.choice((1, 100)),
        )
        self.loss = rng.choice((0.0, 0.02, 0.15))
        self.repeat = rng.choice((0.0, 0.05))
        self.reorder = rng.random() < 0.6
        self.slow_disk = rng.choice((0.2, 0.5, 0.9))
        self.crashes = rng.choice((0.0, 0.004, 0.04))
        self.coups = rng.choice((0.0, 0.0, 0.03))
        self.storms = rng.choice((0.0, 0.01, 0.03))
        self.blinks = rng.choice((0.0, 0.5, 1.0))
        self.ticks = rng.choice((0.1, 0.2, 0.4))
        self.requests = 0

    def run(self, steps: int) -> None:
        cluster, rng = self.cluster, self.rng
        for step in range(steps):
            node = rng.choice(list(cluster.nodes))
            it = cluster.nodes[node]
            if not it.up:
                if rng.random() < 0.1:
                    cluster.restart(node, rng.randint(0, len(it.applied)))
                continue
            chance = rng.random()
            if chance < self.ticks:
                cluster.tick(node, rng.choice((1, 1, 1, 4)))
            elif chance < self.ticks + 0.06:
                self.ask(node)
            if rng.random() < self.crashes:
                self.crash(node)
                continue
            if it.writes and rng.random() > self.slow_disk:
                cluster.write(node, rng.randint(1, len(it.writes)))
            for _ in range(rng.randint(0, 6)):
                self.deliver_one()
            if rng.random() < 0.02:
                self.partition()
            self.more(node)
            if rng.random() < self.coups:
                for leader in [other for other in cluster.nodes if cluster[other].role is Role.LEADER]:
                    self.crash(leader)
            if rng.random() < self.storms:
                self.storm()
            if step % 50 == 0:
                cluster.checks.logs()
        cluster.checks.logs()

    def more(self, node: int) -> None:
        """What else may happen on a node that runs."""

    def ask(self, node: int) -> None:
        cluster, rng = self.cluster, self.rng
        core = cluster[node]
        kind = rng.random()
        self.requests += 1
        if kind < 0.3:
            cluster.read(node, self.requests)
        elif core.role is Role.LEADER:
            if kind < 0.35:
                cluster.transfer(node, rng.choice(list(cluster.nodes)))
            else:
                try:
                    cluster.propose(node, *(b"%d.%d" % (self.requests, i) for i in range(rng.randint(1, 3))))
                except NotLeader:
                    assert core.transferring_to

    def deliver_one(self) -> None:
        cluster, rng = self.cluster, self.rng
        if not cluster.flying:
            return
        position = rng.randrange(len(cluster.flying)) if self.reorder else 0
        message = cluster.flying[position]
        if rng.random() >= self.repeat:
            del cluster.flying[position]
        if rng.random() >= self.loss and (message.from_node, message.to_node) not in cluster.cuts:
            cluster.step(message)
        if len(cluster.flying) > 200:
            del cluster.flying[rng.randrange(len(cluster.flying))]

    def partition(self) -> None:
        cluster, rng = self.cluster, self.rng
        if cluster.cuts and rng.random() < 0.7:
            cluster.heal()
        else:
            a, b = rng.choices(list(cluster.nodes), k=2)
            cluster.cut(a, b, both=rng.random() < 0.7)
            if rng.random() < 0.5:
                cluster.isolate(rng.choice(list(cluster.nodes)))

    def crash(self, node: int) -> None:
        """Often it is back before anybody noticed."""
        self.cluster.crash(node)
        if self.rng.random() < self.blinks:
            self.cluster.restart(node, self.rng.randint(0, len(self.cluster.nodes[node].applied)))

    def storm(self) -> None:
        """Everybody loses patience at once: several candidates in one term."""
        for node, it in self.cluster.nodes.items():
            if it.up and it.core.role is not Role.LEADER:
                self.cluster.tick(node, 2 * it.config.election_ticks)

    def recover(self) -> None:
        """When the faults end, a leader comes, commits what is proposed, and every read is answered or lost."""
        cluster = self.cluster
        cluster.heal()
        for node, it in cluster.nodes.items():
            if not it.up:
                cluster.restart(node)
        for turn in range(400):
            self.turn()
            if turn >= 40 and self.calm_leader():
                break
        leader = self.calm_leader()
        assert leader, "no leader after the faults ended"
        term = cluster[leader].term
        cluster.propose(leader, b"last")
        for _ in range(40):
            self.turn()
        assert (self.calm_leader(), cluster[leader].term) == (leader, term), (
            "somebody disturbs a leader that lives"
        )
        members = cluster[leader].membership.ids
        for node in members:
            assert cluster.nodes[node].applied == cluster.committed
        assert cluster.committed[-1].data == b"last"
        cluster.drop()
        cluster.tick(leader)
        assert {message.to_node for message in cluster.flying} <= members, "messages to a removed node"

    def turn(self) -> None:
        """All is delivered and written, snapshots are fetched, and a tick goes by."""
        cluster = self.cluster
        cluster.settle()
        for node in cluster.nodes:
            if cluster.install(node):
                cluster.settle()
        for node in cluster.nodes:
            cluster.tick(node)
        cluster.settle()

    def calm_leader(self) -> int:
        """The only leader, if it has nothing to do; else 0."""
        leaders = [node for node, it in self.cluster.nodes.items() if it.leads]
        if len(leaders) != 1:
            return 0
        core = self.cluster[leaders[0]]
        busy = core.transferring_to or core.membership.is_joint or core.membership_index > core.commit_index
        return 0 if busy or not core.membership.has_vote(core.node_id) else core.node_id


def run(seed: str, steps: int = 2_500) -> Chaos:
    chaos = Chaos(seed)
    chaos.run(steps)
    chaos.recover()
    return chaos
