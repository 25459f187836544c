"""Drivers over the real core and the real log in one loop, with messages carried in memory and failures put in."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn

from raftstorage.node.driver import Driver
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.raft.types import Config, Entry, HardState, Message
from raftstorage.node.wal import Wal
from raftstorage.proto import storage_pb2 as pb

TICK = 0.01
COMMAND = pb.Command(allocate=pb.AllocateCommand(count=1)).SerializeToString()


class Failures:
    """Stands for the end of the process: records why, and ends the thread that it was called in."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.happened = threading.Event()

    def __call__(self, error: BaseException) -> NoReturn:
        self.errors.append(error)
        self.happened.set()
        raise SystemExit(70)


class Network:
    """Carries messages between drivers of one loop. `cut` holds nodes that hear and say nothing."""

    def __init__(self) -> None:
        self.drivers: dict[int, Driver] = {}
        self.cut: set[int] = set()
        self.sent: list[Message] = []

    def carry(self, message: Message) -> None:
        self.sent.append(message)
        to = self.drivers.get(message.to_node)
        if to is not None and not self.cut & {message.from_node, message.to_node}:
            asyncio.get_running_loop().call_soon(to.receive, [message])


class Wire:
    def __init__(self, network: Network) -> None:
        self._network = network

    def send(self, message: Message) -> None:
        self._network.carry(message)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


class GatedWal(Wal):
    """A real log whose writes wait for `gate` and can be made to fail."""

    gate: threading.Event
    entered: threading.Event
    writes: list[int]
    failure: OSError | None = None

    def write_many(self, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        super().write_many(writes)
        self.writes.append(len(writes))


def open_wal(directory: Path) -> GatedWal:
    wal = GatedWal.open(directory, segment_bytes=1 << 20)
    assert isinstance(wal, GatedWal)
    wal.gate, wal.entered, wal.writes = threading.Event(), threading.Event(), []
    wal.gate.set()
    return wal


class Cluster:
    """`clock`: the drivers', for what takes long."""

    def __init__(
        self, directory: Path, nodes: int = 3, clock: Callable[[], float] = time.perf_counter, **config: Any
    ) -> None:
        self.network = Network()
        self.failures = Failures()
        self.wals: dict[int, GatedWal] = {}
        self.applied: dict[int, list[Entry]] = {}
        for node in range(1, nodes + 1):
            self.wals[node] = wal = open_wal(directory / str(node))
            self.network.drivers[node] = driver = Driver(
                Config(node, frozenset(range(1, nodes + 1)), **config),
                wal,
                MemoryEngine(),
                Wire(self.network),
                place=lambda base, wal=wal: wal.reset(base.index, base.term),
                tick_seconds=TICK,
                fatal=self.failures,
                rng=random.Random(node),
                clock=clock,
            )
            self.applied[node] = seen = []
            driver.on_applied.append(lambda batch, seen=seen: seen.extend(entry for entry, _ in batch))

    def __getitem__(self, node: int) -> Driver:
        return self.network.drivers[node]

    async def __aenter__(self) -> Cluster:
        for driver in self.network.drivers.values():
            await driver.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        for node, driver in self.network.drivers.items():
            self.wals[node].gate.set()
            await driver.stop()
            self.wals[node].close()

    async def leader(self) -> Driver:
        while True:
            waits = [asyncio.create_task(driver.wait_role()) for driver in self.network.drivers.values()]
            await asyncio.sleep(0)  # they listen from here on: nothing can happen unheard after the look below
            try:
                for driver in self.network.drivers.values():
                    if driver.is_ready_leader and driver.node_id not in self.network.cut:
                        return driver
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(limited())


async def until(condition: Callable[[], object], wait: Callable[[], Awaitable[None]]) -> None:
    while not condition():
        await wait()
