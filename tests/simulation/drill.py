"""When all faults are over: disks fill up, and what the leader and its clients make of it is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from raftstorage.client.cluster.errors import ClientDisconnected, CommitOutcomeUnknown, StorageFull
from raftstorage.node.disk_space import KNOWN_SECONDS, LOOK_SECONDS, Room

from tests.simulation.client import Refused
from tests.simulation.disk import PLENTY
from tests.simulation.node import RESERVE, SimNode
from tests.simulation.workload import Workload
from tests.simulation.world import Violation, World

#: An attempt to hand over, the next one, and what messages take.
MOVE_SECONDS = 2 * (KNOWN_SECONDS + LOOK_SECONDS)
FILL = RESERVE // 2

#: Runs a client's work to its end; Violation with the text when it has none.
Until = Callable[[Workload, Coroutine[Any, Any, None], str], None]


def fill_disks(world: World, nodes: Mapping[int, SimNode], workload: Workload, until: Until) -> None:
    """All members of `nodes` run and have room. Violation.

    A leader's disk fills up: leadership goes to who has room, and writes go on. Then all others: writes are
    refused, definitely, and reads go on. In the end there is room again.
    """
    world.run(world.now + MOVE_SECONDS, lambda: _leader(nodes) is not None)
    leader = _leader(nodes)
    if leader is None:
        raise Violation("nobody leads after all faults")
    if leader.driver.other_voters(lambda node: True):
        world.say(f"-- the disk of {leader.name} fills up")
        leader.files.left = FILL
        world.run(world.now + MOVE_SECONDS, lambda: _leader(nodes) not in (None, leader))
        if _leader(nodes) in (None, leader):
            raise Violation(f"{leader.name} goes on leading, though its disk is nearly full and others have room")
        until(workload, workload.probe(), "nothing can be written, though the leader's disk has room")
    world.say("-- all disks fill up")
    for node in nodes.values():
        node.files.left = FILL
    _notice(world, nodes, has_room=False)
    until(workload, _refused(workload), "a write ends in nothing while all disks are full")
    for node in nodes.values():
        node.files.left = PLENTY
    _notice(world, nodes, has_room=True)


def _leader(nodes: Mapping[int, SimNode]) -> SimNode | None:
    """The one of the highest term, if it is ready."""
    leading = [node for node in nodes.values() if node.up and node.driver.is_ready_leader]
    return max(leading, key=lambda node: node.driver.term, default=None)


def _notice(world: World, nodes: Mapping[int, SimNode], *, has_room: bool) -> None:
    """All know how much room they have; one may look at a disk that was slow a moment ago."""

    def noticed() -> bool:
        return all((node.disk.gauge.room is Room.AMPLE) is has_room for node in nodes.values())

    world.run(world.now + MOVE_SECONDS, noticed)
    if not noticed():
        raise Violation(f"nodes do not notice that there is {'' if has_room else 'no '}room")


async def _refused(workload: Workload) -> None:
    """Of three writes one may end with an attempt on its way: nobody knows what becomes of that one."""
    unknown = 0
    for _ in range(3):
        await workload.read()
        try:
            await workload.write()
        except StorageFull:
            continue
        except CommitOutcomeUnknown as error:
            unknown += 1
            if unknown > 1:
                raise Violation("with full disks everywhere nobody knows what becomes of writes") from error
            continue
        except (Refused, ClientDisconnected) as error:
            raise Violation(f"with full disks everywhere a write gets {error!r}") from error
        raise Violation("a write is taken, though no disk has room")
