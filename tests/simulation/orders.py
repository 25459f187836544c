"""What a node is told to do in the middle of everything."""

from __future__ import annotations

from raftstorage.node.raft.types import NotLeader
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.node import SimNode


def hand_over(node: SimNode) -> None:
    """An operator asks it to give leadership to another one."""
    if node.loop is not None:
        node.loop.call_soon(lambda: node.loop and node.loop.create_task(_hand_over(node)))


async def _hand_over(node: SimNode) -> None:
    try:
        await node.driver.transfer_leader()
    except (NotLeader, LookupError, TimeoutError) as error:
        node.world.say(f"{node.name} does not hand over: {error!r}")


def pile_up(node: SimNode, count: int) -> None:
    """Many ask for oids at once."""
    allocate = pb.Command(allocate=pb.AllocateCommand(count=1)).SerializeToString()
    if node.loop is None or node.loop.paused:
        return
    try:
        node.loop.run(lambda: node.driver.propose_many([allocate] * count))
    except NotLeader as error:
        node.world.say(f"{node.name} gets no entries: {error}")
