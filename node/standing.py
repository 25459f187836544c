"""How a node stands: what can be asked of its driver, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raftstorage.node.admission import Amount
from raftstorage.node.applying import Applying
from raftstorage.node.backlog import Backlog
from raftstorage.node.engine.api import Applied, Engine
from raftstorage.node.log_writer import DurableLog
from raftstorage.node.ports import DriverStatus, PeerState
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import Config, Entry, FetchSnapshot, Role, RoleChange

AppliedListener = Callable[[Sequence[tuple[Entry, Applied]]], None]


class Standing:
    """The part of `driver.Driver` that others listen to and look at. The attributes are the driver's to set."""

    config: Config
    engine: Engine
    work: Backlog
    _applying: Applying
    _core: RaftCore
    _wal: DurableLog
    _ready_term: int
    _running: bool

    def __init__(self) -> None:
        #: Called on the loop right after apply, before anything else can run there.
        self.on_applied: list[AppliedListener] = []
        self.on_role: list[Callable[[RoleChange], None]] = []
        #: Called when this node leads and has applied its own no-op.
        self.on_ready: list[Callable[[], None]] = []
        #: Called on the leader with the index of the first of some commands that were appended, and them.
        self.on_proposed: list[Callable[[int, Sequence[bytes]], None]] = []
        #: Called when the effective membership has changed, committed or not.
        self.on_membership: list[Callable[[Membership], None]] = []
        #: Called, maybe again and again, while this node needs a snapshot of the leader.
        self.on_fetch: list[Callable[[FetchSnapshot], None]] = []
        #: Called when a snapshot has replaced what the engine holds.
        self.on_installed: list[Callable[[], None]] = []

    @property
    def node_id(self) -> int:
        return self.config.node_id

    @property
    def role(self) -> Role:
        return self._core.role

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def leader(self) -> int:
        """Node id of the known leader, 0 for none."""
        return self._core.leader

    @property
    def membership(self) -> Membership:
        """The newest in the log, which is the one that counts."""
        return self._core.membership

    @property
    def membership_index(self) -> int:
        """Index of the entry that says so; 0: as the cluster was founded, or a snapshot has it."""
        return self._core.membership_index

    @property
    def first_index(self) -> int:
        """Of the log; what is older was cut."""
        return self._wal.first_index()

    @property
    def disk_hangs(self) -> bool:
        """No write to the log ended for two election timeouts."""
        return self._core.disk_hangs

    @property
    def last_index(self) -> int:
        return self._core.last_index

    @property
    def commit_index(self) -> int:
        return self._core.commit_index

    @property
    def applied_index(self) -> int:
        return self.engine.applied_index

    @property
    def backlog(self) -> Amount:
        """Entries appended and not applied, with the bytes of those that were proposed here."""
        return Amount(self.last_index - self.applied_index, self.work.proposed_bytes)

    @property
    def may_write(self) -> bool:
        """Nobody wants the engine's state to stay as it is, and it could be written without waiting."""
        return self._applying.may_write

    @property
    def running(self) -> bool:
        return self._running

    @property
    def is_ready_leader(self) -> bool:
        """Leads, and has applied its own term's no-op: its engine holds all that was ever committed before."""
        return self._core.role is Role.LEADER and self._ready_term == self._core.term

    def other_voters(self, connected: Callable[[int], bool]) -> dict[int, int]:
        """Whom a leader could hand leadership to, with the last index of each; empty when it does not lead."""
        if self._core.role is not Role.LEADER:
            return {}
        voters = self._core.membership.voters
        return {
            node: peer.match for node, peer in self._core.progress().items() if node in voters and connected(node)
        }

    def status(self) -> DriverStatus:
        core = self._core
        progress = core.progress() if core.role is Role.LEADER else {}
        peers = []
        for node in sorted(core.membership.ids - {self.node_id}):
            known = progress.get(node)
            peers.append(PeerState(node) if known is None else PeerState(node, known.match, str(known.state)))
        return DriverStatus(
            core.node_id,
            core.role,
            core.term,
            core.leader,
            self.is_ready_leader,
            self._wal.first_index(),
            core.last_index,
            core.commit_index,
            self.engine.applied_index,
            self._wal.bytes_on_disk(),
            tuple(peers),
            core.membership,
            core.membership_index,
        )
