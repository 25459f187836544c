"""What clients do, simulated or real: registers, a bank whose total never changes, growing lists, new objects.

No client in here: it says what to read, and what a transaction makes of what it read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

from tests.simulation.history import Value

ACCOUNTS = 4
BALANCE = 25
LISTS = 3
REGISTERS = 4

Values: TypeAlias = dict[bytes, Value]
Change: TypeAlias = Callable[[Values], Mapping[bytes, bytes | None]]


@dataclass
class Objects:
    """The oids that all clients work on; `made` are all that were ever allocated."""

    registers: list[bytes] = field(default_factory=list)
    accounts: list[bytes] = field(default_factory=list)
    lists: list[bytes] = field(default_factory=list)
    made: set[bytes] = field(default_factory=set)
    tokens: count[int] = field(default_factory=lambda: count(1))

    #: How many oids `begin` takes.
    SIZE = REGISTERS + ACCOUNTS + LISTS

    @property
    def total(self) -> int:
        return BALANCE * len(self.accounts)

    def begin(self, oids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Gives the first SIZE oids their parts; returns the data of each."""
        self.registers = list(oids[:REGISTERS])
        self.accounts = list(oids[REGISTERS:-LISTS])
        self.lists = list(oids[-LISTS:])
        start = dict.fromkeys(self.accounts, b"%d" % BALANCE)
        return start | dict.fromkeys(self.registers, b"0") | dict.fromkeys(self.lists, b"")

    def token(self) -> bytes:
        """One that nobody had before."""
        return b"%d" % next(self.tokens)

    def allocated(self, oid: bytes) -> bool:
        """Notes a new oid; False when it cannot be one."""
        fresh = oid not in self.made and oid != bytes(8)
        self.made.add(oid)
        return fresh


@dataclass(frozen=True)
class Reading:
    """Read `oids` at one snapshot."""

    oids: Sequence[bytes]
    linearizable: bool


@dataclass(frozen=True)
class Writing:
    """Read `oids` and `checks` at one snapshot; commit what `change` makes of them, if `checks` still hold."""

    change: Change
    oids: Sequence[bytes]
    checks: Sequence[bytes] = ()


class Creating:
    """Get a new oid and store a token."""


class Choices:
    """One client's choices. `reading`: its share of transactions that only read."""

    def __init__(self, rng: random.Random, objects: Objects, reading: float) -> None:
        self._rng = rng
        self._objects = objects
        self._reading = reading

    def next(self) -> Reading | Writing | Creating:
        rng, objects = self._rng, self._objects
        if rng.random() < self._reading:
            oids = rng.choice((objects.registers, objects.accounts, objects.lists))
            return Reading(oids, linearizable=rng.random() < 0.7)
        match rng.randrange(6):
            case 0 | 1:
                return self.write(rng.sample(objects.registers, rng.randrange(1, 3)))
            case 2 | 3:
                return self._transfer(*rng.sample(objects.accounts, 2))
            case 4:
                return self._append(rng.sample(objects.lists, rng.randrange(1, 3)))
            case _:
                return Creating()

    def write(self, oids: Sequence[bytes]) -> Writing:
        """Sets these registers, now and then only if another one is as it was."""
        others = [oid for oid in self._objects.registers if oid not in oids]
        checks = self._rng.sample(others, 1) if self._rng.random() < 0.3 else []
        return Writing(lambda _: {oid: self._objects.token() for oid in oids}, oids, checks)

    def _transfer(self, giver: bytes, taker: bytes) -> Writing:
        amount = self._rng.randrange(1, 10)

        def change(values: Values) -> dict[bytes, bytes]:
            return {
                giver: b"%d|%b" % (_balance(values, giver) - amount, self._objects.token()),
                taker: b"%d|%b" % (_balance(values, taker) + amount, self._objects.token()),
            }

        return Writing(change, (giver, taker))

    def _append(self, lists: Sequence[bytes]) -> Writing:
        def change(values: Values) -> dict[bytes, bytes]:
            token = self._objects.token()
            return {oid: (_data(values, oid) + b" " + token).strip() for oid in lists}

        others = [oid for oid in self._objects.lists if oid not in lists]
        return Writing(change, lists, others if self._rng.random() < 0.3 else ())


def _data(values: Values, oid: bytes) -> bytes:
    found = values[oid]
    return found[0] if found is not None else b""


def _balance(values: Values, oid: bytes) -> int:
    return int(_data(values, oid).split(b"|")[0])
