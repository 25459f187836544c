"""Mistakes with memberships and snapshots, each as a patch to the core.

`CHANGE_MUTANTS` are found by random runs; those that are not have a story in `change_stories`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from unittest import mock

from raftstorage.node.raft import changing, leading, snapshots
from raftstorage.node.raft.configurations import Configurations
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.log import RaftLog
from raftstorage.node.raft.membership import Change, Membership, changed, left_joint
from raftstorage.node.raft.outbox import Outbox
from raftstorage.node.raft.quorum import committed_index
from raftstorage.node.raft.types import Entry, Role, SnapshotBase

from tests.unit.raft.mutants import Mutant


def together(*patches: AbstractContextManager[object]) -> AbstractContextManager[object]:
    stack = ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack


# ---- joint consensus -----------------------------------------------------------------------------------------


def changes_voters_in_one_step() -> AbstractContextManager[object]:
    def at_once(membership: Membership, change: Change) -> Membership:
        return left_joint(changed(membership, change))

    return mock.patch.object(changing, "changed", at_once)


def counts_one_majority_while_joint() -> AbstractContextManager[object]:
    return mock.patch.object(
        leading, "committed_index", lambda configurations, match: committed_index(configurations[:1], match)
    )


def elects_with_one_majority_while_joint() -> AbstractContextManager[object]:
    return mock.patch("raftstorage.node.raft.election.has_quorum", _has_first_quorum)


def _has_first_quorum(configurations: tuple[frozenset[int], ...], agreed: set[int]) -> bool:
    return 2 * len(configurations[0] & agreed) > len(configurations[0])


def leaves_joint_before_it_is_committed() -> AbstractContextManager[object]:
    def propose(core: RaftCore, change: Change) -> int:
        index = original(core, change)
        if core.membership.is_joint:
            changing._append(core, left_joint(core.membership))
        return index

    original = changing.propose
    return mock.patch.object(changing, "propose", propose)


def begins_a_second_change() -> AbstractContextManager[object]:
    """Also before anything of its own is committed, and out of a joint configuration."""

    def propose(core: RaftCore, change: Change) -> int:
        with (
            mock.patch.object(RaftCore, "has_own_term_commit", True),
            mock.patch.object(RaftCore, "membership_index", 0),
        ):
            joint = core.membership
            if not joint.is_joint:
                return original(core, change)
            with mock.patch.object(RaftCore, "membership", left_joint(joint)):
                return original(core, change)

    original = changing.propose
    return mock.patch.object(changing, "propose", propose)


# ---- when it is in effect ------------------------------------------------------------------------------------


def takes_effect_when_committed() -> AbstractContextManager[object]:
    """On followers with an odd id."""

    def append(self: RaftCore, entries: Sequence[Entry]) -> None:
        if self.role is Role.LEADER or self.node_id % 2 == 0:
            original_append(self, entries)
        else:
            self.log.append(entries)

    def commit_to(self: RaftCore, index: int) -> None:
        low = self.commit_index + 1
        original_commit_to(self, index)
        late = self.log.entries(low, index + 1, 1 << 40, 1 << 40)
        if self.configurations.append(entry for entry in late if entry.index > self.membership_index):
            self._follow_membership()

    original_append, original_commit_to = RaftCore.append, RaftCore.commit_to
    return together(
        mock.patch.object(RaftCore, "append", append), mock.patch.object(RaftCore, "commit_to", commit_to)
    )


def keeps_a_membership_that_is_cut_off() -> AbstractContextManager[object]:
    return mock.patch.object(Configurations, "truncate", lambda self, index: False)


def forgets_the_membership_behind_applied() -> AbstractContextManager[object]:
    def init(self: Configurations, membership: Membership, applied: int, log: RaftLog, page_bytes: int) -> None:
        self._known = [(applied, membership)]

    return mock.patch.object(Configurations, "__init__", init)


# ---- who counts ----------------------------------------------------------------------------------------------


def counts_learners() -> AbstractContextManager[object]:
    """As voters, where entries are counted."""
    return _counting(lambda core: (core.membership.voters | core.membership.learners, *core.voters[1:]))


def counts_a_leader_that_is_no_voter() -> AbstractContextManager[object]:
    return _counting(lambda core: tuple(voters | {core.node_id} for voters in core.voters))


def _counting(configurations: Callable[[RaftCore], tuple[frozenset[int], ...]]) -> AbstractContextManager[object]:
    def advance_commit(core: RaftCore) -> None:
        def match(node: int) -> int:
            return core.log.stable if node == core.node_id else core.peers[node].match

        index = committed_index(configurations(core), match)
        if index > core.commit_index and core.log.term(index) == core.term:
            core.commit_to(index)

    return mock.patch.object(leading, "advance_commit", advance_commit)


def lets_removed_nodes_disturb() -> AbstractContextManager[object]:
    return mock.patch.object(RaftCore, "hears_leader", False)


def removed_nodes_never_campaign() -> AbstractContextManager[object]:
    """Not even while the entry that removes them is not committed."""
    return mock.patch.object(Configurations, "may_campaign", lambda self, node: self.newest.has_vote(node))


# ---- snapshots -----------------------------------------------------------------------------------------------


def installs_a_stale_snapshot() -> AbstractContextManager[object]:
    def install(core: RaftCore, index: int, term: int, membership: Membership) -> bool:
        known = core.commit_index
        core.commit_index = 0
        if not original(core, index, term, membership):
            core.commit_index = known
            return False
        return True

    original = snapshots.install
    return mock.patch.object(snapshots, "install", install)


def acknowledges_a_snapshot_before_it_is_written() -> AbstractContextManager[object]:
    def install(core: RaftCore, index: int, term: int, membership: Membership) -> bool:
        with mock.patch.object(Outbox, "put_after_write", Outbox.put):
            return original(core, index, term, membership)

    original = snapshots.install
    return mock.patch.object(snapshots, "install", install)


def applies_behind_a_snapshot_that_is_not_written() -> AbstractContextManager[object]:
    return mock.patch.object(RaftLog, "is_restoring", False)


def takes_an_old_write_for_a_restored_log() -> AbstractContextManager[object]:
    def restore(self: RaftLog, base: SnapshotBase) -> None:
        reach = [write.last for write in self._writes]
        original(self, base)
        for write, last in zip(self._writes, reach, strict=True):
            write.last = last

    original = RaftLog.restore
    return mock.patch.object(RaftLog, "restore", restore)


def keeps_a_log_that_the_snapshot_contradicts() -> AbstractContextManager[object]:
    """What follows the snapshot's index is kept, whatever the term there."""

    def restore(self: RaftLog, base: SnapshotBase) -> None:
        if base.index <= self.last_index:
            base = SnapshotBase(base.index, self.term(base.index), base.membership)
        original(self, base)

    original = RaftLog.restore
    return mock.patch.object(RaftLog, "restore", restore)


def forgets_a_snapshots_membership() -> AbstractContextManager[object]:
    return mock.patch.object(Configurations, "restore", lambda self, index, membership, *, keep: None)


CHANGE_MUTANTS: list[Mutant] = [
    counts_one_majority_while_joint,
    begins_a_second_change,
    takes_effect_when_committed,
    forgets_the_membership_behind_applied,
    counts_learners,
    counts_a_leader_that_is_no_voter,
    installs_a_stale_snapshot,
    acknowledges_a_snapshot_before_it_is_written,
    keeps_a_log_that_the_snapshot_contradicts,
    forgets_a_snapshots_membership,
]
