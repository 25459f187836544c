"""What clients do in a run: registers, a bank whose total never changes, lists that only grow, new objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from raftstorage.client.cluster.errors import ClusterError
from raftstorage.client.cluster.policy import Z64

from tests.simulation.client import Refused, SimClient
from tests.simulation.history import Value
from tests.simulation.world import Violation, World

ACCOUNTS = 4
BALANCE = 25
LISTS = 3
REGISTERS = 4
Values = dict[bytes, Value]
Change = Callable[[Values], dict[bytes, bytes]]


@dataclass
class Objects:
    """The oids that all clients work on; `made` are all that were ever allocated."""

    registers: list[bytes] = field(default_factory=list)
    accounts: list[bytes] = field(default_factory=list)
    lists: list[bytes] = field(default_factory=list)
    made: set[bytes] = field(default_factory=set)
    tokens: count[int] = field(default_factory=lambda: count(1))

    @property
    def total(self) -> int:
        return BALANCE * len(self.accounts)


def _data(values: Values, oid: bytes) -> bytes:
    found = values[oid]
    return found[0] if found is not None else b""


class Workload:
    """Runs on one client until `stop`, and counts nothing: the history tells."""

    def __init__(self, world: World, client: SimClient, objects: Objects, pause: float) -> None:
        self._world = world
        self._client = client
        self._objects = objects
        self._pause = pause
        self._rng = world.random(f"workload {client.number}")
        self._reading = self._rng.choice((0.2, 0.4, 0.95))  # its share of transactions that only read
        self.stopping = False
        self.finished = False

    async def prepare(self) -> None:
        """Creates all objects in one transaction."""
        await self._client.open()
        objects = self._objects
        oids = [await self._new_oid() for _ in range(REGISTERS + ACCOUNTS + LISTS)]
        objects.registers = oids[:REGISTERS]
        objects.accounts = oids[REGISTERS:-LISTS]
        objects.lists = oids[-LISTS:]
        start = dict.fromkeys(objects.accounts, b"%d" % BALANCE)
        start |= dict.fromkeys(objects.registers, b"0") | dict.fromkeys(objects.lists, b"")
        await self._client.commit(lambda _: start, oids, one_phase=True)

    async def run(self) -> None:
        """Transactions one after another. Errors that a ZODB application expects are part of the day."""
        await self._client.open()
        while not self.stopping:
            await asyncio.sleep(self._rng.expovariate(1 / self._pause))
            try:
                await self._transaction()
            except (ClusterError, Refused) as error:
                self._world.say(f"{self._client.name} {type(error).__name__}: {error}")
        self.finished = True

    async def probe(self) -> None:
        """One commit and one linearizable read: the cluster serves."""
        rng = self._rng
        while True:
            try:
                await self._write(rng.sample(self._objects.registers, 1))
                await self._client.read(self._objects.registers, linearizable=True)
                return
            except (ClusterError, Refused):
                await asyncio.sleep(0.1)

    async def _transaction(self) -> None:
        rng, objects, client = self._rng, self._objects, self._client
        if rng.random() < self._reading:
            oids = rng.choice((objects.registers, objects.accounts, objects.lists))
            await client.read(oids, linearizable=rng.random() < 0.7)
            return
        match rng.randrange(6):
            case 0 | 1:
                await self._write(rng.sample(objects.registers, rng.randrange(1, 3)))
            case 2 | 3:
                await self._transfer(*rng.sample(objects.accounts, 2))
            case 4:
                await self._append(rng.sample(objects.lists, rng.randrange(1, 3)))
            case 5:
                await self._create()

    def _token(self) -> bytes:
        return b"%d" % next(self._objects.tokens)

    async def _write(self, oids: Sequence[bytes]) -> None:
        checked = [oid for oid in self._objects.registers if oid not in oids]
        checks = self._rng.sample(checked, 1) if self._rng.random() < 0.3 else []
        await self._commit(lambda _: {oid: self._token() for oid in oids}, oids, checks)

    async def _transfer(self, giver: bytes, taker: bytes) -> None:
        amount = self._rng.randrange(1, 10)

        def change(values: Values) -> dict[bytes, bytes]:
            return {
                giver: b"%d|%b" % (_balance(values, giver) - amount, self._token()),
                taker: b"%d|%b" % (_balance(values, taker) + amount, self._token()),
            }

        await self._commit(change, (giver, taker))

    async def _append(self, lists: Sequence[bytes]) -> None:
        def change(values: Values) -> dict[bytes, bytes]:
            token = self._token()
            return {oid: (_data(values, oid) + b" " + token).strip() for oid in lists}

        others = [oid for oid in self._objects.lists if oid not in lists]
        await self._commit(change, lists, others if self._rng.random() < 0.3 else ())

    async def _create(self) -> None:
        oid = await self._new_oid()
        await self._commit(lambda _: {oid: self._token()}, (oid,))

    async def _commit(self, change: Change, oids: Sequence[bytes], checks: Sequence[bytes] = ()) -> None:
        await self._client.commit(change, oids, checks, one_phase=self._rng.random() < 0.3)

    async def _new_oid(self) -> bytes:
        oid = await self._client.new_oid()
        if oid in self._objects.made or oid == Z64:
            raise Violation(f"oid {oid.hex()} is given out twice")
        self._objects.made.add(oid)
        return oid


def _balance(values: Values, oid: bytes) -> int:
    return int(_data(values, oid).split(b"|")[0])
