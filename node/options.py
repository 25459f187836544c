"""A node's settings, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raftstorage.node.identity import NodeIdentity, default_cluster_id, is_cluster_id
from raftstorage.node.versions import VERSIONS, Versions

MIB = 1 << 20
#: Above the largest transaction a message also carries its frame; gRPC's limit is set with that in mind.
LARGEST_TRANSACTION = 448 * MIB
LOG_FORMATS = ("json", "text")
LOG_LEVELS = ("debug", "info", "warning", "error")


class OptionError(ValueError):
    """A setting that a node cannot run with; the message is one line for a person."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What `raftstorage.node.Node` runs with. Bytes, seconds and milliseconds as named.

    `members`: those that the cluster is founded with; a directory that has been a node's before remembers.
    `join`: host:port of members of a running cluster that an empty directory is to become a member of; then
    `node_id` is 0, for the cluster gives the id, and `learner` keeps it from asking for a vote. `standby`: it
    waits until it is added instead. `alone`: an empty directory becomes a cluster of one.
    `rejoin`: an empty directory whose place among `members` another one had, or which was removed, joins anew
    instead of founding; one that was removed is refused. For those who start nodes and cannot look, as Kubernetes.
    `ask`: host:port of others who may know of a cluster, and need not be there; with `rejoin`.
    `join_seconds`: how long it asks to be let in before it gives up.
    `listen`: host:port of the one gRPC port; port 0 takes a free one. Empty: the address that others dial.
    `advertise`: host:port that others dial; empty: this node's address in `members`, or `listen`.
    `metrics`: host:port of the Prometheus page; empty: none.
    `cluster_id`: 32 hexadecimal digits; empty: derived from the members.
    `max_blob_bytes`: of one blob; 0: as many as there is room for.
    `log_keep_bytes`, `log_keep_seconds`: how much of the log, and how old, is kept for members that were away.
    `cache_bytes`: of the database's tables, in memory.
    `snapshot_bytes_per_second`: how fast a snapshot is sent at most.
    `disk_reserve_bytes`: with less room on the disk a leader takes no new writes; 0: `disk_space.default_reserve`.
    """

    node_id: int
    directory: Path
    members: Mapping[int, str] = field(default_factory=dict)
    listen: str = ""
    cluster_id: str = ""
    metrics: str = ""
    tick_ms: int = 50
    election_ticks: int = 10
    max_record_bytes: int = 16 * MIB
    max_transaction_bytes: int = 64 * MIB
    lease_ms: int = 30_000
    log_format: str = "text"
    log_level: str = "info"
    join: Sequence[str] = ()
    learner: bool = False
    standby: bool = False
    alone: bool = False
    advertise: str = ""
    log_keep_bytes: int = 256 * MIB
    log_keep_seconds: int = 86_400
    snapshot_bytes_per_second: int = 64 * MIB
    disk_reserve_bytes: int = 0
    join_seconds: float = 60.0
    rejoin: bool = False
    max_blob_bytes: int = 0
    cache_bytes: int = 64 * MIB
    ask: Sequence[str] = ()

    def __post_init__(self) -> None:
        _bounds("--id", self.node_id, 0, (1 << 63) - 1)
        if self.members and self.node_id not in self.members:
            raise OptionError(f"node {self.node_id} is not among the members {sorted(self.members)}")
        if self.members and self.join:
            raise OptionError("--member founds a cluster, --join enters one: give one of them")
        if self.standby and (self.members or self.join):
            raise OptionError("--standby waits to be added: give neither --member nor --join with it")
        if self.alone and (self.members or self.join or self.standby):
            raise OptionError("--alone founds a cluster of one: give no --member, --join or --standby with it")
        host = split_address(self.advertised)[0] if self.advertised else ""
        if host in ("0.0.0.0", "::"):  # noqa: S104 - looked for, not bound
            raise OptionError(f"{self.advertised}: others need an address to dial; name it with --advertise")
        if self.alone and self.advertised and split_address(self.advertised)[1] == 0:
            raise OptionError("port 0 cannot be dialled: name one with --listen or --advertise")
        if self.rejoin and not (self.members or self.join):
            raise OptionError("--rejoin is for --member and --join")
        if self.learner and not self.join:
            raise OptionError("--learner is for --join")
        if self.ask and not self.rejoin:
            raise OptionError("--ask is for --rejoin")
        for option, addresses_given in (("--join", self.join), ("--ask", self.ask)):
            for address in addresses_given:
                if split_address(address)[1] == 0:
                    raise OptionError(f"{option} {address}: port 0 cannot be dialled")
        addresses: set[str] = set()
        for node, address in self.members.items():
            _bounds("--member's id", node, 1, (1 << 63) - 1)
            if split_address(address)[1] == 0:
                raise OptionError(f"--member {node}={address}: port 0 cannot be dialled")
            if address in addresses:
                raise OptionError(f"--member {node}={address}: two members with one address")
            addresses.add(address)
        if self.listen:
            split_address(self.listen)
        if self.advertise and split_address(self.advertise)[1] == 0:
            raise OptionError(f"--advertise {self.advertise}: port 0 cannot be dialled")
        if not (self.members or self.listen or self.advertise):
            raise OptionError("no --member and no --listen given: there is no address to serve on")
        if self.metrics:
            split_address(self.metrics)
        if self.cluster_id and not is_cluster_id(self.cluster_id):
            raise OptionError(f"--cluster-id {self.cluster_id!r} is not 32 lower-case hexadecimal digits")
        _bounds("--tick-ms", self.tick_ms, 1, 10_000)
        _bounds("--election-ticks", self.election_ticks, 3, 1000)
        _bounds("--max-record-bytes", self.max_record_bytes, 1, LARGEST_TRANSACTION)
        _bounds("--max-transaction-bytes", self.max_transaction_bytes, 1, LARGEST_TRANSACTION)
        _bounds("--max-blob-bytes", self.max_blob_bytes, 0, (1 << 63) - 1)
        _bounds("--lease-ms", self.lease_ms, 1, 86_400_000)
        _bounds("--log-keep-bytes", self.log_keep_bytes, 0, 1 << 62)
        _bounds("--log-keep-seconds", self.log_keep_seconds, 1, 1 << 40)
        _bounds("--cache-bytes", self.cache_bytes, MIB, 1 << 50)
        _bounds("--snapshot-bytes-per-second", self.snapshot_bytes_per_second, 1 << 16, 1 << 40)
        _bounds("--disk-reserve-bytes", self.disk_reserve_bytes, 0, (1 << 63) - 1)
        if not 0 < self.join_seconds <= 86_400:
            raise OptionError(f"--join-seconds {self.join_seconds:g} is not between 0 and 86400")
        if self.log_format not in LOG_FORMATS:
            raise OptionError(f"--log-format {self.log_format!r} is not one of {', '.join(LOG_FORMATS)}")
        if self.log_level not in LOG_LEVELS:
            raise OptionError(f"--log-level {self.log_level!r} is not one of {', '.join(LOG_LEVELS)}")

    @property
    def others(self) -> tuple[str, ...]:
        """Addresses of members that can be asked: of those that it joins, or is founded with; and `ask`."""
        founders = tuple(self.members[each] for each in self.members if each != self.node_id)
        return (tuple(self.join) or founders) + tuple(self.ask)

    @property
    def listen_address(self) -> str:
        return self.listen or self.advertised

    @property
    def advertised(self) -> str:
        """host:port that others dial; its port is 0 when `listen` takes a free one."""
        return self.advertise or self.members.get(self.node_id, "") or self.listen

    def identity(self) -> NodeIdentity:
        """What these settings say of the node; empty fields are for its directory to know."""
        members = dict(sorted(self.members.items()))
        derived = default_cluster_id(members) if members else ""
        return NodeIdentity(self.cluster_id or derived, self.node_id, members)


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". OptionError when it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise OptionError(f"{address!r} is not HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise OptionError(f"{address!r} is not HOST:PORT; an IPv6 address goes in brackets")
    return host.strip("[]"), int(port)


def parse_members(items: Sequence[str]) -> dict[int, str]:
    """Members from "ID=HOST:PORT" items. OptionError."""
    members: dict[int, str] = {}
    for item in items:
        node, equals, address = item.partition("=")
        if not equals or not (node.isascii() and node.isdigit()):
            raise OptionError(f"--member {item!r} is not ID=HOST:PORT")
        split_address(address)
        if int(node) in members:
            raise OptionError(f"--member {item!r}: node {int(node)} is given twice")
        members[int(node)] = address
    return members


def parse_versions(text: str) -> Versions:
    """What a node is to pretend, from "MIN:MAX:LEVEL" or "MIN:MAX:LEVEL:OLDEST"; empty: the truth. OptionError.

    MIN and MAX: the protocol versions that it speaks; LEVEL and OLDEST: the feature levels that it can work with.
    """
    if not text:
        return VERSIONS
    numbers = text.split(":")
    if len(numbers) not in (3, 4) or not all(each.isascii() and each.isdigit() for each in numbers):
        raise OptionError(f"--pretend-versions {text!r} is not MIN:MAX:LEVEL")
    oldest, newest, level, oldest_level = map(int, [*numbers, "0"][:4])
    if not 1 <= oldest <= newest < 1 << 32 or not oldest_level <= level < 1 << 32:
        raise OptionError(f"--pretend-versions {text!r}: no software has such versions")
    return Versions((oldest, newest), level, oldest_level, f"{VERSIONS.software}, pretending {text}")


def _bounds(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OptionError(f"{name} {value} is not between {low} and {high}")
