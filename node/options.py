"""A node's settings, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """What `raftstorage.node.Node` runs with. Bytes and milliseconds as named.

    `listen`: host:port of the one gRPC port; port 0 takes a free one. Empty: this node's address in `members`.
    `metrics`: host:port of the Prometheus page; empty: none.
    `cluster_id`: 32 hexadecimal digits; empty: derived from the members.
    """

    node_id: int
    directory: Path
    members: Mapping[int, str]
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

    def __post_init__(self) -> None:
        _bounds("--id", self.node_id, 1, (1 << 63) - 1)
        if not self.members:
            raise OptionError("no --member given; every node needs the list of all members, itself included")
        if self.node_id not in self.members:
            raise OptionError(f"node {self.node_id} is not among the members {sorted(self.members)}")
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
        if self.metrics:
            split_address(self.metrics)
        if self.cluster_id and not is_cluster_id(self.cluster_id):
            raise OptionError(f"--cluster-id {self.cluster_id!r} is not 32 lower-case hexadecimal digits")
        _bounds("--tick-ms", self.tick_ms, 1, 10_000)
        _bounds("--election-ticks", self.election_ticks, 3, 1000)
        _bounds("--max-record-bytes", self.max_record_bytes, 1, LARGEST_TRANSACTION)
        _bounds("--max-transaction-bytes", self.max_transaction_bytes, 1, LARGEST_TRANSACTION)
        _bounds("--lease-ms", self.lease_ms, 1, 86_400_000)
        if self.log_format not in LOG_FORMATS:
            raise OptionError(f"--log-format {self.log_format!r} is not one of {', '.join(LOG_FORMATS)}")
        if self.log_level not in LOG_LEVELS:
            raise OptionError(f"--log-level {self.log_level!r} is not one of {', '.join(LOG_LEVELS)}")

    @property
    def listen_address(self) -> str:
        return self.listen or self.members[self.node_id]

    def identity(self) -> NodeIdentity:
        members = dict(sorted(self.members.items()))
        return NodeIdentity(self.cluster_id or default_cluster_id(members), self.node_id, members)


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
