"""Streams between nodes, over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import Entry, EntryKind, Message, MessageType
from raftstorage.node.service.metrics import NodeMetrics
from raftstorage.node.service.peers import BATCH_BYTES, QUEUE_BYTES, QUEUE_MESSAGES, Outbox, PeerTransport
from raftstorage.node.service.server import SERVER_OPTIONS
from raftstorage.proto import PROTOCOL_VERSION, raft_pb2_grpc
from raftstorage.proto import raft_pb2 as pb

CLUSTER = "0123456789abcdef" * 2


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


def message(from_node: int, to_node: int, context: int, data: bytes = b"") -> Message:
    if data:
        return Message(
            MessageType.APPEND,
            from_node,
            to_node,
            1,
            entries=(Entry(1, 1, EntryKind.COMMAND, data),),
            context=context,
        )
    return Message(MessageType.HEARTBEAT, from_node, to_node, 1, context=context)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


class Nodes:
    """Transports with servers of their own, in one loop. `got[n]`: what node n received."""

    def __init__(self, count: int, cluster_ids: dict[int, str] | None = None) -> None:
        self.count = count
        self.cluster_ids = cluster_ids or {}
        self.transports: dict[int, PeerTransport] = {}
        self.metrics: dict[int, NodeMetrics] = {}
        self.members: dict[int, str] = {}
        self.got: dict[int, list[Message]] = {node: [] for node in range(1, count + 1)}
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Nodes:
        servers = {}
        for node in self.got:
            servers[node] = grpc.aio.server(options=SERVER_OPTIONS)
            self.members[node] = f"127.0.0.1:{servers[node].add_insecure_port('127.0.0.1:0')}"
        for node, server in servers.items():
            identity = NodeIdentity(self.cluster_ids.get(node, CLUSTER), node, self.members)
            self.metrics[node] = NodeMetrics()
            self.transports[node] = PeerTransport(identity, self.metrics[node], self.got[node].extend)
            raft_pb2_grpc.add_PeersServicer_to_server(self.transports[node], server)
            await server.start()
            self.stack.push_async_callback(server.stop, 0)
        for node in self.got:
            await self.transports[node].start()
            self.stack.push_async_callback(self.transports[node].stop)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stack.aclose()

    async def connected(self, *nodes: int) -> None:
        for node in nodes:
            for peer in nodes:
                if node != peer:
                    await until(lambda node=node, peer=peer: self.transports[node].connected(peer))


async def exchange(
    address: str, first: pb.PeerBatch, *batches: pb.PeerBatch
) -> tuple[list[pb.PeerBatch], grpc.StatusCode, str]:
    """Speaks as a peer that dialled in: what came back, and how it ended.

    With `first` alone it waits for the other side to end: a write into a stream that is being refused hides the
    status (the library makes INTERNAL of it).
    """
    async with grpc.aio.insecure_channel(address) as channel:
        call = raft_pb2_grpc.PeersStub(channel).Exchange()
        answers = []
        try:
            for batch in (first, *batches):
                await call.write(batch)
            if batches:
                await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF:
                answers.append(answer)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return answers, await call.code(), await call.details()


def hello(node: int, to: int, **changes: Any) -> pb.PeerBatch:
    fields = {"protocol_version": PROTOCOL_VERSION, "cluster_id": CLUSTER, "node_id": node, "to_node_id": to}
    return pb.PeerBatch(hello=pb.PeerHello(**fields | changes))


def test_all_pairs_connect_and_keep_order() -> None:
    async def work() -> None:
        async with Nodes(3) as nodes:
            await nodes.connected(1, 2, 3)
            for sender in (1, 2, 3):
                for to in {1, 2, 3} - {sender}:
                    for context in range(1000):
                        nodes.transports[sender].send(message(sender, to, context))
            for node, got in nodes.got.items():
                await until(lambda got=got: len(got) == 2000)
                for sender in {1, 2, 3} - {node}:
                    assert [each.context for each in got if each.from_node == sender] == list(range(1000))

    run(work())


def test_an_entry_larger_than_a_batch_gets_through() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            await nodes.connected(1, 2)
            data = bytes(BATCH_BYTES + 1_000_000)
            nodes.transports[1].send(message(1, 2, 1, data))
            nodes.transports[1].send(message(1, 2, 2))
            await until(lambda: len(nodes.got[2]) == 2)
            assert nodes.got[2][0].entries[0].data == data

    run(work())


def test_a_peer_that_was_away_is_connected_again() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            await nodes.connected(1, 2)
            for link in list(nodes.transports[2]._links.values()):
                link.replaced.set()
            await until(lambda: not nodes.transports[1].connected(2))
            nodes.transports[1].send(message(1, 2, 1))  # lost, and nobody waits for it
            await nodes.connected(1, 2)
            nodes.transports[1].send(message(1, 2, 2))
            await until(lambda: nodes.got[2])
            assert [each.context for each in nodes.got[2]] == [2]
            sample = nodes.metrics[1].registry.get_sample_value
            assert sample("raftstorage_node_peer_connected", {"peer": "2"}) == 1

    run(work())


@pytest.mark.parametrize("error", [asyncio.InvalidStateError("RPC already finished."), OSError("unheard of")])
def test_a_dialer_outlives_every_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that met the end of its stream ended its dialer for good: one more node down, and none led again."""
    broken = asyncio.Event()

    async def work() -> None:
        write = PeerTransport._write

        async def fail_once(self: PeerTransport, stream: Any, link: Any) -> None:
            if self is nodes.transports[1] and not broken.is_set():  # the one that dials
                broken.set()
                raise error
            await write(self, stream, link)

        monkeypatch.setattr(PeerTransport, "_write", fail_once)
        nodes = Nodes(2)
        async with nodes:
            await broken.wait()
            await nodes.connected(1, 2)
            for sender, to in ((1, 2), (2, 1)):
                await until(
                    lambda sender=sender, to=to: (
                        nodes.transports[sender].send(message(sender, to, 7)) or nodes.got[to]
                    )
                )

    run(work())


