"""Members that come, go and move while the nodes run, and nodes that know different memberships."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from raftstorage.node.service import peers
from raftstorage.proto import raft_pb2_grpc

from tests.unit.node.peer_nodes import Nodes, PeerNode, exchange, hello, run, until


def test_a_node_that_joins_is_dialled_and_answers() -> None:
    """It knows nobody, not even itself as a member."""

    async def work() -> None:
        async with Nodes(2) as nodes:
            new = await nodes.start(PeerNode(7), {})
            nodes.transports[1].update(nodes.members | {7: new.address})
            await nodes.nodes[1].reaches(new, 1)
            new.send(1, 2)
            await until(lambda: any(each.from_node == 7 for each in nodes.got[1]))
            assert not new.transport.connected(2), "node 2 does not know of it yet"
            assert [(info.node_id, info.address) for info in new.accepted] == [(1, nodes.members[1])]
            new.transport.update(nodes.members | {7: new.address})
            nodes.transports[2].update(nodes.members | {7: new.address})
            await until(lambda: new.transport.connected(2) and nodes.transports[2].connected(7))

    run(work())


def test_a_lower_node_with_an_old_membership_is_dialled_by_who_has_something_to_say() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            leader = await nodes.start(PeerNode(3), nodes.members)
            await leader.reaches(nodes.nodes[1], 5)
            nodes.nodes[1].send(3, 6)  # though it could not dial it
            await until(lambda: leader.got)
            assert not nodes.transports[2].connected(3), "nobody had anything to say to it"
            assert "3" in nodes.nodes[1].connected_labels()
            await leader.stop()
            await until(lambda: not nodes.transports[1].connected(3))
            assert "3" not in nodes.nodes[1].connected_labels(), "the metrics of a stranger go with it"

    run(work())


def test_the_last_messages_to_a_node_that_left_arrive_and_then_its_link_ends() -> None:
    async def work() -> None:
        async with Nodes(3) as nodes:
            await nodes.connected(1, 2, 3)
            for leaver, others in ((1, (2, 3)), (3, (2,))):
                for node in others:
                    nodes.nodes[node].send(leaver, 8)
                    nodes.transports[node].update({other: nodes.members[other] for other in others})
                    nodes.nodes[node].send(leaver, 9)
                gone = nodes.nodes[leaver]
                links = {node: nodes.transports[node]._links[leaver] for node in others}
                for node in others:
                    await until(
                        lambda node=node, gone=gone: [m.context for m in gone.got if m.from_node == node] == [8, 9]
                    )
                for link in links.values():
                    await link.over.wait()
                await gone.stop()
                for node in others:
                    await until(lambda node=node, leaver=leaver: not nodes.transports[node].connected(leaver))
                    assert str(leaver) not in nodes.nodes[node].connected_labels()
                    tasks = nodes.transports[node]._tasks
                    await until(
                        lambda leaver=leaver, tasks=tasks: (
                            not any(each.get_name().endswith(f"-{leaver}") for each in tasks)
                        )
                    )
            assert nodes.transports[2].problems() == []

    run(work())


def test_a_node_that_comes_back_in_time_keeps_its_link() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            await nodes.connected(1, 2)
            one = nodes.transports[1]
            link = one._links[2]
            one.update({1: nodes.members[1]})
            (timer,) = one._leaving.values()
            one.update(nodes.members)
            assert timer.cancelled() and one._links[2] is link and not link.over.is_set()
            link.over.set()
            await until(lambda: one._links.get(2) not in (None, link))  # it is dialled again

    run(work())


def test_an_address_that_changes() -> None:
    async def work() -> None:
        async with Nodes(2) as nodes:
            await nodes.connected(1, 2)
            elsewhere = PeerNode(2)
            moved = nodes.members | {2: elsewhere.address}
            link = nodes.transports[1]._links[2]
            nodes.transports[1].update(moved)
            await nodes.nodes[1].reaches(nodes.nodes[2], 1)
            assert nodes.transports[1]._links[2] is link, "as long as it works, it stays"
            await nodes.nodes[2].stop()
            await nodes.start(elsewhere, moved)
            await nodes.nodes[1].reaches(elsewhere, 2)
            await until(lambda: len(nodes.transports[1]._tasks) == 1)  # the dialer of the old address has ended

    run(work())


def test_a_member_whose_address_is_not_known_dials() -> None:
    async def work() -> None:
        async with Nodes(1) as nodes:
            new = await nodes.start(PeerNode(2), nodes.members)
            one = nodes.transports[1]
            one.update({1: nodes.members[1], 2: ""})
            nodes.nodes[1].send(2, 1)
            assert not one._tasks
            await new.reaches(nodes.nodes[1], 2)
            one.update({1: nodes.members[1], 2: new.address})
            assert len(one._tasks) == 1 and one.connected(2)
            one.update({1: nodes.members[1], 2: ""})
            await until(lambda: not one._tasks)

    run(work())


def test_nobody_is_dialled_at_the_address_of_before() -> None:
    """Node 4 took over the address of node 2, which was lost: both are members for a while."""

    async def work() -> None:
        async with Nodes(1) as nodes:
            new = PeerNode(4)
            members = nodes.members | {2: new.address, 4: new.address}
            await nodes.start(new, members)
            nodes.transports[1].update(members)
            await nodes.nodes[1].reaches(new, 1)
            await until(lambda: nodes.transports[1].problems())
            (problem,) = nodes.transports[1].problems()
            assert (problem.node_id, problem.kind) == (2, "node")
            assert "node 2 was called for, this is node 4" in problem.text
            nodes.transports[1].update(nodes.members | {4: new.address})
            assert nodes.transports[1].problems() == []
            assert nodes.transports[1].connected(4)

    run(work())


def test_strangers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MOST_STRANGERS", 2)

    async def work() -> None:
        async with Nodes(2) as nodes, AsyncExitStack() as stack:
            streams: list[Any] = []
            for node in (7, 8):
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(nodes.members[1]))
                streams.append(raft_pb2_grpc.PeersStub(channel).Exchange())
                await streams[-1].write(hello(node, 1))
                assert (await streams[-1].read()).hello.node_id == 1
            _answers, code, why = await exchange(nodes.members[1], hello(9, 1))
            assert (code, why) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "node 9 is no member here, and 2 others that are none are connected",
            )
            await nodes.connected(1, 2)  # a member is not counted
            streams[0].cancel()
            await until(lambda: not nodes.transports[1].connected(7))
            again = await stack.enter_async_context(grpc.aio.insecure_channel(nodes.members[1]))
            call = raft_pb2_grpc.PeersStub(again).Exchange()
            await call.write(hello(9, 1))
            assert (await call.read()).hello.node_id == 1

    run(work())


def test_random_changes_come_to_rest() -> None:
    """Memberships that differ from node to node and change all the time; then all are told the same."""

    async def work() -> None:
        rng = random.Random(1)
        async with Nodes(4) as nodes:
            members = nodes.members
            for step in range(300):
                node = rng.choice(list(nodes.nodes.values()))
                known = rng.sample(sorted(members), rng.randint(0, 4))
                node.transport.update({each: members[each] for each in known})
                node.send(rng.randint(1, 4), step)
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.random() / 20)
            for node in nodes.nodes.values():
                node.transport.update(members)
            await nodes.connected(1, 2, 3, 4)
            for node in nodes.nodes.values():
                for other in nodes.nodes.values():
                    if node is not other:
                        await node.reaches(other, 1000)
            for one in members:
                for two in range(one + 1, 5):
                    await until(lambda one=one, two=two: one_stream(nodes, one, two))
            assert not any(node.transport._leaving for node in nodes.nodes.values())

    run(work())


def one_stream(nodes: Nodes, one: int, two: int) -> bool:
    """What the two use are the ends of one stream."""
    first, second = nodes.transports[one]._links.get(two), nodes.transports[two]._links.get(one)
    return first is not None and second is not None and first.dialled != second.dialled
