"""Two of three nodes, whose third is a test that may say anything."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from raftstorage.node.node import Node
from raftstorage.node.options import NodeOptions
from raftstorage.proto import PROTOCOL_VERSION
from raftstorage.proto import raft_pb2 as pb

from tests.unit.service.fuzzing import Problems, Witness, exchange

EXCHANGE = "/raftstorage.v1.Peers/Exchange"


class Fuzzed:
    """Nodes 2 and 3 of three, in a loop that only runs while a test does. The test is node 1, which dials both."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.runner = stack.enter_context(asyncio.Runner())
        self.problems = Problems()
        with ExitStack() as ports:
            sockets = [ports.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            members = {number: f"127.0.0.1:{each.getsockname()[1]}" for number, each in enumerate(sockets, 1)}
        self.nodes = [
            Node(NodeOptions(number, directory / str(number), members, tick_ms=20), fatal=self.problems.fatal)
            for number in (2, 3)
        ]
        self.witnesses = [Witness() for _ in self.nodes]
        self.cluster_id = self.nodes[0].identity.cluster_id
        self.run(self._start())

    async def _start(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self.problems.unhandled)
        for node in self.nodes:
            await node.start()
        await self._leader()

    async def _leader(self) -> Node:
        while not any(node.driver.is_ready_leader for node in self.nodes):  # noqa: ASYNC110 - one of several
            await asyncio.sleep(0.01)
        return next(node for node in self.nodes if node.driver.is_ready_leader)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, 60))

    def talk(self, to: int, *batches: bytes, ends: bool) -> tuple[grpc.StatusCode | None, str]:
        """How the stream ended; without `ends` it is given up after a moment."""
        address = self.nodes[to - 2].address
        end = time.monotonic() + 0.05  # a leader goes on talking, a follower is silent

        async def send() -> tuple[grpc.StatusCode | None, str]:
            try:
                if ends:
                    return (await exchange(address, EXCHANGE, batches, lambda got: False))[1:]
                return (await exchange(address, EXCHANGE, batches, lambda got: time.monotonic() > end, 0.05))[1:]
            except AssertionError:
                return None, ""

        code, details = self.run(send())
        return code, details

    def check(self) -> None:
        """Both have what was committed, and nothing else."""

        async def serve() -> None:
            await self.witnesses[0].serves_in_time(self._leader)
            committed = max(node.driver.commit_index for node in self.nodes)
            for node in self.nodes:
                await node.driver.wait_applied(committed)

        before = self.witnesses[0].probes
        self.run(serve())
        for witness, node in zip(self.witnesses, self.nodes, strict=True):
            assert len(witness.replay(node)) == self.witnesses[0].probes - before
        assert len({node.driver.engine.digest() for node in self.nodes}) == 1
        assert not self.problems.found, self.problems.found.pop()

    def hello(self, to: int, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "cluster_id": self.cluster_id,
            "node_id": 1,
            "to_node_id": to,
        }
        return pb.PeerBatch(hello=pb.PeerHello(**fields | changes)).SerializeToString()