def test_a_newer_stream_replaces_the_older() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            await nodes.connected(1, 2)
            older = nodes.transports[2]._links[1]
            async with grpc.aio.insecure_channel(nodes.members[2]) as channel:
                call = raft_pb2_grpc.PeersStub(channel).Exchange()
                await call.write(hello(1, 2))
                answer = await call.read()
                assert answer.hello.node_id == 2
                assert older.replaced.is_set()
                await call.write(
                    pb.PeerBatch(messages=[pb.RaftMessage(type=7, from_node=1, to_node=2, context=77)])
                )
                await until(lambda: nodes.got[2])
                call.cancel()
            assert nodes.got[2][0].context == 77

    run(work())


@pytest.mark.parametrize(
    ("first", "code", "why"),
    [
        (hello(1, 2, protocol_version=99), grpc.StatusCode.UNIMPLEMENTED, "speaks protocol 99"),
        (hello(1, 2, cluster_id="f" * 32), grpc.StatusCode.FAILED_PRECONDITION, "is of cluster 'ffff"),
        (hello(1, 3), grpc.StatusCode.FAILED_PRECONDITION, "this is node 2"),
        (hello(7, 2), grpc.StatusCode.FAILED_PRECONDITION, "no other member"),
        (hello(2, 2), grpc.StatusCode.FAILED_PRECONDITION, "no other member"),
        (hello(3, 2), grpc.StatusCode.FAILED_PRECONDITION, "for node 2 to dial"),
        (pb.PeerBatch(), grpc.StatusCode.FAILED_PRECONDITION, "not a hello"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused(first: pb.PeerBatch, code: grpc.StatusCode, why: str) -> None:
    async def work() -> None:
        async with Nodes(3) as nodes:
            answers, ended, details = await exchange(nodes.members[2], first)
            assert (answers, ended) == ([], code)
            assert why in details
            assert nodes.got[2] == []

    run(work())


def test_two_clusters_do_not_mix_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with Nodes(2, cluster_ids={2: "f" * 32}) as nodes:
            first: asyncio.Event = asyncio.Event()
            transport = nodes.transports[2]
            check, tries = transport._check_hello, []

            def counted(batch: pb.PeerBatch, dialled: int | None) -> int:
                tries.append(batch)
                if len(tries) == 4:
                    first.set()
                return check(batch, dialled)

            transport._check_hello = counted  # type: ignore[method-assign]
            await first.wait()
            assert not nodes.transports[1].connected(2)

    with caplog.at_level(logging.WARNING):
        run(work())
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if text.startswith("peer 2: ")]) == 1, texts
    assert "FAILED_PRECONDITION" in texts[0] or "FAILED_PRECONDITION" in texts[1]
    assert len([text for text in texts if text.startswith("peer unknown: ")]) == 1, texts


def test_messages_that_are_not_this_streams_do_not_reach_the_core() -> None:
    async def work() -> None:
        async with Nodes(3) as nodes:
            wire = [
                pb.RaftMessage(type=7, from_node=3, to_node=2, context=1),
                pb.RaftMessage(type=7, from_node=1, to_node=3, context=2),
                pb.RaftMessage(type=55, from_node=1, to_node=2, context=3),  # type: ignore[arg-type]
                pb.RaftMessage(type=7, from_node=1, to_node=2, context=4),
            ]
            await nodes.transports[1].stop()
            answers, code, _ = await exchange(nodes.members[2], hello(1, 2), pb.PeerBatch(messages=wire))
            assert code is grpc.StatusCode.OK
            assert answers[0].hello.node_id == 2
            assert [each.context for each in nodes.got[2]] == [4]

    run(work())


def test_a_full_outbox_drops_and_never_grows() -> None:
    async def work() -> None:
        box = Outbox()
        assert all(box.put(message(1, 2, n)) for n in range(QUEUE_MESSAGES))
        assert not box.put(message(1, 2, 0))
        assert len((await box.take()).messages) == QUEUE_MESSAGES
        big = message(1, 2, 0, bytes(QUEUE_BYTES // 4))
        taken = [box.put(big) for _ in range(5)]
        assert taken == [True, True, True, False, False]
        assert box.put(message(1, 2, 0))
        sizes = [len((await box.take()).messages) for _ in range(4)]
        assert sizes == [1, 1, 1, 1]
        assert box.put(message(1, 2, 0, bytes(QUEUE_BYTES + 1))), "a single message must have room in an empty box"

    run(work())


def test_what_does_not_fit_is_counted() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            await nodes.connected(1, 2)
            batch: Sequence[int] = range(QUEUE_MESSAGES + 10)
            for context in batch:  # in one turn of the loop: nothing leaves meanwhile
                nodes.transports[1].send(message(1, 2, context))
            sample = nodes.metrics[1].registry.get_sample_value
            assert sample("raftstorage_node_peer_dropped_total", {"peer": "2"}) == 10
            await until(lambda: len(nodes.got[2]) == QUEUE_MESSAGES)

    run(work())
