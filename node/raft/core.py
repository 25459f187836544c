"""The consensus core: Raft as a state machine (Ongaro & Ousterhout's paper; Ongaro's thesis, chapters 3, 4, 6, 9).

Inputs are `tick`, `step`, `propose`, `read_index`, `transfer_leader` and `persisted`; effects are collected by
`take_output`. What the message fields carry beyond their names:

APPEND            `context` messages.TELLS_COMMIT: no entries, answered only when refused
APPEND_REPLY      `log_index`: last index known to agree, durable by the time the message leaves; with `reject` the
                  index that did not agree, and `hint_index`, `hint_term` where the follower's log may
HEARTBEAT(_REPLY) `context`: the round of reads that it confirms, 0 for none
READ_INDEX        `context`: the request
READ_INDEX_REPLY  `context`: the request, `log_index`: the read index; with `reject` the read is lost

Nothing is said in a term before that term and the vote in it are on disk.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import election, following, leading
from .log import RaftLog
from .messages import CANDIDATES_REQUESTS, LEADERS_MESSAGES, MOST_TERMS_AHEAD, is_sane
from .outbox import Outbox
from .read_index import Read, ReadQueue
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
    RaftInvariantError,
    RandomSource,
    ReadState,
    Role,
    RoleChange,
)


class RaftCore:
    """One node's consensus state. Used from one thread.

    `log` holds the durable entries, `hard_state` the durable vote and term, `applied` the index up to which the
    state machine has applied. Raises RaftInvariantError, as every input may: Raft's own guarantees are broken (a
    disk lost what was durable), the node must stop. ValueError: `config` makes no sense.

    `config`, `log`, `term`, `role`, `leader`, `commit_index`, `node_id`, `last_index` are for all to read; the
    other attributes and the methods from `say` on are for the modules of this folder.
    """

    def __init__(
        self, config: Config, log: LogReader, hard_state: HardState, applied: int, random: RandomSource
    ) -> None:
        config.check()
        self.config = config
        self.log = RaftLog(log)
        if applied > self.log.last_index or self.log.last_term > hard_state.term:
            raise RaftInvariantError(
                f"applied {applied} and in term {hard_state.term}, but the log ends with entry "
                f"{self.log.last_index} of term {self.log.last_term}: the log or the hard state lost its end"
            )
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = self._passive_role
        self.leader = 0
        self.commit_index = applied
        self.members = (config.voters | config.learners) - {config.node_id}
        #: Each of these voter sets must agree; two while a joint change is under way.
        self.voters: tuple[frozenset[int], ...] = (config.voters,)
        self.outbox = Outbox(hard_state)
        self.elapsed = 0  # ticks since the leader was heard, a vote given or a campaign begun
        self.votes: dict[int, bool] = {}  # candidate's: granted or refused
        self.peers: dict[int, PeerProgress] = {}  # leader's
        self.reads = ReadQueue()  # leader's
        self.transferring_to = 0  # leader's
        self._own_term_start = 0  # index of this leader's no-op
        self.heartbeat_elapsed = 0
        self.transfer_elapsed = 0
        self._forwarded_reads: dict[int, int] = {}  # request -> age in ticks, asked of the leader
        self._given_to_apply = applied
        self._random = random
        self._reads_out: list[ReadState] = []
        self._reads_lost: list[int] = []
        self._announced = RoleChange(self.role, self.term, 0)
        self._draw_timeout()

    # ---- what can be asked ---------------------------------------------------------------------------

    @property
    def node_id(self) -> int:
        return self.config.node_id

    @property
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def has_own_term_commit(self) -> bool:
        """Leads, and its no-op is committed: its commit index is the cluster's (paper, section 8)."""
        return self.role is Role.LEADER and self.commit_index >= self._own_term_start

    def progress(self) -> dict[int, PeerProgress]:
        """What the leader knows of each peer; empty elsewhere."""
        return dict(self.peers)

    # ---- inputs --------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of time went by."""
        self.elapsed += 1
        self.outbox.tick()
        for request, age in list(self._forwarded_reads.items()):
            self._forwarded_reads[request] = age + 1
            if age + 1 >= self.config.election_ticks:
                del self._forwarded_reads[request]
                self._reads_lost.append(request)
        if self.role is Role.LEADER:
            leading.tick(self)
        elif self.elapsed >= self._timeout and self._may_campaign:
            election.campaign(self, pre=True)

    def propose(self, data: Sequence[bytes]) -> int:
        """Appends one COMMAND for each item; returns the first one's index. NotLeader."""
        if self.role is not Role.LEADER:
            raise NotLeader(f"node {self.node_id} is {self.role.value}; leader is {self.leader or 'not known'}")
        if self.transferring_to:
            raise NotLeader(f"node {self.node_id} is handing leadership to {self.transferring_to}")
        first = self.log.last_index + 1
        self.log.append([Entry(self.term, first + i, EntryKind.COMMAND, each) for i, each in enumerate(data)])
        return first

    def persisted(self, ticket: int) -> None:
        """Everything up to this ticket is durable."""
        self.log.written(ticket)
        self.outbox.written(ticket)
        if self.role is Role.LEADER:
            leading.advance_commit(self)
        elif self.role is Role.CANDIDATE:
            election.count_votes(self)

    def read_index(self, request: int) -> None:
        """Asks for a read: answered through Output.reads or Output.reads_lost. A request's number is used once."""
        if self.role is Role.LEADER:
            self.reads.add(self.node_id, request)
        elif self.leader:
            self._forwarded_reads[request] = 0
            self.say(MessageType.READ_INDEX, self.leader, context=request)
        else:
            self._reads_lost.append(request)

    def transfer_leader(self, to_node: int = 0) -> None:
        """Hands leadership to a voter (0: the furthest); given up after an election timeout (thesis 3.10).

        Until then nothing can be proposed. Does nothing on a node that does not lead or for a node that is no
        other voter.
        """
        if self.role is not Role.LEADER:
            return
        candidates = [node for node in self.peers if any(node in voters for voters in self.voters)]
        if to_node == 0 and candidates:
            to_node = max(candidates, key=lambda node: (self.peers[node].recent_active, self.peers[node].match))
        if to_node in candidates:
            self.transferring_to = to_node
            self.transfer_elapsed = 0
            leading.try_transfer(self)

    def step(self, message: Message) -> None:
        """Takes a message of a peer. What makes no sense is ignored. RaftInvariantError."""
        if message.from_node not in self.members or message.to_node != self.node_id or not is_sane(message):
            return
        if message.term > self.term + MOST_TERMS_AHEAD:
            return
        if message.term > self.term:
            if message.type in CANDIDATES_REQUESTS and self._hears_leader and not message.transfer:
                return  # thesis 4.2.3: a leader is alive; the sender may be a node that was cut off
            # A pre-vote speaks of a term that nobody is in yet; but its refusal is in the refuser's own term.
            if message.type is not MessageType.PRE_VOTE and (
                message.type is not MessageType.PRE_VOTE_REPLY or message.reject
            ):
                self.become_follower(message.term, message.from_node if message.type in LEADERS_MESSAGES else 0)
        elif message.term < self.term:
            self._answer_old_term(message)
            return
        self._step_current(message)

    def take_output(self) -> Output:
        """All effects since the last call. Call until it is empty: what is applied comes in bounded pieces."""
        if self.role is Role.LEADER:
            leading.start_read_round(self)
            leading.send_entries(self)
        send, persist = self.outbox.take(HardState(self.term, self.vote), self.log)
        role = RoleChange(self.role, self.term, self.leader)
        changed = role if role != self._announced else None
        self._announced = role
        output = Output(
            send, persist, self._take_applicable(), tuple(self._reads_out), tuple(self._reads_lost), changed
        )
        self._reads_out.clear()
        self._reads_lost.clear()
        return output

    def has_output(self) -> bool:
        """Would `take_output` return anything but an empty Output?"""
        return bool(
            self.outbox.has_any(HardState(self.term, self.vote), self.log)
            or self._reads_out
            or self._reads_lost
            or self._given_to_apply < min(self.commit_index, self.log.stable)
            or RoleChange(self.role, self.term, self.leader) != self._announced
            or (self.role is Role.LEADER and leading.has_work(self))
        )

    # ---- effects -------------------------------------------------------------------------------------

    def say(
        self,
        kind: MessageType,
        to: int,
        *,
        durable: bool = False,
        term: int | None = None,
        log_index: int = 0,
        log_term: int = 0,
        entries: tuple[Entry, ...] = (),
        commit: int = 0,
        reject: bool = False,
        hint_index: int = 0,
        hint_term: int = 0,
        context: int = 0,
        transfer: bool = False,
    ) -> None:
        """Queues a message, in the current term by default; with `durable` it waits for all writes so far."""
        message = Message(
            kind,
            self.node_id,
            to,
            self.term if term is None else term,
            log_index,
            log_term,
            entries,
            commit,
            reject,
            hint_index,
            hint_term,
            context,
            transfer,
        )
        if durable or self.outbox.durable.term != self.term:
            self.outbox.put_after_write(message)
        else:
            self.outbox.put(message)

    def answer_read(self, read: Read, index: int | None) -> None:
        """A read is confirmed for `index`, or lost: ours, or one that a follower asked for."""
        if read.node != self.node_id:
            self.say(
                MessageType.READ_INDEX_REPLY,
                read.node,
                context=read.request,
                log_index=index or 0,
                reject=index is None,
            )
        elif index is None:
            self._reads_lost.append(read.request)
        else:
            self._reads_out.append(ReadState(read.request, index))

    def commit_to(self, index: int) -> None:
        """What is committed stays so."""
        self.commit_index = max(self.commit_index, index)

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

    @property
    def _may_campaign(self) -> bool:
        return any(self.node_id in voters for voters in self.voters) and not self.disk_hangs

    @property
    def disk_hangs(self) -> bool:
        """No write ended for two election timeouts: whoever leads so answers nobody, and a vote is never said."""
        return self.outbox.silent_ticks >= 2 * self.config.election_ticks

    @property
    def _passive_role(self) -> Role:
        return Role.LEARNER if self.config.node_id in self.config.learners else Role.FOLLOWER

    @property
    def _hears_leader(self) -> bool:
        return self.leader != 0 and self.elapsed < self.config.election_ticks

    def _draw_timeout(self) -> None:
        """Randomized election timeouts (paper 5.2)."""
        self._timeout = self._random.randrange(self.config.election_ticks, 2 * self.config.election_ticks)

    def become(self, role: Role, term: int, leader: int = 0) -> None:
        """Enters a role afresh. All that belonged to the old one, or to the old leader, is dropped."""
        for read in self.reads.clear():
            self.answer_read(read, None)
        self._reads_lost.extend(self._forwarded_reads)  # bound to the leader that they were asked of
        self._forwarded_reads.clear()
        if term != self.term:
            self.term = term
            self.vote = 0
        self.role = role
        self.leader = leader
        self.elapsed = 0
        self.votes = {}
        self.peers = {}
        self.transferring_to = 0
        self._draw_timeout()

    def become_follower(self, term: int, leader: int) -> None:
        self.become(self._passive_role, term, leader)

    def become_leader(self) -> None:
        self.become(Role.LEADER, self.term, self.node_id)
        self.heartbeat_elapsed = 0
        self._own_term_start = self.log.last_index + 1
        self.peers = {
            node: PeerProgress(self._own_term_start, recent_active=True) for node in sorted(self.members)
        }
        self.log.append([Entry(self.term, self._own_term_start, EntryKind.NOOP)])

    # ---- messages ------------------------------------------------------------------------------------

    def _answer_old_term(self, message: Message) -> None:
        """Tells a sender that is behind which term it is; it steps down or updates itself (paper 5.1)."""
        to = message.from_node
        match message.type:
            case MessageType.APPEND | MessageType.HEARTBEAT:
                self.say(MessageType.APPEND_REPLY, to, durable=True, reject=True, log_index=message.log_index)
            case MessageType.PRE_VOTE:
                self.say(MessageType.PRE_VOTE_REPLY, to, durable=True, reject=True)
            case MessageType.VOTE:
                self.say(MessageType.VOTE_REPLY, to, durable=True, reject=True)
            case MessageType.READ_INDEX:
                self.say(MessageType.READ_INDEX_REPLY, to, durable=True, reject=True, context=message.context)

    def _step_current(self, message: Message) -> None:
        """A message in this node's term, or a pre-vote's in a later one."""
        match message.type:
            case MessageType.APPEND:
                if following.accept_leader(self, message):
                    following.on_append(self, message)
            case MessageType.APPEND_REPLY:
                if self.role is Role.LEADER:
                    leading.on_append_reply(self, message)
            case MessageType.HEARTBEAT:
                if following.accept_leader(self, message):
                    following.on_heartbeat(self, message)
            case MessageType.HEARTBEAT_REPLY:
                if self.role is Role.LEADER:
                    leading.on_heartbeat_reply(self, message)
            case MessageType.PRE_VOTE | MessageType.VOTE:
                election.on_request(self, message)
            case MessageType.PRE_VOTE_REPLY | MessageType.VOTE_REPLY:
                election.on_reply(self, message)
            case MessageType.READ_INDEX:
                read = Read(message.from_node, message.context, 0)
                if self.role is Role.LEADER:
                    self.reads.add(read.node, read.request)
                else:
                    self.answer_read(read, None)
            case MessageType.READ_INDEX_REPLY:
                if (
                    message.from_node == self.leader
                    and self._forwarded_reads.pop(message.context, None) is not None
                ):
                    own = Read(self.node_id, message.context, 0)
                    self.answer_read(own, None if message.reject else message.log_index)
            case MessageType.TIMEOUT_NOW:
                if following.accept_leader(self, message) and self._may_campaign:
                    election.campaign(self, pre=False, transfer=True)
