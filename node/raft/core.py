"""The consensus core: Raft as a state machine (Ongaro & Ousterhout's paper; Ongaro's thesis, chapters 3, 4, 6, 9).

Inputs are `tick`, `step`, `propose`, `read_index`, `transfer_leader` and `persisted`; effects are collected by
`take_output`. Message fields beyond their names: a reply to APPEND carries in `log_index` the last index known to
agree (durable by the time the message leaves) or, with `reject`, the index that did not; `hint_index` and
`hint_term` then say where the follower's log may agree. READ_INDEX_REPLY carries the read index in `log_index`.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import leading
from .log import RaftLog
from .quorum import has_quorum, is_lost
from .read_index import ReadQueue
from .tracker import PeerProgress
from .types import (
    Config,
    Entry,
    EntryKind,
    HardState,
    LogReader,
    Message,
    MessageType,
    NotLeader,
    Output,
    Persist,
    RandomSource,
    ReadState,
    Role,
    RoleChange,
)

_LEADERS_MESSAGES = frozenset({MessageType.APPEND, MessageType.HEARTBEAT})
_REQUESTS_OF_CANDIDATES = frozenset({MessageType.PRE_VOTE, MessageType.VOTE})


class RaftCore:
    """One node's consensus state. Used from one thread.

    `log` holds the durable entries, `hard_state` the durable vote and term, `applied` the index up to which the
    state machine has applied. Only RaftInvariantError may leave an input method unexpectedly: the node must stop.
    """

    def __init__(
        self, config: Config, log: LogReader, hard_state: HardState, applied: int, random: RandomSource
    ) -> None:
        self.config = config
        self.log = RaftLog(log)
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.LEARNER if config.node_id in config.learners else Role.FOLLOWER
        self.leader = 0
        self.commit_index = applied
        self.peers: dict[int, PeerProgress] = {}
        self.reads = ReadQueue()
        self.transferring_to = 0
        self._random = random
        self._members = (config.voters | config.learners) - {config.node_id}
        self._given_to_apply = applied
        self._durable_hard_state = self._queued_hard_state = hard_state
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self._transfer_elapsed = 0
        self._own_term_start = 0  # index of this leader's no-op
        self._votes: dict[int, bool] = {}
        self._campaign_transfer = False
        self._forwarded_reads: dict[int, int] = {}  # request -> age in ticks, asked of the leader
        self._announced = RoleChange(self.role, self.term, 0)
        self._send: list[Message] = []
        self._send_durable: list[Message] = []
        self._persist_from = 0  # first index that no Persist was made for; 0: none
        self._next_ticket = 1
        self._last_context = 0
        self._tickets: list[tuple[int, HardState, int, int]] = []  # ticket, hard state, last index, its term
        self._reads_out: list[ReadState] = []
        self._reads_lost: list[int] = []
        self._draw_timeout()

    # ---- what can be asked ---------------------------------------------------------------------------

    @property
    def node_id(self) -> int:
        return self.config.node_id

    @property
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def voters(self) -> tuple[frozenset[int], ...]:
        """The voter sets of which each must agree; two while a joint change is under way."""
        return (self.config.voters,)

    @property
    def has_own_term_commit(self) -> bool:
        """Leads, and its no-op is committed: its commit index is the cluster's (paper, section 8)."""
        return self.role is Role.LEADER and self.commit_index >= self._own_term_start

    def progress(self) -> dict[int, PeerProgress]:
        """What the leader knows of each peer; empty elsewhere."""
        return self.peers if self.role is Role.LEADER else {}

    # ---- inputs --------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of time went by."""
        self._elapsed += 1
        for request in list(self._forwarded_reads):
            self._forwarded_reads[request] += 1
            if self._forwarded_reads[request] >= self.config.election_ticks:
                del self._forwarded_reads[request]
                self._reads_lost.append(request)
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._elapsed >= self._timeout and self.role is not Role.LEARNER:
            self._campaign(pre=True)

    def propose(self, data: Sequence[bytes]) -> int:
        """Appends one COMMAND for each item; returns the first one's index. NotLeader."""
        if self.role is not Role.LEADER:
            raise NotLeader(f"node {self.node_id} is {self.role.value}; leader is {self.leader or 'not known'}")
        if self.transferring_to:
            raise NotLeader(f"node {self.node_id} is handing leadership to {self.transferring_to}")
        first = self.log.last_index + 1
        self._append([Entry(self.term, first + i, EntryKind.COMMAND, each) for i, each in enumerate(data)])
        return first

    def persisted(self, ticket: int) -> None:
        """Everything up to this ticket is durable."""
        while self._tickets and self._tickets[0][0] <= ticket:
            _ticket, self._durable_hard_state, index, term = self._tickets.pop(0)
            self.log.made_durable(index, term)
        if self.role is Role.LEADER:
            leading.advance_commit(self)
        elif self.role is Role.CANDIDATE:
            self._count_votes()

    def read_index(self, request: int) -> None:
        """Asks for a read: answered through Output.reads or Output.reads_lost."""
        if self.role is Role.LEADER:
            self.reads.waiting.append((self.node_id, request))
        elif self.leader:
            self._forwarded_reads[request] = 0
            self.say(MessageType.READ_INDEX, self.leader, context=request)
        else:
            self._reads_lost.append(request)

    def transfer_leader(self, to_node: int = 0) -> None:
        """Hands leadership to a voter (0: the furthest); given up after an election timeout (thesis 3.10)."""
        if self.role is not Role.LEADER:
            return
        candidates = [node for node in self.peers if any(node in voters for voters in self.voters)]
        if to_node == 0 and candidates:
            to_node = max(candidates, key=lambda node: (self.peers[node].recent_active, self.peers[node].match))
        if to_node in candidates:
            self.transferring_to = to_node
            self._transfer_elapsed = 0
            leading.try_transfer(self)

    def step(self, message: Message) -> None:
        """Takes a message of a peer. What makes no sense is ignored."""
        if message.from_node not in self._members or message.to_node != self.node_id:
            return
        if message.term > self.term:
            if message.type in _REQUESTS_OF_CANDIDATES and self._hears_leader() and not message.transfer:
                return  # thesis 4.2.3: a leader is alive; the sender may be a node that was cut off
            if message.type is MessageType.PRE_VOTE or (
                message.type is MessageType.PRE_VOTE_REPLY and not message.reject
            ):
                pass  # a term that nobody is in yet
            else:
                leads = message.type in _LEADERS_MESSAGES
                self._become_follower(message.term, message.from_node if leads else 0)
        elif message.term < self.term:
            self._answer_old_term(message)
            return
        match message.type:
            case MessageType.PRE_VOTE | MessageType.VOTE:
                self._on_vote_request(message)
            case MessageType.PRE_VOTE_REPLY | MessageType.VOTE_REPLY:
                self._on_vote_reply(message)
            case MessageType.APPEND:
                if self._accept_leader(message):
                    self._on_append(message)
            case MessageType.HEARTBEAT:
                if self._accept_leader(message):
                    self._commit_to(min(message.commit, self.log.last_index))
                    self.say(MessageType.HEARTBEAT_REPLY, message.from_node, context=message.context)
            case MessageType.TIMEOUT_NOW:
                if self.role in (Role.FOLLOWER, Role.PRE_CANDIDATE) and self.node_id in self.config.voters:
                    self._campaign(pre=False, transfer=True)
            case MessageType.READ_INDEX:
                if self.role is Role.LEADER:
                    self.reads.waiting.append((message.from_node, message.context))
            case MessageType.READ_INDEX_REPLY:
                if self._forwarded_reads.pop(message.context, None) is not None:
                    if message.reject:
                        self._reads_lost.append(message.context)
                    else:
                        self._reads_out.append(ReadState(message.context, message.log_index))
            case MessageType.APPEND_REPLY | MessageType.HEARTBEAT_REPLY if self.role is Role.LEADER:
                leading.on_reply(self, message)

    def take_output(self) -> Output:
        """All effects since the last call. Call until it is empty: what is applied comes in bounded pieces."""
        if self.role is Role.LEADER:
            leading.start_read_round(self)
            leading.send_entries(self)
        persist = self._take_persist()
        role = RoleChange(self.role, self.term, self.leader)
        changed = role if role != self._announced else None
        self._announced = role
        output = Output(
            tuple(self._send),
            persist,
            self._take_applicable(),
            tuple(self._reads_out),
            tuple(self._reads_lost),
            changed,
        )
        self._send.clear()
        self._reads_out.clear()
        self._reads_lost.clear()
        return output

    def has_output(self) -> bool:
        """Would `take_output` hand out something to send, persist, apply or answer?"""
        return bool(
            self._send
            or self._send_durable
            or self._persist_from
            or self._reads_out
            or self._reads_lost
            or self._queued_hard_state != HardState(self.term, self.vote)
            or self._given_to_apply < min(self.commit_index, self.log.stable)
        )

    # ---- effects -------------------------------------------------------------------------------------

    def say(self, kind: MessageType, to: int, *, durable: bool = False, **fields: object) -> None:
        """Queues a message in the current term; with `durable` it waits for all that is being persisted."""
        term = fields.pop("term", self.term)
        message = Message(kind, self.node_id, to, term, **fields)  # type: ignore[arg-type]
        (self._send_durable if durable else self._send).append(message)

    def next_context(self) -> int:
        """A number for a heartbeat round; with the term, which every message carries, it is never used again."""
        self._last_context += 1
        return self._last_context

    def answer_read(self, node: int, request: int, index: int) -> None:
        """A read is confirmed: ours, or one that a follower asked for."""
        if node == self.node_id:
            self._reads_out.append(ReadState(request, index))
        else:
            self.say(MessageType.READ_INDEX_REPLY, node, context=request, log_index=index)

    def _take_persist(self) -> tuple[Persist, ...]:
        state = HardState(self.term, self.vote)
        changed = state if state != self._queued_hard_state else None
        entries: tuple[Entry, ...] = ()
        if self._persist_from:
            entries = self.log.entries(self._persist_from, self.log.last_index + 1, 1 << 62, 1 << 62)
        if changed is None and not entries:
            if not self._send_durable:
                return ()
            if not self._tickets:  # all is durable already
                self._send.extend(self._send_durable)
                self._send_durable.clear()
                return ()
        self._queued_hard_state = state
        self._persist_from = 0
        ticket = self._next_ticket
        self._next_ticket += 1
        self._tickets.append((ticket, state, self.log.last_index, self.log.last_term))
        then_send = tuple(self._send_durable)
        self._send_durable.clear()
        return (Persist(ticket, changed, entries, then_send),)

    def _take_applicable(self) -> tuple[Entry, ...]:
        ready = min(self.commit_index, self.log.stable)
        if ready <= self._given_to_apply:
            return ()
        entries = self.log.entries(
            self._given_to_apply + 1, ready + 1, self.config.max_apply_bytes, self.config.max_message_entries
        )
        self._given_to_apply = entries[-1].index
        return entries

    # ---- roles ---------------------------------------------------------------------------------------

    def _draw_timeout(self) -> None:
        """Randomized election timeouts (paper 5.2)."""
        self._timeout = self._random.randrange(self.config.election_ticks, 2 * self.config.election_ticks)

    def _hears_leader(self) -> bool:
        return self.leader != 0 and self._elapsed < self.config.election_ticks

    def _reset(self, term: int) -> None:
        if term != self.term:
            self.term = term
            self.vote = 0
        self.leader = 0
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self.transferring_to = 0
        self._votes = {}
        self._draw_timeout()
        for node, request in self.reads.clear():
            if node == self.node_id:
                self._reads_lost.append(request)
            else:
                self.say(MessageType.READ_INDEX_REPLY, node, context=request, reject=True)
        # Bound to the leader they were asked of.
        self._reads_lost.extend(self._forwarded_reads)
        self._forwarded_reads.clear()

    def _become_follower(self, term: int, leader: int) -> None:
        self._reset(term)
        self.role = Role.LEARNER if self.node_id in self.config.learners else Role.FOLLOWER
        self.leader = leader
        self.peers = {}

    def _campaign(self, *, pre: bool, transfer: bool = False) -> None:
        self._reset(self.term if pre else self.term + 1)
        self.role = Role.PRE_CANDIDATE if pre else Role.CANDIDATE
        self._campaign_transfer = transfer
        if not pre:
            self.vote = self.node_id
        self._votes[self.node_id] = True
        self._count_votes()
        if self.role is not (Role.PRE_CANDIDATE if pre else Role.CANDIDATE):
            return
        for node in sorted(self._members & self.config.voters):
            # A vote is asked for only when our own vote for ourselves is durable.
            self.say(
                MessageType.PRE_VOTE if pre else MessageType.VOTE,
                node,
                durable=not pre,
                term=self.term + 1 if pre else self.term,
                log_index=self.log.last_index,
                log_term=self.log.last_term,
                transfer=transfer,
            )

    def _count_votes(self) -> None:
        granted = {node for node, vote in self._votes.items() if vote}
        if self.role is Role.CANDIDATE and self._durable_hard_state != HardState(self.term, self.node_id):
            granted.discard(self.node_id)  # our own vote counts when it is on disk
        if has_quorum(self.voters, granted):
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(pre=False)
            else:
                self._become_leader()
        elif is_lost(self.voters, {node for node, vote in self._votes.items() if not vote}):
            self._become_follower(self.term, 0)

    def _become_leader(self) -> None:
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.node_id
        self.peers = {
            node: PeerProgress(self.log.last_index + 1, recent_active=True) for node in sorted(self._members)
        }
        self._own_term_start = self.log.last_index + 1
        self._append([Entry(self.term, self._own_term_start, EntryKind.NOOP)])
        leading.heartbeat(self)

    def _append(self, entries: list[Entry]) -> None:
        self.log.append(entries)
        self._persist_from = self._persist_from or entries[0].index

    def _tick_leader(self) -> None:
        if self._elapsed >= self.config.election_ticks:
            self._elapsed = 0
            active = {node for node, peer in self.peers.items() if peer.recent_active} | {self.node_id}
            if not has_quorum(self.voters, active):  # check-quorum (thesis 6.2)
                self._become_follower(self.term, 0)
                return
            for peer in self.peers.values():
                peer.recent_active = False
        if self.transferring_to:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self.config.election_ticks:
                self.transferring_to = 0
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            leading.heartbeat(self)

    # ---- votes ---------------------------------------------------------------------------------------

    def _answer_old_term(self, message: Message) -> None:
        """Tells a sender that is behind which term it is; it steps down or updates itself (paper 5.1)."""
        if message.type in _LEADERS_MESSAGES:
            self.say(
                MessageType.APPEND_REPLY, message.from_node, durable=True, reject=True, log_index=message.log_index
            )
        elif message.type is MessageType.PRE_VOTE:
            self.say(MessageType.PRE_VOTE_REPLY, message.from_node, durable=True, reject=True)
        elif message.type is MessageType.VOTE:
            self.say(MessageType.VOTE_REPLY, message.from_node, durable=True, reject=True)

    def _on_vote_request(self, message: Message) -> None:
        pre = message.type is MessageType.PRE_VOTE
        up_to_date = (message.log_term, message.log_index) >= (self.log.last_term, self.log.last_index)
        free = self.vote in (0, message.from_node) and self.leader in (0, message.from_node)
        grant = up_to_date and (message.term > self.term if pre else free)
        if pre and self._hears_leader() and message.from_node != self.leader:
            grant = False
        if grant and not pre:
            self._elapsed = 0
            self.vote = message.from_node
        self.say(
            MessageType.PRE_VOTE_REPLY if pre else MessageType.VOTE_REPLY,
            message.from_node,
            durable=True,  # the vote, or the term of a refusal, is on disk first
            term=message.term if grant else self.term,
            reject=not grant,
        )

    def _on_vote_reply(self, message: Message) -> None:
        pre = message.type is MessageType.PRE_VOTE_REPLY
        if self.role is not (Role.PRE_CANDIDATE if pre else Role.CANDIDATE):
            return
        if pre and not message.reject and message.term != self.term + 1:
            return  # of an earlier pre-vote
        self._votes.setdefault(message.from_node, not message.reject)
        self._count_votes()

    # ---- following -----------------------------------------------------------------------------------

    def _accept_leader(self, message: Message) -> bool:
        """Follows the sender, the leader of the current term."""
        if self.role is Role.LEADER:
            return False  # two leaders in a term cannot be; a peer that says so is not believed
        if self.role in (Role.CANDIDATE, Role.PRE_CANDIDATE) or self.leader != message.from_node:
            self._become_follower(self.term, message.from_node)
        self._elapsed = 0
        return True

    def _on_append(self, message: Message) -> None:
        log = self.log
        if message.log_index < self.commit_index and not message.entries:
            self.say(MessageType.APPEND_REPLY, message.from_node, durable=True, log_index=self.commit_index)
            return
        if not log.matches(message.log_index, message.log_term):
            hint = log.first_of_term_at_most(min(message.log_index, log.last_index), message.log_term)
            self.say(
                MessageType.APPEND_REPLY,
                message.from_node,
                durable=True,
                reject=True,
                log_index=message.log_index,
                hint_index=hint,
                hint_term=log.term(hint),
            )
            return
        last = message.log_index + len(message.entries)
        for position, entry in enumerate(message.entries):
            if entry.index != message.log_index + 1 + position:
                return  # not consecutive: nonsense
            if not log.matches(entry.index, entry.term):
                # Only a real conflict cuts the log: an old message must not (paper 5.3).
                if entry.index <= log.last_index:
                    log.truncate(entry.index, self.commit_index)
                    if self._persist_from > entry.index:
                        self._persist_from = 0
                self._append(list(message.entries[position:]))
                break
        self._commit_to(min(message.commit, last))
        self.say(MessageType.APPEND_REPLY, message.from_node, durable=True, log_index=last)

    def _commit_to(self, index: int) -> None:
        self.commit_index = max(self.commit_index, index)
