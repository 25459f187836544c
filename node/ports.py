"""What a driver is connected to, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.types import Message, Role


class Transport(Protocol):
    """Carries messages to peers. May lose, repeat and reorder; `send` never blocks."""

    def send(self, message: Message) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Observer(Protocol):
    """What is measured; `service.metrics.NodeMetrics` is one. Seconds; `synced` comes from the writer thread."""

    def synced(self, seconds: float, writes: int) -> None: ...
    def proposed(self, commands: int) -> None: ...
    def applied_batch(self, seconds: float, transactions: int) -> None: ...
    def lagged(self, seconds: float) -> None: ...
    def role_changed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a leader knows of a peer; zero and empty elsewhere."""

    node_id: int
    match_index: int = 0
    state: str = ""


@dataclass(frozen=True, slots=True)
class DriverStatus:
    node_id: int
    role: Role
    term: int
    leader: int
    ready: bool
    first_index: int
    last_index: int
    commit_index: int
    applied_index: int
    log_bytes: int
    peers: tuple[PeerState, ...]
    membership: Membership
    membership_index: int
