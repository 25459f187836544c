"""Streams between nodes, over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from raftstorage.node.service.peer_hello import Greeter
from raftstorage.node.service.peer_link import BATCH_BYTES, QUEUE_BYTES, QUEUE_MESSAGES, Link, Outbox
from raftstorage.proto import raft_pb2 as pb
from raftstorage.proto import raft_pb2_grpc

from tests.unit.node.peer_nodes import Nodes, exchange, hello, message, run, until


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
                link.over.set()
            await until(lambda: not nodes.transports[1].connected(2))
            nodes.transports[1].send(message(1, 2, 1))  # lost, and nobody waits for it
            await nodes.connected(1, 2)
            nodes.transports[1].send(message(1, 2, 2))
            await until(lambda: nodes.got[2])
            assert [each.context for each in nodes.got[2]] == [2]
            sample = nodes.nodes[1].metrics.registry.get_sample_value
            assert sample("raftstorage_node_peer_connected", {"peer": "2"}) == 1

    run(work())


@pytest.mark.parametrize("error", [asyncio.InvalidStateError("RPC already finished."), OSError("unheard of")])
def test_a_dialer_outlives_every_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that met the end of its stream ended its dialer for good: one more node down, and none led again."""
    broken = asyncio.Event()

    async def work() -> None:
        write = Link._write

        async def fail_once(self: Link, stream: Any, first: Any) -> None:
            if self.dialled and not broken.is_set():
                broken.set()
                raise error
            await write(self, stream, first)

        monkeypatch.setattr(Link, "_write", fail_once)
        nodes = Nodes(2, errors=isinstance(error, OSError))
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
                assert older.over.is_set()
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
        (hello(1, 2, protocol_version=99), grpc.StatusCode.UNIMPLEMENTED, "speaks protocol 99, node 2 speaks 1"),
        (hello(1, 2, cluster_id="f" * 32), grpc.StatusCode.FAILED_PRECONDITION, "is of cluster 'ffff"),
        (hello(1, 3), grpc.StatusCode.FAILED_PRECONDITION, "this is node 2"),
        (hello(0, 2), grpc.StatusCode.FAILED_PRECONDITION, "node id 0"),
        (hello(1 << 63, 2), grpc.StatusCode.FAILED_PRECONDITION, "node id 9223372036854775808"),
        (hello(2, 2), grpc.StatusCode.FAILED_PRECONDITION, "this node itself"),
        (hello(1, 2, instance="xyz"), grpc.StatusCode.FAILED_PRECONDITION, "32 lower-case hexadecimal"),
        (
            hello(1, 2, address="nowhere"),
            grpc.StatusCode.FAILED_PRECONDITION,
            "'nowhere' of node 1 is not HOST:PORT",
        ),
        (hello(1, 2, address="a:0"), grpc.StatusCode.FAILED_PRECONDITION, "not HOST:PORT"),
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


def test_two_clusters_do_not_mix_and_say_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftstorage.node.service.peer_dialer.REFUSED_SECONDS", (0.01, 0.01))

    async def work() -> None:
        check, tries, fourth = Greeter.read, [], asyncio.Event()

        def counted(self: Greeter, *arguments: Any, **more: Any) -> Any:
            tries.append(arguments)
            if len(tries) == 4:
                fourth.set()
            return check(self, *arguments, **more)

        monkeypatch.setattr(Greeter, "read", counted)
        async with Nodes(2, {2: {"cluster_id": "f" * 32}}) as nodes:
            await fourth.wait()
            assert not nodes.transports[1].connected(2)
            problem = nodes.transports[1].problems()[0]
            assert (problem.node_id, problem.kind, problem.refused_us) == (2, "cluster", True)
            assert nodes.nodes[1].refused == [problem]
            problem = nodes.transports[2].problems()[0]
            assert (problem.node_id, problem.kind, problem.refused_us) == (1, "cluster", False)
            assert nodes.nodes[2].refused == []

    with caplog.at_level(logging.WARNING):
        run(work())
    texts = [record.getMessage() for record in caplog.records]
    refused = [text for text in texts if text.startswith("peer 2: ") and "FAILED_PRECONDITION" in text]
    assert len(refused) == 1, texts
    assert len([text for text in texts if text.startswith("peer 1: ")]) == 1, texts


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
            sample = nodes.nodes[1].metrics.registry.get_sample_value
            assert sample("raftstorage_node_peer_dropped_total", {"peer": "2"}) == 10
            await until(lambda: len(nodes.got[2]) == QUEUE_MESSAGES)

    run(work())
