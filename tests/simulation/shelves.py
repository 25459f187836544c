"""Packs of simulated clients, and what makes garbage: shelves that refer to items, which come, move and go."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from raftstorage.client.cluster.policy import Call
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.choices import Objects
from tests.simulation.client import LEAD_SECONDS, SimClient
from tests.simulation.history import Value
from tests.simulation.records import name, named

ROOT = bytes(8)
SHELVES = 2
#: A shelf has no more items than this.
MOST_ITEMS = 6


class Changed(Exception):
    """Things are not as they were: the transaction is not made."""


@dataclass
class Shelves:
    """What all clients share. `collect`: packs may collect garbage."""

    oids: list[bytes] = field(default_factory=list)
    collect: bool = True
    asked: int = 0  # packs that were answered

    def begin(self, oids: list[bytes], kept: list[bytes]) -> dict[bytes, bytes]:
        """Data of the shelves, and of the root that refers to them and all of `kept`."""
        self.oids = oids
        return {ROOT: b"root " + b"".join(map(name, [*oids, *kept])), **dict.fromkeys(oids, b"shelf")}


class ShelfWork:
    """One client's."""

    def __init__(
        self,
        client: SimClient,
        shelves: Shelves,
        objects: Objects,
        rng: random.Random,
        new_oid: Callable[[], Awaitable[bytes]],
    ) -> None:
        self._client = client
        self._shelves = shelves
        self._objects = objects
        self._rng = rng
        self._new_oid = new_oid
        self._seen: list[bytes] = []  # items that were there once
        self._tids: list[bytes] = []

    async def work(self) -> None:
        """ClusterError, Refused: as of any transaction."""
        try:
            if self._rng.random() < 0.15:
                await self._pack()
            else:
                await self._tidy()
        except Changed:
            pass

    async def _pack(self) -> None:
        """To now, or to some earlier time that this client knows of."""
        rng = self._rng
        tid = self._client.feed.last if rng.random() < 0.6 or not self._tids else rng.choice(self._tids)
        if not any(tid):
            return
        collect = self._shelves.collect and rng.random() < 0.7
        message = pb.Pack(pack_id=rng.randbytes(16), tid=tid, collect=collect)
        self._client.world.say(f"{self._client.name} packs to {tid.hex()}{' and collects' if collect else ''}")
        await self._client.flow(self._client.replicas.lead(Call("pack", message), LEAD_SECONDS))
        self._shelves.asked += 1

    async def _tidy(self) -> None:
        rng, client = self._rng, self._client
        one, two = rng.sample(self._shelves.oids, 2)
        values = await client.read([one, two], linearizable=False)
        here, there = _items(values, one), _items(values, two)
        self._seen += [item for item in here if item not in self._seen]
        self._tids.append(client.feed.last)
        kind = rng.randrange(7)
        if not here or (kind < 2 and len(here) < MOST_ITEMS):
            item = await self._new_oid()
            await self._write({one: [*here, item]}, {one: here}, {item: self._objects.token()})
            return
        item = rng.choice(here)
        rest = [each for each in here if each != item]
        match kind:
            case 0 | 1 | 2:  # it is garbage from now on
                await self._write({one: rest}, {one: here})
            case 3:
                await self._write({one: rest, two: [*there, item]}, {one: here, two: there})
            case 4:
                await self._write({one: here}, {one: here}, {item: self._objects.token()}, known=True)
            case 5:
                await self._write({one: rest}, {one: here}, {item: None}, known=True)
            case _:  # by somebody who had it before it was garbage, if it is
                old = rng.choice(self._seen)
                await self._write({two: [*there, old]}, {two: there})

    async def _write(
        self,
        shelves: Mapping[bytes, list[bytes]],
        before: Mapping[bytes, list[bytes]],
        items: Mapping[bytes, bytes | None] | None = None,
        known: bool = False,
    ) -> None:
        """Commits the shelves if they are as `before`, and items with them; `known`: those that must be there."""
        items = items or {}

        def change(values: dict[bytes, Value]) -> dict[bytes, bytes | None]:
            if any(_items(values, oid) != was for oid, was in before.items()):
                raise Changed
            if known and any(values[oid] is None for oid in items):
                raise Changed
            token = self._objects.token()
            written = {oid: b"shelf %b " % token + b"".join(map(name, each)) for oid, each in shelves.items()}
            return written | dict(items)

        oids = [*shelves, *(items if known else ())]
        await self._client.commit(change, oids, one_phase=self._rng.random() < 0.5)


def _items(values: Mapping[bytes, Value], shelf: bytes) -> list[bytes]:
    found = values[shelf]
    return [] if found is None else named(found[0])
