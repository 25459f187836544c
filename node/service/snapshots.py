"""Snapshots over gRPC: serving them to peers, and pulling one from a peer on a connection of its own."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from raftstorage.node.service.peer_dialer import CHANNEL_OPTIONS
from raftstorage.node.service.peer_hello import PeerInfo
from raftstorage.node.snapshots.api import LARGEST_CHUNK, SnapshotError, SourceFailed
from raftstorage.node.snapshots.serve import BadRequest, SnapshotDamaged, stream
from raftstorage.node.snapshots.store import SnapshotStore, TooManyReceivers
from raftstorage.proto import raft_pb2 as pb
from raftstorage.proto import raft_pb2_grpc

log = logging.getLogger(__name__)

#: A manifest of 100,000 files has some 4 MB.
MAX_MESSAGE_BYTES = 16 * LARGEST_CHUNK
_MINE = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
#: As a peer's but for the sizes, and never a connection that another channel has: nothing waits behind a snapshot.
SNAPSHOT_CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *((name, value) for name, value in CHANNEL_OPTIONS if name not in _MINE),
    *((name, MAX_MESSAGE_BYTES) for name in _MINE),
    ("grpc.use_local_subchannel_pool", 1),
]

_CODES: list[tuple[type[Exception], grpc.StatusCode]] = [
    (TooManyReceivers, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (BadRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (SnapshotDamaged, grpc.StatusCode.DATA_LOSS),
    (SnapshotError, grpc.StatusCode.UNAVAILABLE),
    (OSError, grpc.StatusCode.UNAVAILABLE),
]
#: What a source that answers so will answer again.
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.DATA_LOSS,
    }
)


class SnapshotService:
    """The servicer's part for `Peers.Snapshot`.

    `damaged(folder)` is called when a file of a snapshot
    is not what it was: so is the database's, which it is a link to.
    """

    def __init__(
        self,
        store: SnapshotStore,
        damaged: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self._store = store
        self._damaged = damaged

    async def serve(self, peer: PeerInfo, request: pb.SnapshotRequest, context: Any) -> None:
        """gRPC handler. A chunk is read when gRPC has room for it, so that what waits is bounded by its window."""
        try:
            async with aclosing(stream(self._store, f"node {peer.node_id}", request, self._damaged)) as chunks:
                async for chunk in chunks:
                    await context.write(chunk)
        except (SnapshotError, OSError) as error:
            if not isinstance(error, TooManyReceivers | BadRequest):
                self._store.observer.snapshot_failed("serve")
                log.error("the snapshot for node %d broke off: %s", peer.node_id, error)
            code = next(code for kind, code in _CODES if isinstance(error, kind))
            await context.abort(code, str(error))


class GrpcSource:
    """A SnapshotSource: the peer at `address` (host:port). `hello` is what it is to be told of this node."""

    def __init__(self, address: str, hello: Callable[[], pb.PeerHello]) -> None:
        self._address = address
        self._hello = hello

    async def open(self, request: pb.SnapshotRequest) -> AsyncGenerator[pb.SnapshotChunk, None]:
        """See SnapshotSource."""
        asked = pb.SnapshotRequest()
        asked.CopyFrom(request)
        asked.hello.CopyFrom(self._hello())
        async with grpc.aio.insecure_channel(self._address, options=SNAPSHOT_CHANNEL_OPTIONS) as channel:
            call = raft_pb2_grpc.PeersStub(channel).Snapshot(asked)  # type: ignore[no-untyped-call]
            try:
                async for chunk in call:
                    yield chunk
            except grpc.aio.AioRpcError as error:
                message = f"{self._address}: {error.code().name}: {error.details()}"
                raise SourceFailed(message, final=error.code() in _FINAL) from error
            finally:
                call.cancel()
