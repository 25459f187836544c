"""Changes of the membership that a leader is asked for, and may not live to see."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from raftstorage.node.driver import LeadershipLost
from raftstorage.node.members import Members
from raftstorage.node.raft.types import NotLeader

from tests.unit.node.driver_cluster import Cluster, run, until

NEW, OTHER = "a" * 32, "b" * 32


def test_a_node_is_told_its_id_only_when_nobody_else_can_get_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path) as cluster:
            members = {node: Members(driver) for node, driver in cluster.network.drivers.items()}
            old = await cluster.leader()
            cluster.network.cut.add(old.node_id)
            asked = asyncio.create_task(members[old.node_id].admit("new:1", NEW, 1))
            await until(lambda: old.membership.member(4), lambda: asyncio.sleep(0))
            again = asyncio.create_task(members[old.node_id].admit("new:1", NEW, 1))
            new = await cluster.leader()
            member, _ = await members[new.node_id].admit("other:1", OTHER, 1)
            assert (member.node_id, member.instance) == (4, OTHER), "the id was nobody's"
            for asking in (asked, again):
                with pytest.raises((LeadershipLost, NotLeader)):
                    await asking
            cluster.network.cut.clear()
            member, _ = await members[(await cluster.leader()).node_id].admit("new:1", NEW, 1)
            assert (member.node_id, member.instance) == (5, NEW)
            assert await members[(await cluster.leader()).node_id].admit("new:1", NEW, 1) == (member, 0)

    run(work())


def test_a_vote_that_is_not_committed_is_not_said_to_be_there(tmp_path: Path) -> None:
    async def work() -> None:
        async with Cluster(tmp_path, 1) as cluster:
            leader = await cluster.leader()
            members = Members(leader)
            await members.admit("new:1", NEW, 1)
            # Node 2 is heard as a learner, and then not any more: the joint change can never be committed.
            leader._core.peers[2].hears()
            leader._core.peers[2].become_replicate()
            asked = asyncio.create_task(members.promote(2))
            await until(lambda: leader.membership.is_joint, lambda: asyncio.sleep(0))
            again = asyncio.create_task(members.promote(2))
            for asking in (asked, again):
                with pytest.raises((LeadershipLost, NotLeader)):
                    await asking

    run(work())
