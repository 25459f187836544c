"""A simulated client at work."""

from __future__ import annotations

import asyncio

from raftstorage.client.cluster.errors import ClusterError

from tests.simulation.blobs import BlobWork, Ledger
from tests.simulation.choices import Choices, Creating, Objects, Reading, Writing
from tests.simulation.client import Refused, SimClient
from tests.simulation.shelves import SHELVES, ShelfWork, Shelves
from tests.simulation.world import Violation, World


class Workload:
    """Runs on one client until `stop`, and counts nothing: the history tells."""

    def __init__(
        self,
        world: World,
        client: SimClient,
        objects: Objects,
        pause: float,
        ledger: Ledger,
        blobs: float,
        shelves: Shelves,
        packs: float,
    ) -> None:
        """`blobs`, `packs`: the shares of its transactions that are about such."""
        self._world = world
        self.client = client
        self._objects = objects
        self._pause = pause
        self._rng = world.random(f"workload {client.number}")
        self._choices = Choices(self._rng, objects, self._rng.choice((0.2, 0.4, 0.95)))
        self._blobs = blobs
        self._blob_work = BlobWork(client, ledger, world.random(f"blobs {client.number}"), self._new_oid)
        self._packs = packs
        self._shelves = shelves
        shelf_rng = world.random(f"shelves {client.number}")
        self._shelf_work = ShelfWork(client, shelves, objects, shelf_rng, self._new_oid)
        self.stopping = False
        self.finished = False

    async def prepare(self) -> None:
        """Creates all objects in one transaction."""
        await self.client.open()
        oids = [await self._new_oid() for _ in range(Objects.SIZE)]
        start: dict[bytes, bytes | None] = dict(self._objects.begin(oids))
        start |= self._shelves.begin([await self._new_oid() for _ in range(SHELVES)], oids)
        await self.client.commit(lambda _: start, list(start), one_phase=True)

    async def run(self) -> None:
        """Transactions one after another. Errors that a ZODB application expects are part of the day."""
        await self.client.open()
        while not self.stopping:
            await asyncio.sleep(self._rng.expovariate(1 / self._pause))
            try:
                await self._transaction()
            except (ClusterError, Refused) as error:
                self._world.say(f"{self.client.name} {type(error).__name__}: {error}")
        self.finished = True

    async def probe(self) -> None:
        """One commit and one linearizable read: the cluster serves."""
        while True:
            try:
                await self.write()
                await self.read()
                return
            except (ClusterError, Refused):
                await asyncio.sleep(0.1)

    async def write(self) -> None:
        """One commit. Errors as SimClient.commit's."""
        await self._commit(self._choices.write(self._rng.sample(self._objects.registers, 1)))

    async def read(self) -> None:
        """One linearizable read. Errors as SimClient.read's."""
        await self.client.read(self._objects.registers, linearizable=True)

    async def _transaction(self) -> None:
        if self._blobs and self._rng.random() < self._blobs:
            await self._blob_work.work()
            return
        if self._packs and self._rng.random() < self._packs:
            await self._shelf_work.work()
            return
        match self._choices.next():
            case Reading(oids, linearizable):
                await self.client.read(oids, linearizable=linearizable)
            case Writing() as writing:
                await self._commit(writing)
            case Creating():
                oid = await self._new_oid()
                await self._commit(Writing(lambda _: {oid: self._objects.token()}, (oid,)))

    async def _commit(self, writing: Writing) -> None:
        one_phase = self._rng.random() < 0.3
        await self.client.commit(writing.change, writing.oids, writing.checks, one_phase=one_phase)

    async def _new_oid(self) -> bytes:
        oid = await self.client.new_oid()
        if not self._objects.allocated(oid):
            raise Violation(f"oid {oid.hex()} is given out twice")
        return oid
