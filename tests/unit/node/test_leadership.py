"""What a leader does beside consensus ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from raftstorage.node.leadership import Leadership
from raftstorage.node.raft.types import Role


def test_it_ends_when_it_is_cancelled_just_as_it_takes_over() -> None:
    """A node that was stopped in the moment of its election went on for ever."""

    async def check() -> None:
        ready: list[Callable[[], object]] = []
        driver: Any = SimpleNamespace(on_ready=ready, on_applied=[], on_role=[], role=Role.FOLLOWER)
        leadership = Leadership(driver, members=Any, observer=Any)  # type: ignore[arg-type]
        task = asyncio.create_task(leadership.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # it waits
        ready[0]()
        await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, "it goes on"
        assert task.cancelled()

    asyncio.run(check())
