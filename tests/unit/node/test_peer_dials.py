"""Two streams at once between two nodes: one stays, the same on both sides. The test is one of the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from raftstorage.node.service import peers, streams
from raftstorage.node.service.peer_dialer import CHANNEL_OPTIONS, Dialer
from raftstorage.proto import raft_pb2 as pb
from raftstorage.proto import raft_pb2_grpc

from tests.unit.node.peer_nodes import Nodes, PeerNode, hello, run, until

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]


class Incoming:
    """A stream that the node dialled to the test."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.read = context.read
        self.write = context.write
        self.finish = asyncio.Event()
        self.gone = asyncio.Event()


class ByHand(raft_pb2_grpc.PeersServicer):
    """The test's own node: `me` beside the node `other`."""

    def __init__(self, me: int, other: PeerNode, stack: AsyncExitStack) -> None:
        self.me = me
        self.other = other
        self.incoming: asyncio.Queue[Incoming] = asyncio.Queue()
        self._stack = stack

    async def Exchange(self, request_iterator: Any, context: Any) -> None:
        stream = Incoming(context)
        self.incoming.put_nowait(stream)
        try:
            await stream.finish.wait()
        finally:
            stream.gone.set()

    async def dialled(self) -> Incoming:
        """The next stream that the node dials, whose hello was read and not yet answered."""
        stream = await self.incoming.get()
        assert (await stream.read()).hello.node_id == self.other.id
        return stream

    async def dial(self) -> Any:
        """A stream to the node, on which hello was said."""
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(self.other.address))
        call = raft_pb2_grpc.PeersStub(channel).Exchange()  # type: ignore[no-untyped-call]
        await call.write(self.hello())
        return call

    def hello(self) -> pb.PeerBatch:
        return hello(self.me, self.other.id)

    async def answered(self, call: Any) -> None:
        assert (await call.read()).hello.node_id == self.other.id

    def heartbeat(self, context: int) -> pb.PeerBatch:
        beat = pb.RaftMessage(type=7, from_node=self.me, to_node=self.other.id, context=context)  # type: ignore[arg-type]
        return pb.PeerBatch(messages=[beat])


