"""What a leader does: replicate, count, confirm reads, hand over. Functions over a core in the leader's role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import changing, snapshots, transfer
from .messages import TELLS_COMMIT
from .quorum import committed_index, has_quorum
from .tracker import PeerProgress, ProgressState
from .types import Entry, Message, MessageType, Role

if TYPE_CHECKING:
    from .core import RaftCore


def tick(core: RaftCore) -> None:
    """One tick of a leader's time."""
    election_ticks = core.config.election_ticks
    for peer in core.peers.values():
        peer.silent_ticks += 1
    if core.elapsed >= election_ticks:
        core.elapsed = 0
        # Who is new, or whose leader is, counts as heard once.
        active = {node for node, peer in core.peers.items() if peer.silent_ticks <= election_ticks} | {
            core.node_id
        }
        if not has_quorum(core.voters, active):  # check-quorum (thesis 6.2)
            core.become_follower(core.term, 0)
            return
    transfer.tick(core)
    if core.role is not Role.LEADER:
        return
    changing.tick(core)
    for read in core.reads.tick(election_ticks):
        core.answer_read(read, None)
    core.heartbeat_elapsed += 1
    if core.heartbeat_elapsed >= core.config.heartbeat_ticks:
        core.heartbeat_elapsed = 0
        heartbeat(core)


def heartbeat(core: RaftCore) -> None:
    """To all peers; the newest unconfirmed read round rides along, in case its own messages were lost."""
    context = core.reads.newest_context
    for node, peer in _reached(core):
        # No more than the peer is known to have: its log may differ behind that.
        core.say(MessageType.HEARTBEAT, node, commit=min(peer.match, core.commit_index), context=context)


def _reached(core: RaftCore) -> Iterator[tuple[int, PeerProgress]]:
    """The members, and who was one and is to hear that it is none any more."""
    yield from core.peers.items()
    for node, leaver in core.leavers.items():
        yield node, leaver.peer


def start_read_round(core: RaftCore) -> None:
    """One heartbeat round for all reads that wait. Not before the no-op is committed (paper, section 8)."""
    if core.reads.wants_round and core.has_own_term_commit:
        core.reads.start_round(core.commit_index, core.node_id)
        heartbeat(core)
        _confirm_reads(core)


def _confirm_reads(core: RaftCore) -> None:
    rounds = core.reads.rounds
    while rounds and has_quorum(core.voters, rounds[0].answered):
        done = rounds.popleft()
        for read in done.reads:
            core.answer_read(read, done.index)


def has_work(core: RaftCore) -> bool:
    """Is there a message that only `take_output` makes?"""
    if core.reads.wants_round and core.has_own_term_commit:
        return True
    return any(_wants(core, peer) for _, peer in _reached(core))


def _wants(core: RaftCore, peer: PeerProgress) -> bool:
    """Is there something to send, and room for it?"""
    if not peer.may_send(core.config.max_inflight_messages, core.config.max_inflight_bytes):
        return False
    return (
        peer.next <= core.log.last_index
        or peer.state is ProgressState.PROBE
        or peer.told_commit < core.commit_index
    )


def send_entries(core: RaftCore) -> None:
    """To each peer what its window lets through, and the commit index where that is all there is to say."""
    log, config = core.log, core.config
    last = log.last_index
    # Followers mostly stand at the same place: the entries are read from the log once.
    read_from, read = 0, tuple[Entry, ...]()
    for node, peer in _reached(core):
        while _wants(core, peer):
            if peer.next <= log.base:
                snapshots.offer(core, node, peer)
                break
            if read_from != peer.next:
                read_from = peer.next
                read = log.entries(read_from, last + 1, config.max_message_bytes, config.max_message_entries)
            probing = peer.state is ProgressState.PROBE
            _append_message(core, node, peer, read, 0 if read or probing else TELLS_COMMIT)
            if probing:
                peer.probe_sent = True
            elif read:
                peer.sent(read[-1].index, sum(len(entry.data) for entry in read))
    if core.leavers:
        changing.release_leavers(core)


def _append_message(
    core: RaftCore, node: int, peer: PeerProgress, entries: tuple[Entry, ...], context: int = 0
) -> None:
    previous = peer.next - 1
    core.say(
        MessageType.APPEND,
        node,
        log_index=previous,
        log_term=core.log.term(previous),
        entries=entries,
        commit=core.commit_index,
        context=context,
    )
    peer.told_commit = core.commit_index


def advance_commit(core: RaftCore) -> None:
    """Commits by counting, and only an entry of the current term (paper 5.4.2, figure 8)."""

    def match(node: int) -> int:
        return core.log.stable if node == core.node_id else core.peers[node].match

    index = committed_index(core.voters, match)
    if index > core.commit_index and core.log.term(index) == core.term:
        core.commit_to(index)


def on_heartbeat_reply(core: RaftCore, message: Message, peer: PeerProgress) -> None:
    """The peer lives, and at the time of the heartbeat it knew no later leader."""
    peer.hears()
    if message.context:
        core.reads.answered(message.context, message.from_node)
        _confirm_reads(core)
    if peer.state is ProgressState.PROBE:
        peer.probe_sent = False  # it answers: the probe or its answer may have been lost
    elif peer.state is ProgressState.SNAPSHOT or peer.next <= core.log.base:
        snapshots.offer(core, message.from_node, peer)  # the offer may have been lost, or be too old by now
    elif peer.match < core.log.last_index:
        # What is in flight may be lost: an empty APPEND behind it is refused if it is.
        _append_message(core, message.from_node, peer, ())
    if message.from_node == core.transferring_to:
        transfer.attempt(core)  # TIMEOUT_NOW may be lost too


def on_append_reply(core: RaftCore, message: Message, peer: PeerProgress) -> None:
    """`log_index` is what agrees and is durable there, or what was refused."""
    peer.hears()
    index = message.log_index
    if message.reject:
        _on_reject(core, peer, message)
    elif index <= core.log.last_index:
        if index > peer.match or peer.state is not ProgressState.REPLICATE:
            # In probe an equal answer also says that the logs agree there, if it is the one that was asked for; of
            # a state it says that the log goes on from there.
            agrees = index >= (core.log.base if peer.state is ProgressState.SNAPSHOT else peer.next - 1)
            peer.acknowledged(index)
            if agrees and peer.state is not ProgressState.REPLICATE:
                peer.become_replicate()
            advance_commit(core)
        if message.from_node == core.transferring_to:
            transfer.attempt(core)


def _on_reject(core: RaftCore, peer: PeerProgress, message: Message) -> None:
    index = message.log_index
    if index <= peer.match or index > core.log.last_index or peer.state is ProgressState.SNAPSHOT:
        return  # an old answer, or nonsense
    if peer.state is ProgressState.PROBE and index != peer.next - 1:
        return  # to an earlier probe
    # Our last entry at or before the hint whose term is not above the follower's there: the logs cannot agree
    # behind it, so that a whole term is skipped in one step (5.3).
    guess = core.log.last_with_term_at_most(message.hint_index, message.hint_term)
    peer.become_probe(min(index, guess + 1))
