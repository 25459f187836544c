"""Random runs in which nodes come, go and change their roles, logs are cut, and snapshots fill the gaps."""

from __future__ import annotations

from collections import Counter

from raftstorage.node.raft.membership import Change, Member, MemberRole, MembershipError
from raftstorage.node.raft.types import NotLeader

from tests.unit.raft.chaos import Chaos
from tests.unit.raft.raft_node import Snapshot

MOST_NODES = 9


class ChangingChaos(Chaos):
    SIZES = (1, 2, 3, 3, 4)

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        rng = self.rng
        self.changes = rng.choice((0.02, 0.08, 0.2))
        self.compactions = rng.choice((0.0, 0.02, 0.1))
        self.downloads: dict[int, Snapshot] = {}
        self.did: Counter[str] = Counter()

    def more(self, node: int) -> None:
        cluster, rng = self.cluster, self.rng
        it = cluster.nodes[node]
        if it.leads and rng.random() < self.changes:
            self.change(node)
        if rng.random() < self.compactions:
            cluster.compact(node, rng.randint(0, len(it.applied)))
            self.did["compacted"] += 1
        if it.fetch is not None and rng.random() < 0.3:
            snapshot = cluster.download(node)
            if snapshot is not None:
                self.downloads[node] = snapshot
        if node in self.downloads and rng.random() < 0.2:
            if cluster.install(node, self.downloads[node]):
                self.did["installed"] += 1
            else:
                self.did["stale"] += 1
            if rng.random() < 0.5:  # else once more, when it is old
                del self.downloads[node]

    def change(self, node: int) -> None:
        membership = self.cluster[node].membership
        change = self.draw(node)
        try:
            self.cluster.change(node, change)
        except MembershipError as refusal:
            self.did[f"refused: {str(refusal)[:9]}"] += 1
            return
        except NotLeader:
            return
        self.did["joint" if self.cluster[node].membership.is_joint else "simple"] += 1
        for member in change.add:
            if member.node_id not in self.cluster.nodes:
                self.cluster.join(member.node_id)
        assert self.cluster[node].membership != membership

    def draw(self, node: int) -> Change:
        """One or two things at once; what makes no sense is to be refused."""
        rng, membership = self.rng, self.cluster[node].membership
        ids = sorted(membership.ids)
        add: list[Member] = []
        moves: dict[str, set[int]] = {"promote": set(), "demote": set(), "remove": set()}
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            what = rng.random()
            if what < 0.3 and len(self.cluster.nodes) < MOST_NODES:
                role = rng.choice((MemberRole.LEARNER, MemberRole.LEARNER, MemberRole.VOTER))
                add.append(Member(membership.highest_id + 1 + len(add), role))
            elif what < 0.6 and membership.learners:
                moves["promote"].add(rng.choice(sorted(membership.learners)))
            elif what < 0.7:
                moves["demote"].add(rng.choice(ids))
            elif len(ids) > 2 or rng.random() < 0.3:
                moves["remove"].add(rng.choice(ids))
        promote, demote, remove = map(frozenset, moves.values())
        return Change(tuple(add), promote, demote, remove)


def run(seed: str, steps: int = 2_500) -> ChangingChaos:
    chaos = ChangingChaos(seed)
    chaos.run(steps)
    chaos.recover()
    return chaos