@asynccontextmanager
async def pair(node: int, me: int) -> AsyncIterator[tuple[ByHand, PeerNode]]:
    """The test as node `me`, and a real node `node`, which knows it as a member."""
    async with AsyncExitStack() as stack:
        real = PeerNode(node)
        hand = ByHand(me, real, stack)
        server = grpc.aio.server()
        raft_pb2_grpc.add_PeersServicer_to_server(hand, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        await real.start({node: real.address, me: f"127.0.0.1:{port}"})
        stack.push_async_callback(real.stop)
        yield hand, real


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test does not say so itself, nothing may come of having waited long enough."""
    monkeypatch.setattr(peers, "YIELD_SECONDS", 50.0)


# ---- the node has the lower id: its own streams win --------------------------------------------------------


def test_the_lower_id_waits_for_the_answer_to_its_own_hello() -> None:
    async def work() -> None:
        async with pair(1, 2) as (hand, node):
            own = await hand.dialled()
            call = await hand.dial()
            answer = asyncio.create_task(call.read())
            await own.write(hand.hello())
            await until(lambda: node.transport.connected(2))
            link = node.transport._links[2]
            assert link.dialled and link.preferred
            assert not answer.done()
            call.cancel()  # as who has taken the lower id's hello does
            await own.write(hand.heartbeat(5))
            await until(lambda: node.got)
            assert node.transport._links[2] is link and not link.over.is_set()

    run(work())


def test_the_lower_id_takes_the_other_stream_when_its_own_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "YIELD_SECONDS", 0.1)

    async def work() -> None:
        async with pair(1, 2) as (hand, node):
            own = await hand.dialled()
            call = await hand.dial()
            await hand.answered(call)
            assert not node.transport._links[2].dialled
            await call.write(hand.heartbeat(5))
            await until(lambda: node.got)
            # The answer comes after all: the lower id's stream is the better one, for both.
            await own.write(hand.hello())
            assert await call.read() is EOF
            assert await call.code() is grpc.StatusCode.OK
            assert node.transport._links[2].preferred
            assert len(node.accepted) == 2

    run(work())


def test_a_stream_that_is_dead_on_the_other_side_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "YIELD_SECONDS", 0.1)

    async def work() -> None:
        async with pair(1, 2) as (hand, node):
            own = await hand.dialled()
            await own.write(hand.hello())
            await until(lambda: node.transport.connected(2))
            call = await hand.dial()  # as a node does whose machine lost power, and with it that stream
            await hand.answered(call)
            await own.gone.wait()
            await call.write(hand.heartbeat(6))
            await until(lambda: node.got)
            assert not node.transport._links[2].dialled

    run(work())


def test_a_dial_that_was_given_up_leaves_the_lower_ids_stream_alone() -> None:
    async def work() -> None:
        async with pair(1, 2) as (hand, node):
            own = await hand.dialled()
            await own.write(hand.hello())
            await until(lambda: node.transport.connected(2))
            waits, left = asyncio.Event(), asyncio.Event()
            wait = node.transport._wait_for_own

            async def watched(peer: int) -> None:
                waits.set()
                try:
                    await wait(peer)
                finally:
                    left.set()

            node.transport._wait_for_own = watched  # type: ignore[method-assign]
            call = await hand.dial()
            await waits.wait()
            call.cancel()
            await left.wait()
            await own.write(hand.heartbeat(7))
            await until(lambda: node.got)
            assert len(node.accepted) == 1 and node.transport._links[2].dialled

    run(work())


def test_the_lower_id_dials_again_when_the_others_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "YIELD_SECONDS", 0.1)

    async def work() -> None:
        async with pair(1, 2) as (hand, node):
            own = await hand.dialled()
            own.finish.set()  # refused, ended: it pauses now
            await until(lambda: node.transport.problems())
            call = await hand.dial()
            await hand.answered(call)
            call.cancel()
            own = await hand.dialled()
            await own.write(hand.hello())
            await until(lambda: node.transport.connected(2))
            assert node.transport._links[2].preferred

    run(work())


# ---- the node has the higher id: it gives way --------------------------------------------------------------


def test_the_higher_id_dials_when_it_has_something_to_send_and_not_before() -> None:
    async def work() -> None:
        async with pair(2, 1) as (hand, node):
            call = await hand.dial()
            await hand.answered(call)
            node.send(1, 4)
            assert (await call.read()).messages[0].context == 4
            assert hand.incoming.empty()
            call.cancel()
            await until(lambda: not node.transport.connected(1))
            assert hand.incoming.empty(), "nothing to send, nothing to dial for"
            node.send(1, 5)
            stream = await hand.dialled()
            await stream.write(hand.hello())
            await until(lambda: node.transport.connected(1))
            node.send(1, 6)
            assert (await stream.read()).messages[0].context == 6

    run(work())


def test_the_higher_id_gives_its_dial_up_for_the_lower_ids() -> None:
    async def work() -> None:
        async with pair(2, 1) as (hand, node):
            node.send(1, 1)
            own = await hand.dialled()
            call = await hand.dial()
            await hand.answered(call)
            await own.gone.wait()
            node.send(1, 2)
            assert (await call.read()).messages[0].context == 2
            assert node.transport._links[1].preferred and len(node.accepted) == 1
            assert node.transport.problems() == [], "it is nobody's fault"

    run(work())


def test_the_lower_ids_stream_replaces_the_higher_ids() -> None:
    async def work() -> None:
        async with pair(2, 1) as (hand, node):
            node.send(1, 1)
            own = await hand.dialled()
            await own.write(hand.hello())
            await until(lambda: node.transport.connected(1))
            call = await hand.dial()
            await hand.answered(call)
            await own.gone.wait()
            assert node.transport._links[1].preferred
            assert node.transport.problems() == []

    run(work())


# ---- both are real -----------------------------------------------------------------------------------------


def test_simultaneous_dials_settle_on_one_stream() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            one, two = nodes.nodes[1], nodes.nodes[2]
            for number in range(40):
                await nodes.connected(1, 2)
                older = one.transport._links[2], two.transport._links[1]
                for link in older:
                    link.over.set()
                # Both dial as soon as they see that there is no link.
                one.transport._dialers[2].want()
                two.transport._dialers[1].want()
                await until(lambda older=older: older[0] is not one.transport._links.get(2))
                await until(lambda older=older: older[1] is not two.transport._links.get(1))
                await two.reaches(one, number)
                await one.reaches(two, number)
            await asyncio.sleep(0.2)  # what is still under way would show by now
            before = len(one.accepted) + len(two.accepted)
            await one.reaches(two, 1000)
            await two.reaches(one, 1001)
            ends = one.transport._links[2], two.transport._links[1]
            assert ends[0].dialled != ends[1].dialled
            assert ends[0].preferred == ends[1].preferred
            assert len(one.accepted) + len(two.accepted) == before

    run(work())


# ---- dials that end badly --------------------------------------------------------------------------------


def test_a_dialer_ends_though_its_attempt_takes_no_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """grpc.aio lost one, once: the end of a node must not wait for it."""
    monkeypatch.setattr(streams, "WRITE_SECONDS", 0.05)

    async def work() -> None:
        begun, cancelled = asyncio.Event(), 0

        async def attempt(dialer: Dialer, stub: Any) -> bool:
            nonlocal cancelled
            begun.set()
            while cancelled < 2:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled += 1
            return True

        task = Dialer(2, "127.0.0.1:1", attempt, eager=True).start()
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert cancelled == 2

    run(work())


def test_a_peer_is_reached_at_the_first_try_though_connecting_takes_a_while() -> None:
    """A fifth of a second each way, as between continents, or on a machine with too much to do."""

    async def work() -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(1 << 16):
                    await asyncio.sleep(0.2)
                    writer.write(data)
            finally:
                writer.close()

        tries = 0

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal tries
            tries += 1
            to_server = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(carry(reader, to_server[1]), carry(to_server[0], writer))

        slow = await asyncio.start_server(accept, "127.0.0.1", 0)
        address = "{}:{}".format(*slow.sockets[0].getsockname())
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            await asyncio.wait_for(channel.channel_ready(), 10)
            assert tries == 1
        slow.close()
        await server.stop(0)

    run(work())
