"""A server that serves snapshots of the files in a folder, and a node that fetches them, over real sockets."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.parsing import RefuseMalformed
from raftstorage.node.service.peer_hello import HelloRefused, PeerInfo
from raftstorage.node.service.server import SERVER_OPTIONS
from raftstorage.node.service.snapshots import GrpcSource, SnapshotService
from raftstorage.node.snapshots import FetchOptions, ServeOptions, SnapshotFetcher, SnapshotStore
from raftstorage.node.snapshots.files import SystemSnapshotFiles
from raftstorage.proto import raft_pb2 as pb
from raftstorage.proto import raft_pb2_grpc

MIB = 1 << 20
UNLIMITED = ServeOptions(bytes_per_second=0, read_bytes_per_second=0)


@dataclass
class State:
    index: int = 10
    term: int = 2
    membership: bytes = b"members"


def hello() -> pb.PeerHello:
    return pb.PeerHello(node_id=2, to_node_id=1)


class Watched(SystemSnapshotFiles):
    """Says which threads used it, and how much was read."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.bytes_read = 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found

        def watched(*arguments: Any) -> Any:
            self.threads.add(threading.get_ident())
            return found(*arguments)

        return watched

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        data = super().read(descriptor, length, offset)
        self.bytes_read += len(data)
        return data


class Server(raft_pb2_grpc.PeersServicer):
    """A node that serves snapshots of the files in a folder."""

    def __init__(self, directory: Path, database: Path, options: ServeOptions, port: int) -> None:
        self.database = database
        self.files = Watched()
        self.metrics = NodeMetrics()
        self.peers: list[str] = []
        self.refused: HelloRefused | None = None
        self.store = SnapshotStore(
            directory / "snapshots", self.checkpoint, options=options, files=self.files, observer=self.metrics
        )
        self.service = SnapshotService(self.store)
        self.server = grpc.aio.server(interceptors=[RefuseMalformed()], options=SERVER_OPTIONS)
        raft_pb2_grpc.add_PeersServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port(f'127.0.0.1:{port}')}"
        self.source = GrpcSource(self.address, hello)

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> None:
        """As PeerTransport does."""
        self.peers.append(context.peer())
        if self.refused is not None:
            await context.abort(self.refused.code, str(self.refused))
        peer = PeerInfo(request.hello.node_id, "", "", 1, "", 1)
        await self.service.serve(peer, request, context)

    async def checkpoint(self, path: Path) -> State:
        path.mkdir()
        for file in self.database.iterdir():
            os.link(file, path / file.name)
        return State()


@asynccontextmanager
async def serving(
    directory: Path, database: Path, options: ServeOptions = UNLIMITED, port: int = 0
) -> AsyncIterator[Server]:
    server = Server(directory, database, options, port)
    await server.store.start()
    await server.server.start()
    try:
        yield server
    finally:
        await server.server.stop(0)
        await server.store.stop()


@asynccontextmanager
async def receiving(directory: Path, **changes: Any) -> AsyncIterator[SnapshotFetcher]:
    directory.mkdir(exist_ok=True)
    options = FetchOptions(backoff_seconds=(0.01, 0.05), attempts=20)
    fetching = SnapshotFetcher(directory, **{"options": options} | changes)
    try:
        yield fetching
    finally:
        await fetching.close()


def write_files(directory: Path, count: int, size: int) -> Path:
    """So many tables, and nothing that compresses."""
    directory.mkdir()
    blocks = [random.Random(n).randbytes(MIB) for n in range(4)]
    for number in range(count):
        with (directory / f"{number:06}.sst").open("wb") as file:
            for at in range(0, size, MIB):
                file.write(blocks[(number + at // MIB) % 4][: size - at])
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def sample(metrics: NodeMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"raftstorage_node_{name}", labels) or 0.0
