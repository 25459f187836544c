"""How a leader changes who belongs to its cluster (Raft paper, section 6; thesis, chapter 4). Functions over a
RaftCore in the leader's role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import transfer
from .membership import Change, Membership, MembershipError, changed, left_joint
from .quorum import majority
from .tracker import PeerProgress, ProgressState
from .types import Entry, EntryKind, NotLeader, Role

if TYPE_CHECKING:
    from .core import RaftCore


@dataclass(slots=True)
class Leaver:
    """A node that was removed by the entry `final`. It is told that this is committed, if it can be, and for no
    longer than an election timeout: `ticks` since the entry was."""

    peer: PeerProgress
    final: int
    ticks: int = 0


def propose(core: RaftCore, change: Change) -> int:
    """See RaftCore.propose_membership."""
    if core.role is not Role.LEADER:
        raise NotLeader(f"node {core.node_id} is {core.role.value}; leader is {core.leader or 'not known'}")
    if core.transferring_to:
        raise MembershipError(f"leadership is being handed to node {core.transferring_to}; ask the next leader")
    if not core.has_own_term_commit:
        raise MembershipError("the leader is new and has not committed anything yet; try again")
    if core.membership.is_joint or core.membership_index > core.commit_index:
        raise MembershipError(f"another change, entry {core.membership_index}, is under way")
    after = changed(core.membership, change)
    _check_promoted(core, change)
    _check_majorities(core, after)
    _append(core, after)
    return core.last_index


def _check_promoted(core: RaftCore, change: Change) -> None:
    """A voter that has to catch up first would hold up what needs its vote (thesis 4.2.1)."""
    for node in sorted(change.promote - {core.node_id}):
        peer = core.peers[node]
        if not peer.is_live(core.config.election_ticks):
            raise MembershipError(f"node {node} was not heard lately")
        if peer.state is not ProgressState.REPLICATE:
            raise MembershipError(f"node {node} is too far behind to be a voter ({peer.state.value}); try again")


def _check_majorities(core: RaftCore, after: Membership) -> None:
    """Without a majority of each voter set the change, and all behind it, would wait for ever."""
    live = {node for node, peer in core.peers.items() if peer.is_live(core.config.election_ticks)} | {core.node_id}
    for voters in after.configurations:
        if len(voters & live) < majority(voters):
            raise MembershipError(
                f"of the voters {sorted(voters)} only {sorted(voters & live)} were heard lately: no majority"
            )


def _append(core: RaftCore, membership: Membership) -> None:
    core.append([Entry(core.term, core.last_index + 1, EntryKind.MEMBERSHIP, membership.encode())])


def on_commit(core: RaftCore) -> None:
    """The commit index rose, or may have done so while nothing could be done about it."""
    if not core.has_own_term_commit or core.transferring_to or core.membership_index > core.commit_index:
        return
    if core.membership.is_joint:
        _append(core, left_joint(core.membership))
    elif not any(core.node_id in voters for voters in core.voters):
        transfer.start(core, 0)


def on_membership(core: RaftCore) -> None:
    """The membership is another one: who came is to be reached, who went is told so and left alone."""
    ids = core.membership.ids
    for node in [node for node in core.peers if node not in ids]:
        core.leavers[node] = Leaver(core.peers.pop(node), core.membership_index)
    for node in sorted(core.members - core.peers.keys()):
        core.peers[node] = PeerProgress(core.last_index + 1)


def tick(core: RaftCore) -> None:
    on_commit(core)
    for node, leaver in list(core.leavers.items()):
        if leaver.final <= core.commit_index:
            leaver.ticks += 1
        if leaver.ticks >= core.config.election_ticks:
            del core.leavers[node]


def release_leavers(core: RaftCore) -> None:
    """Who was told, or needs more than entries, is told no more."""
    for node, leaver in list(core.leavers.items()):
        peer = leaver.peer
        if peer.state is ProgressState.SNAPSHOT or (peer.match >= leaver.final <= peer.told_commit):
            del core.leavers[node]
