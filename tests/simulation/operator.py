"""Who changes the membership while everything breaks: has leaders do it, and starts the nodes that come."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from raftstorage.node.driver import LeadershipLost
from raftstorage.node.members import NoSuchMember
from raftstorage.node.raft.membership import MemberRole, MembershipError
from raftstorage.node.raft.types import NotLeader

from tests.simulation.node import SimNode
from tests.simulation.world import Violation, World

#: More nodes than this a run never has, those that were removed included.
MOST_NODES = 8
CHANGE_SECONDS = 3.0


class Operator:
    """`new_node(id, address)` makes and starts a node that is to join."""

    def __init__(self, world: World, nodes: dict[int, SimNode], new_node: Callable[[int, str], None]) -> None:
        self._world = world
        self._nodes = nodes
        self._new_node = new_node
        self.changes = 0  # that came about
        self._directories = 0  # of nodes that asked to be let in
        self._ids: dict[int, str] = {}  # what such a node was told, and its directory

    def change(self, leader: SimNode, what: str, number: int) -> None:
        """`number` says which of the members that `what` may concern."""
        if leader.loop is None:
            return
        members = leader.members.membership.members
        voters = [m.node_id for m in members if m.role is MemberRole.VOTER]
        learners = [m.node_id for m in members if m.role is MemberRole.LEARNER]
        work: Callable[[], Coroutine[Any, Any, Any]] | None = None
        heard = True
        if what == "let in" and len(self._nodes) < MOST_NODES:
            self._directories += 1
            instance = f"{self._directories:032x}"
            work = partial(leader.members.admit, f"new{self._directories}:1", instance, 1)
            if number % 3 == 0:  # its answers are lost, but for the last one's
                heard = False
                for seconds, last in ((0.05, False), (0.4, True)):
                    self._world.after(seconds, partial(self._ask, leader, leader.lives, work, heard=last))
        elif what == "promote" and learners:
            work = partial(leader.members.promote, learners[number % len(learners)])
        elif what == "demote" and len(voters) > 1:
            work = partial(leader.members.demote, voters[number % len(voters)])
        elif what == "remove" and len(members) > 1:
            work = partial(leader.members.remove, members[number % len(members)].node_id)
        elif what == "replace" and learners:
            old = voters[number % len(voters)]
            work = partial(leader.members.promote, learners[number % len(learners)], old)
        if work is not None:
            self._world.say(f"{leader.name} is to {what}, {number}")
            self._ask(leader, leader.lives, work, heard=heard)

    def _ask(
        self, leader: SimNode, life: int, work: Callable[[], Coroutine[Any, Any, Any]], *, heard: bool
    ) -> None:
        if leader.loop is not None and leader.lives == life:
            carry_out = partial(self._carry_out, leader, work, heard)
            leader.loop.call_soon(lambda: leader.loop and leader.loop.create_task(carry_out()))

    async def _carry_out(self, leader: SimNode, work: Callable[[], Coroutine[Any, Any, Any]], heard: bool) -> None:
        try:
            outcome = await work()
        except (NotLeader, MembershipError, NoSuchMember, LeadershipLost, TimeoutError) as error:
            self._world.say(f"{leader.name} does not change the members: {error!r}")
            return
        if not isinstance(outcome, tuple):
            self.changes += 1
        else:
            member = outcome[0]
            self.changes += member.node_id not in self._ids
            if self._ids.setdefault(member.node_id, member.instance) != member.instance:
                raise Violation(f"two nodes are told that they are node {member.node_id}")
            if heard:  # not in here, where the leader's loop is the one that runs
                self._world.after(0.0, lambda: self._begin(member.node_id, member.address))
        self._world.say(f"{leader.name} has changed the members")

    def _begin(self, node_id: int, address: str) -> None:
        if node_id not in self._nodes:
            self._new_node(node_id, address)
