"""The consensus core: Raft as a state machine (Ongaro & Ousterhout's paper; Ongaro's thesis, chapters 3 to 6, 9).

Inputs: `begin`, `tick`, `step`, `propose`, `propose_membership`, `read_index`, `transfer_leader`, `persisted` and
`install_snapshot`; effects are collected by `take_output`. What the message fields carry beyond their names:

APPEND            `context` messages.TELLS_COMMIT: no entries, answered only when refused
APPEND_REPLY      `log_index`: last index known to agree, durable by the time the message leaves; with `reject` the
                  index that did not agree, and `hint_index`, `hint_term` where the follower's log may
HEARTBEAT(_REPLY) `context`: the round of reads that it confirms, 0 for none
SNAPSHOT          `log_index`, `log_term`: the leader's log begins behind this entry, which it has a state for
READ_INDEX        `context`: the request
READ_INDEX_REPLY  `context`: the request, `log_index`: the read index; with `reject` the read is lost

Nothing is said in a term before that term and the vote in it are on disk.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import changing, dispatch, election, leading, snapshots, transfer
from .changing import Leaver
from .configurations import Configurations
from .log import RaftLog
from .membership import Change, Membership
from .outbox import Outbox
from .read_index import OwnReads, Read, ReadQueue
from .tracker import PeerProgress
from .types import (
    Config,
    Entry,
    EntryKind,
    FetchSnapshot,
    HardState,
    LogReader,
    Message,
    MessageType,
    NotLeader,
    Output,
    RaftInvariantError,
    RandomSource,
    Role,
    RoleChange,
    SnapshotBase,
)


class RaftCore:
    """One node's consensus state. Used from one thread.

    `log` holds the durable entries, `hard_state` the durable vote and term, `applied` the index up to which the
    state machine has applied, `membership` that as of `applied`: by default that of a new cluster of
    `config.voters` and `config.learners`; one without members on a node that is to join. Raises
    RaftInvariantError, as every input may: Raft's own guarantees are broken (a disk lost what was durable), the
    node must stop. ValueError: `config` makes no sense.

    What "what can be asked" below lists, `config`, `log`, `term`, `role`, `leader`, `commit_index` and `voters`
    are for all to read; the other attributes and the methods from `say` on are for the modules of this folder.
    """

    def __init__(
        self,
        config: Config,
        log: LogReader,
        hard_state: HardState,
        applied: int,
        random: RandomSource,
        membership: Membership | None = None,
    ) -> None:
        config.check()
        self.config = config
        self.log = RaftLog(log)
        if applied < self.log.base:
            raise RaftInvariantError(f"applied {applied}, but the log begins behind entry {self.log.base}")
        if applied > self.log.last_index or self.log.last_term > hard_state.term:
            raise RaftInvariantError(
                f"applied {applied} and in term {hard_state.term}, but the log ends with entry "
                f"{self.log.last_index} of term {self.log.last_term}: the log or the hard state lost its end"
            )
        self.term = hard_state.term
        self.vote = hard_state.vote
        if membership is None:
            membership = Membership.initial(config.voters, config.learners)
        self.configurations = Configurations(membership, applied, self.log, config.max_apply_bytes)
        self.role = self._passive_role
        self._follow_membership()
        self.leader = 0
        self.commit_index = applied
        self.outbox = Outbox(hard_state)
        self.elapsed = 0  # ticks since the leader was heard, a vote given or a campaign begun
        self.votes: dict[int, bool] = {}  # candidate's: granted or refused
        self.peers: dict[int, PeerProgress] = {}  # leader's, of all other members
        self.leavers: dict[int, Leaver] = {}  # leader's
        self.reads = ReadQueue()  # leader's
        self.transferring_to = 0  # leader's
        self._own_term_start = 0  # index of this leader's no-op
        self.heartbeat_elapsed = 0
        self.transfer_elapsed = 0
        self.own_reads = OwnReads()
        self.fetch: FetchSnapshot | None = None
        self._given_to_apply = applied
        self._random = random
        self._announced = RoleChange(self.role, self.term, 0)
        self._announced_membership = self.membership
        self._draw_timeout()

    # ---- what can be asked ---------------------------------------------------------------------------

    @property
    def node_id(self) -> int:
        return self.config.node_id

    @property
    def last_index(self) -> int:
        return self.log.last_index

    @property
    def membership(self) -> Membership:
        """The newest in the log, committed or not: it is in effect."""
        return self.configurations.newest

    @property
    def membership_index(self) -> int:
        """Index of its entry. Of one that was handed in (at the start, with a snapshot): what it was as of."""
        return self.configurations.index

    @property
    def has_own_term_commit(self) -> bool:
        """Leads, and its no-op is committed: its commit index is the cluster's (paper, section 8)."""
        return self.role is Role.LEADER and self.commit_index >= self._own_term_start

    def progress(self) -> dict[int, PeerProgress]:
        """What the leader knows of each peer; empty elsewhere."""
        return dict(self.peers)

    # ---- inputs --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The node runs from now on. A sole voter has nobody to wait for: it campaigns at once."""
        if self.voters == (frozenset({self.node_id}),):
            election.campaign(self, pre=True)

    def tick(self) -> None:
        """One tick of time went by."""
        self.elapsed += 1
        self.outbox.tick()
        self.own_reads.tick(self.config.election_ticks)
        if self.role is Role.LEADER:
            leading.tick(self)
        elif self.elapsed >= self._timeout and self.may_campaign:
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

    def propose_membership(self, change: Change) -> int:
        """Appends an entry that changes the membership, at once in effect; returns its index.

        If the voters change it is joint: when it is committed the leader appends the entry that ends that, and
        when that one is committed a leader that has no vote any more hands over. NotLeader. MembershipError: it
        makes no sense or would come to nothing (now), with the reason.
        """
        return changing.propose(self, change)

    def install_snapshot(self, index: int, term: int, membership: Membership) -> bool:
        """The state up to and with the entry `index` of `term` is here, its membership as of there.

        True: it is what is applied now and what the log begins behind; the next Output.persist tells the disk
        (Persist.snapshot), and until then nothing behind it is applied. False: it is too old, nothing changed.
        """
        return snapshots.install(self, index, term, membership)

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
            self.own_reads.forward(request)
            self.say(MessageType.READ_INDEX, self.leader, context=request)
        else:
            self.own_reads.answer(request, None)

    def transfer_leader(self, to_node: int = 0) -> None:
        """Hands leadership to a voter (0: the furthest that lives); given up after an election timeout (3.10).

        Until then nothing can be proposed. Does nothing on a node that does not lead or for a node that is no
        other voter of the incoming configuration.
        """
        if self.role is Role.LEADER:
            transfer.start(self, to_node)

    def step(self, message: Message) -> None:
        """Takes a message of a peer. What makes no sense is ignored. RaftInvariantError."""
        dispatch.step(self, message)

    def take_output(self, apply: bool = True) -> Output:
        """All effects since the last call, in bounded pieces: call until empty. Not `apply`: nothing to apply."""
        if self.role is Role.LEADER:
            leading.start_read_round(self)
            leading.send_entries(self)
        send, persist = self.outbox.take(HardState(self.term, self.vote), self.log)
        role = RoleChange(self.role, self.term, self.leader)
        changed, self._announced = role if role != self._announced else None, role
        membership = self.membership if self.membership != self._announced_membership else None
        self._announced_membership = self.membership
        fetch, self.fetch = self.fetch, None
        applies = self._take_applicable() if apply else ()
        return Output(send, persist, applies, *self.own_reads.take(), changed, membership, fetch)

    def has_output(self) -> bool:
        """Would `take_output` return anything but an empty Output?"""
        return bool(
            self.outbox.has_any(HardState(self.term, self.vote), self.log)
            or self.own_reads
            or self.fetch is not None
            or self._given_to_apply < self._applicable
            or RoleChange(self.role, self.term, self.leader) != self._announced
            or self.membership != self._announced_membership
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
        else:
            self.own_reads.answer(read.request, index)

    def commit_to(self, index: int) -> None:
        """What is committed stays so."""
        if index <= self.commit_index:
            return
        self.commit_index = index
        self.configurations.commit(index)
        if self.role is Role.LEADER:
            changing.on_commit(self)
        else:
            self._refresh_role()

    @property
    def _applicable(self) -> int:
        """What is committed is applied when it is durable here, and so is the state that it follows."""
        return self._given_to_apply if self.log.is_restoring else min(self.commit_index, self.log.stable)

    def _take_applicable(self) -> tuple[Entry, ...]:
        ready = self._applicable
        if ready <= self._given_to_apply:
            return ()
        entries = self.log.entries(
            self._given_to_apply + 1, ready + 1, self.config.max_apply_bytes, self.config.max_message_entries
        )
        self._given_to_apply = entries[-1].index
        return entries

    # ---- the log and the membership in it ------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Puts consecutive entries behind the last one; a membership among them is in effect at once."""
        self.log.append(entries)
        if self.configurations.append(entries):
            self._follow_membership()

    def truncate(self, index: int) -> None:
        """Forgets the entries from `index` on, and the memberships in them. RaftInvariantError."""
        self.log.truncate(index, self.commit_index)
        if self.configurations.truncate(index):
            self._follow_membership()

    def replace_log(self, base: SnapshotBase) -> None:
        """All up to `base` is committed and applied, by a state that came from elsewhere."""
        keep = self.log.matches(base.index, base.term)
        self.log.restore(base)
        self.configurations.restore(base.index, base.membership, keep=keep)
        self.commit_index = self._given_to_apply = base.index
        self._follow_membership()

    def _follow_membership(self) -> None:
        self.members = self.membership.ids - {self.node_id}
        #: Each of these voter sets must agree; two while a joint change is under way.
        self.voters: tuple[frozenset[int], ...] = self.membership.configurations
        if self.role is Role.LEADER:
            changing.on_membership(self)
        else:
            self._refresh_role()

    def _refresh_role(self) -> None:
        if self.role in (Role.FOLLOWER, Role.LEARNER):
            self.role = self._passive_role

    # ---- roles ---------------------------------------------------------------------------------------

    @property
    def may_campaign(self) -> bool:
        return self.configurations.may_campaign(self.node_id) and not self.disk_hangs

    @property
    def disk_hangs(self) -> bool:
        """No write ended for two election timeouts: whoever leads so answers nobody, and a vote is never said."""
        return self.outbox.silent_ticks >= 2 * self.config.election_ticks

    @property
    def _passive_role(self) -> Role:
        return Role.FOLLOWER if self.configurations.may_campaign(self.node_id) else Role.LEARNER

    @property
    def hears_leader(self) -> bool:
        return self.leader != 0 and self.elapsed < self.config.election_ticks

    def _draw_timeout(self) -> None:
        """Randomized election timeouts (paper 5.2)."""
        self._timeout = self._random.randrange(self.config.election_ticks, 2 * self.config.election_ticks)

    def become(self, role: Role, term: int, leader: int = 0) -> None:
        """Enters a role afresh. All that belonged to the old one, or to the old leader, is dropped."""
        for read in self.reads.clear():
            self.answer_read(read, None)
        self.own_reads.lose_forwarded()
        if term != self.term:
            self.term = term
            self.vote = 0
        self.role = role
        self.leader = leader
        self.elapsed = 0
        self.votes = {}
        self.peers = {}
        self.leavers = {}
        self.transferring_to = 0
        self._draw_timeout()

    def become_follower(self, term: int, leader: int) -> None:
        self.become(self._passive_role, term, leader)

    def become_leader(self) -> None:
        self.become(Role.LEADER, self.term, self.node_id)
        self.heartbeat_elapsed = 0
        self._own_term_start = self.log.last_index + 1
        self.peers = {node: PeerProgress(self._own_term_start) for node in sorted(self.members)}
        self.log.append([Entry(self.term, self._own_term_start, EntryKind.NOOP)])
