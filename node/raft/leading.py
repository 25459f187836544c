"""What a leader does: replicate, count, confirm reads, hand over. Functions over a RaftCore that leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .quorum import committed_index, has_quorum
from .read_index import Round
from .tracker import PeerProgress, ProgressState
from .types import Entry, Message, MessageType

if TYPE_CHECKING:
    from .core import RaftCore


def heartbeat(core: RaftCore) -> None:
    """To all peers; the newest unconfirmed read round rides along, and blocked probes are let go."""
    context = core.reads.rounds[-1].context if core.reads.rounds else 0
    for node, peer in core.peers.items():
        peer.probe_sent = False
        core.say(MessageType.HEARTBEAT, node, commit=min(peer.match, core.commit_index), context=context)


def start_read_round(core: RaftCore) -> None:
    """One heartbeat round for all reads that wait. Not before the no-op is committed (paper, section 8)."""
    reads = core.reads
    if not reads.waiting or not core.has_own_term_commit:
        return
    context = core.next_context()
    reads.rounds.append(Round(context, core.commit_index, reads.waiting, {core.node_id}))
    reads.waiting = []
    for node, peer in core.peers.items():
        core.say(MessageType.HEARTBEAT, node, commit=min(peer.match, core.commit_index), context=context)
    _confirm_reads(core)


def _confirm_reads(core: RaftCore) -> None:
    while core.reads.rounds and has_quorum(core.voters, core.reads.rounds[0].answered):
        done = core.reads.rounds.popleft()
        for node, request in done.reads:
            core.answer_read(node, request, done.index)


def send_entries(core: RaftCore) -> None:
    """To each peer what its window lets through, and the commit index where that is all there is to say."""
    for node, peer in core.peers.items():
        _send_to(core, node, peer)


def _send_to(core: RaftCore, node: int, peer: PeerProgress) -> None:
    config = core.config
    while True:
        if peer.state is ProgressState.PROBE and peer.probe_sent:
            return
        if len(peer.inflight) >= config.max_inflight_messages or peer.inflight_bytes >= config.max_inflight_bytes:
            return
        entries = core.log.entries(
            peer.next, core.log.last_index + 1, config.max_message_bytes, config.max_message_entries
        )
        if not entries and peer.state is ProgressState.REPLICATE and peer.told_commit >= core.commit_index:
            return
        _append_message(core, node, peer, entries)
        if peer.state is ProgressState.PROBE:
            peer.probe_sent = True
            return
        if not entries:
            return
        peer.sent(entries[-1].index, sum(len(entry.data) for entry in entries))
        peer.next = entries[-1].index + 1


def _append_message(core: RaftCore, node: int, peer: PeerProgress, entries: tuple[Entry, ...]) -> None:
    previous = peer.next - 1
    core.say(
        MessageType.APPEND,
        node,
        log_index=previous,
        log_term=core.log.term(previous),
        entries=entries,
        commit=core.commit_index,
    )
    peer.told_commit = core.commit_index


def advance_commit(core: RaftCore) -> None:
    """Commits by counting, and only an entry of the current term (paper 5.4.2, figure 8)."""

    def match(node: int) -> int:
        return core.log.stable if node == core.node_id else core.peers[node].match

    index = committed_index(core.voters, match)
    if index > core.commit_index and core.log.term(index) == core.term:
        core.commit_index = index


def on_reply(core: RaftCore, message: Message) -> None:
    """An APPEND_REPLY or HEARTBEAT_REPLY in the current term."""
    peer = core.peers[message.from_node]
    peer.recent_active = True
    if message.type is MessageType.HEARTBEAT_REPLY:
        if message.context:
            core.reads.answered(message.context, message.from_node)
            _confirm_reads(core)
        if peer.state is ProgressState.REPLICATE and peer.match < core.log.last_index:
            # What is in flight may be lost: an empty APPEND behind it is refused if it is.
            _append_message(core, message.from_node, peer, ())
        return
    if message.reject:
        _on_reject(core, peer, message)
        return
    if message.log_index > core.log.last_index:
        return  # nonsense
    if message.log_index > peer.match:
        peer.match = message.log_index
    peer.next = max(peer.next, peer.match + 1)
    peer.acknowledged(message.log_index)
    if peer.state is ProgressState.PROBE:
        peer.become_replicate()
    advance_commit(core)
    try_transfer(core)


def _on_reject(core: RaftCore, peer: PeerProgress, message: Message) -> None:
    if message.log_index <= peer.match:
        return  # an old answer
    if peer.state is ProgressState.PROBE and message.log_index != peer.next - 1:
        return  # to an earlier probe
    peer.become_probe()
    # The largest index of ours whose term is not above the follower's there: skips a term in one step (5.3).
    guess = core.log.first_of_term_at_most(message.hint_index, message.hint_term)
    peer.next = max(min(message.log_index, guess + 1), peer.match + 1)


def try_transfer(core: RaftCore) -> None:
    """Tells the target to campaign at once when it has the whole log (thesis 3.10)."""
    target = core.transferring_to
    if target and core.peers[target].match == core.log.last_index:
        core.say(MessageType.TIMEOUT_NOW, target)
