"""How two nodes introduce themselves to each other, and who is refused."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.options import OptionError, split_address
from raftstorage.node.versions import Versions, agreed
from raftstorage.proto import raft_pb2 as pb
from raftstorage.proto.versions import named, spoken

#: Trailing metadata of a refused stream: which kind of refusal it is.
REFUSAL_KEY = "raftstorage-refusal"

_INSTANCE = re.compile(r"[0-9a-f]{32}|")
_MAX_ID = (1 << 63) - 1
_MAX_ADDRESS = 300
_MAX_SOFTWARE = 64


class Refused(enum.StrEnum):
    """Why a hello was refused."""

    HELLO = "hello"  # malformed
    VERSION = "version"  # no common protocol version
    CLUSTER = "cluster"
    NODE = "node"  # another node was called for, or answered
    INSTANCE = "instance"  # another directory than that member's
    BUSY = "busy"


_CODES = {Refused.VERSION: grpc.StatusCode.UNIMPLEMENTED, Refused.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED}


class HelloRefused(Exception):
    """The other's hello does not fit. `code`: what its stream is ended with; `node_id`: who it says it is."""

    def __init__(self, kind: Refused, details: str, node_id: int = 0) -> None:
        super().__init__(details)
        self.kind = kind
        self.code = _CODES.get(kind, grpc.StatusCode.FAILED_PRECONDITION)
        self.node_id = node_id


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What a peer said of itself in a hello that was accepted.

    `instance`: 32 hexadecimal digits that name its directory; `address`: host:port at which it wants to be
    dialled; both may be empty. `version`: newest feature level it knows. `protocol`: the version that is spoken
    with it.
    """

    node_id: int
    instance: str
    address: str
    version: int
    software: str
    protocol: int


class Greeter:
    """Makes this node's hellos and judges others'.

    `instance` and `address` are this node's own. `known_instance(node id)`: the directory that the membership
    has for a member; empty: not known.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        versions: Versions,
        instance: str,
        address: str,
        known_instance: Callable[[int], str],
    ) -> None:
        self._identity = identity
        self._versions = versions
        self._instance = instance
        self._address = address
        self._known_instance = known_instance

    def hello(self, to_node: int) -> pb.PeerHello:
        """This node's, for `to_node`."""
        oldest, newest = self._versions.protocol
        return pb.PeerHello(
            protocol_version=newest,
            min_protocol_version=oldest,
            cluster_id=self._identity.cluster_id,
            node_id=self._identity.node_id,
            to_node_id=to_node,
            instance=self._instance,
            address=self._address,
            version=self._versions.level,
            software=self._versions.software,
        )

    def read(self, batch: pb.PeerBatch, called: int = 0, live: PeerInfo | None = None) -> PeerInfo:
        """As `check`, for the first batch of a stream."""
        if not batch.HasField("hello") or batch.messages or batch.HasField("status"):
            raise HelloRefused(Refused.HELLO, "the first batch is not a hello alone")
        return self.check(batch.hello, called, live)

    def check(self, hello: pb.PeerHello, called: int = 0, live: PeerInfo | None = None) -> PeerInfo:
        """Who it is; HelloRefused. `called`: who was dialled and must answer, 0: it dialled.

        Whether it is a member makes no difference: this node's membership may be older than the other's.
        """
        peer, mine = int(hello.node_id), self._identity
        theirs, speaks = spoken(hello.protocol_version, hello.min_protocol_version), self._versions.protocol
        protocol = agreed(speaks, theirs)
        if protocol is None:
            why = f"node {peer} speaks protocol {named(theirs)}, node {mine.node_id} speaks {named(speaks)}"
            raise HelloRefused(Refused.VERSION, why, peer)
        if hello.cluster_id != mine.cluster_id:
            why = (
                f"node {peer} is of cluster {hello.cluster_id[:64]!r}, node {mine.node_id} of {mine.cluster_id!r}"
            )
            raise HelloRefused(Refused.CLUSTER, why, peer)
        if hello.to_node_id != mine.node_id:
            why = f"node {hello.to_node_id} was called for, this is node {mine.node_id}"
            raise HelloRefused(Refused.NODE, why, peer)
        if called and peer != called:
            raise HelloRefused(Refused.NODE, f"node {peer} answered in place of node {called}", peer)
        if peer == mine.node_id:
            raise HelloRefused(Refused.NODE, f"node {peer} is this node itself, or another one with its id", peer)
        if not 1 <= peer <= _MAX_ID:
            raise HelloRefused(Refused.HELLO, f"node id {peer} is not between 1 and {_MAX_ID}")
        if not _INSTANCE.fullmatch(hello.instance):
            raise HelloRefused(Refused.HELLO, "an instance must be 32 lower-case hexadecimal digits", peer)
        _check_address(hello)
        info = PeerInfo(peer, hello.instance, hello.address, hello.version, _printable(hello.software), protocol)
        self.check_instance(info, live)
        return info

    def check_instance(self, peer: PeerInfo, live: PeerInfo | None) -> None:
        """HelloRefused when `peer` comes with another directory than the member's, or than `live`, who is here."""
        node, known = peer.node_id, self._known_instance(peer.node_id)
        if known and peer.instance != known:
            what = f"node {node} came with another directory than the one that is member {node}"
        elif not known and live is not None and peer.instance != live.instance:
            what = f"node {node} came with another directory than the one that is connected as node {node}"
        else:
            return
        why = (
            f"{what}: it lost its disk, or two nodes run with one id; let it join as a new member: "
            f"raftstorage serve --dir NEW --join {self._address or 'HOST:PORT'}"
        )
        raise HelloRefused(Refused.INSTANCE, why, node)


def _check_address(hello: pb.PeerHello) -> None:
    address = hello.address
    if not address:
        return
    try:
        usable = len(address) <= _MAX_ADDRESS and address.isprintable() and split_address(address)[1] > 0
    except OptionError:
        usable = False
    if not usable:
        why = f"the address {address[:_MAX_ADDRESS]!r} of node {hello.node_id} is not HOST:PORT"
        raise HelloRefused(Refused.HELLO, why, hello.node_id)


def _printable(text: str) -> str:
    return "".join(each for each in text[:_MAX_SOFTWARE] if each.isprintable())


def refusal_of(error: grpc.aio.AioRpcError) -> str:
    """The kind of refusal that a stream was ended with; empty: it was none."""
    metadata: Any = error.trailing_metadata()  # pairs; its stubs say otherwise
    return next((str(value) for key, value in metadata or () if key == REFUSAL_KEY), "")


async def raise_status(call: Any) -> None:
    """Raises what the dialled side ended a stream with; returns when that was OK."""
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            await call.details(),
            call.debug_error_string(),
        )
