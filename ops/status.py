"""What the nodes say about themselves (Admin.Status), asked of all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc
from rich.console import Console
from rich.table import Table

DEFAULT_ADDRESSES = "127.0.0.1:7441,127.0.0.1:7442,127.0.0.1:7443"

# A node that was restarted shall be seen at once, not after gRPC's default back-off of up to two minutes.
CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
]

_PLAIN_FIELDS = (
    "version",
    "protocol_version",
    "cluster_id",
    "node_id",
    "role",
    "term",
    "leader_id",
    "last_index",
    "commit_index",
    "applied_index",
    "first_index",
    "level",
    "joint",
    "disk_free_bytes",
    "disk_reserve_bytes",
    "log_bytes",
    "database_bytes",
    "objects",
    "uptime_seconds",
    "sessions",
    "disk_free_bytes",
    "disk_reserve_bytes",
)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node's answer; `reply` None: it did not answer, for the reason in `error`."""

    address: str
    reply: pb.StatusReply | None
    error: str = ""


def split_addresses(addresses: str) -> list[str]:
    """`host:port,host:port` as a list. ValueError when one is malformed or none is given."""
    result = [part.strip() for part in addresses.split(",") if part.strip()]
    for address in result:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"not an address of the form host:port: {address!r}")
    if not result:
        raise ValueError("no address given")
    return result


class StatusClient:
    """Channels to the nodes at `addresses`, for asking them again and again. A context manager."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._channels: dict[str, grpc.Channel] = {}
        self._stubs: dict[str, Any] = {}
        for address in addresses:
            self.add(address)

    def add(self, address: str) -> None:
        """Another one to ask."""
        self._channels[address] = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stubs[address] = admin_pb2_grpc.AdminStub(  # type: ignore[no-untyped-call]
            self._channels[address]
        )

    def __enter__(self) -> StatusClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def ask(
        self, timeout: float = 2.0, addresses: Sequence[str] | None = None, *, wait: bool = False
    ) -> list[NodeStatus]:
        """Every node's status (or that of `addresses`), in order, after at most `timeout` seconds.

        With `wait` a node that refuses the connection is tried until then. Never raises for a node.
        """
        wanted = list(self._stubs) if addresses is None else list(addresses)
        request = pb.StatusRequest()
        calls = [(a, self._stubs[a].Status.future(request, timeout=timeout, wait_for_ready=wait)) for a in wanted]
        result = []
        for address, call in calls:
            try:
                result.append(NodeStatus(address, call.result()))
            except grpc.RpcError as error:
                result.append(NodeStatus(address, None, _describe(error)))
        return result


def _describe(error: grpc.RpcError) -> str:
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    if not callable(code) or not callable(details):
        return repr(error)
    return f"{code().name}: {details()}"


def leader_of(statuses: Sequence[NodeStatus]) -> NodeStatus | None:
    """The node that leads in the newest term among those that answered, if one says so."""
    leaders = [s for s in statuses if s.reply is not None and s.reply.role == "leader"]
    return max(leaders, key=lambda s: s.reply.term if s.reply is not None else 0, default=None)


def has_quorum(statuses: Sequence[NodeStatus]) -> bool:
    """Whether there is a leader that a majority of its cluster's voters (itself included) follows."""
    leader = leader_of(statuses)
    if leader is None or leader.reply is None:
        return False
    reply = leader.reply
    others = [peer for peer in reply.peers if peer.member_role in ("", "voter")]
    voters = {reply.node_id} | {peer.node_id for peer in others}
    following = {
        s.reply.node_id
        for s in statuses
        if s.reply is not None
        and s.reply.cluster_id == reply.cluster_id
        and s.reply.leader_id == reply.node_id
        and s.reply.term == reply.term
    }
    # Members that were not asked count when the leader itself sees them.
    asked = {s.reply.node_id for s in statuses if s.reply is not None} | {reply.node_id}
    asked_addresses = {s.address for s in statuses}
    following |= {
        peer.node_id
        for peer in others
        if peer.connected and peer.node_id not in asked and peer.address not in asked_addresses
    }
    return len(following & voters) > len(voters) // 2


def as_json(statuses: Sequence[NodeStatus]) -> dict[str, Any]:
    """The whole cluster's status, ready for `json.dumps`."""
    leader = leader_of(statuses)
    nodes: list[dict[str, Any]] = []
    for status in statuses:
        node: dict[str, Any] = {"address": status.address, "reachable": status.reply is not None}
        reply = status.reply
        if reply is None:
            node["error"] = status.error
        else:
            node |= {name: getattr(reply, name) for name in _PLAIN_FIELDS}
            node["last_tid"] = reply.last_tid.hex()
            node["packed"] = reply.packed.hex()
            node["pack_phase"] = reply.pack_phase
            node["problems"] = list(reply.problems)
            node["peers"] = [
                {
                    "node_id": peer.node_id,
                    "address": peer.address,
                    "connected": peer.connected,
                    "match_index": peer.match_index,
                    "state": peer.state,
                    "member_role": peer.member_role,
                    "lag_entries": peer.lag_entries,
                    "lag_transactions": peer.lag_transactions,
                    "lag_bytes": peer.lag_bytes,
                    "lag_seconds": peer.lag_seconds,
                }
                for peer in reply.peers
            ]
        nodes.append(node)
    return {"leader": leader.address if leader else None, "quorum": has_quorum(statuses), "nodes": nodes}


def show(statuses: Sequence[NodeStatus], console: Console) -> None:
    """Prints the table of `raftstorage status`."""
    table = Table(title="RaftStorage cluster", box=None, padding=(0, 2, 0, 0), title_justify="left")
    for heading in ("node", "address", "role"):
        table.add_column(heading, no_wrap=True)
    for heading in ("term", "applied", "behind", "objects", "disk", "clients"):
        table.add_column(heading, justify="right", no_wrap=True)
    newest = max((s.reply.commit_index for s in statuses if s.reply is not None), default=0)
    for status in statuses:
        reply = status.reply
        if reply is None:
            table.add_row("?", status.address, "[red]no answer[/]")
            continue
        role = f"[bold green]{reply.role}[/]" if reply.role == "leader" else reply.role
        table.add_row(
            str(reply.node_id),
            status.address,
            role,
            str(reply.term),
            str(reply.applied_index),
            str(max(0, newest - reply.applied_index)),
            f"{reply.objects:,}",
            size(reply.database_bytes + reply.log_bytes),
            str(reply.sessions),
        )
    console.print(table)


def size(count: int) -> str:
    """Bytes for a person."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
