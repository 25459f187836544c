"""Short ways to write histories down, tids and oids as numbers; and a model that makes good ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tests.simulation.history import Commit, Committed, Event, History, Opened, Outcome, Read, Told, Value

Seen: TypeAlias = "tuple[bytes, int] | None"


def word(number: int) -> bytes:
    """A tid, a serial or an oid."""
    return number.to_bytes(8)


def identity(number: int) -> bytes:
    return number.to_bytes(16)


def opened(client: int, at: float = 0, tid: int = 0) -> Opened:
    return Opened(client, at, word(tid))


def told(client: int, at: float, tid: int, *oids: int) -> Told:
    return Told(client, at, word(tid), tuple(map(word, oids)))


def read(
    client: int,
    begun: float,
    ended: float,
    snapshot: int,
    values: Mapping[int, Seen],
    *,
    linearizable: bool = False,
) -> Read:
    found: dict[bytes, Value] = {
        word(oid): None if seen is None else (seen[0], word(seen[1])) for oid, seen in values.items()
    }
    return Read(client, begun, ended, word(snapshot), linearizable, found)


def commit(
    client: int,
    begun: float,
    ended: float | None,
    writes: Mapping[int, bytes],
    bases: Mapping[int, int] | None = None,
    *,
    tid: int | None = None,
    checks: Mapping[int, int] | None = None,
    outcome: Outcome | None = None,
    number: int | None = None,
) -> Commit:
    """Acknowledged if it has a tid, else unknown. `number`: its identity, the same as the tid if there is one."""
    named = number if number is not None else tid
    assert named is not None
    serials = dict.fromkeys(writes, 0) | dict(bases or {})
    return Commit(
        client,
        identity(named),
        begun,
        ended,
        word(0),
        {word(oid): data for oid, data in writes.items()},
        {word(oid): word(serial) for oid, serial in serials.items()},
        {word(oid): word(serial) for oid, serial in (checks or {}).items()},
        outcome or ("unknown" if tid is None else "acknowledged"),
        None if tid is None else word(tid),
    )


def committed(tid: int, records: Mapping[int, bytes], number: int | None = None) -> Committed:
    return Committed(
        word(tid),
        identity(tid if number is None else number),
        {word(oid): data for oid, data in records.items()},
    )


def history(*events: Event) -> History:
    return History(list(events))


REGISTERS = tuple(map(word, range(1, 4)))
ACCOUNTS = tuple(map(word, range(10, 13)))
LISTS = tuple(map(word, range(20, 22)))
TOTAL = 30
FIRST = word(1)  # the transaction that creates the accounts; no client's


@dataclass
class Begun:
    """A transaction under way: what it read, at which snapshot."""

    at: float
    snapshot: bytes
    values: Mapping[bytes, Value]


@dataclass
class Model:
    """One copy of everything, one step at a time: what it records keeps every promise."""

    rng: random.Random
    silent: bool = False  # what transactions read that go on to commit is not recorded
    now: float = 0.0
    history: History = field(default_factory=History)
    truth: list[Committed] = field(default_factory=list)
    last_told: dict[int, bytes] = field(default_factory=dict)
    under_way: dict[int, Begun] = field(default_factory=dict)
    limbo: list[Commit] = field(default_factory=list)  # the client gave up; it may be committed yet
    _made: int = 0

    def __post_init__(self) -> None:
        self.truth.append(Committed(FIRST, b"", dict.fromkeys(ACCOUNTS, b"10|new")))

    def tick(self) -> float:
        self.now += 1
        return self.now

    def value(self, oid: bytes, snapshot: bytes) -> Value:
        for each in reversed(self.truth):
            if each.tid <= snapshot and (data := each.records.get(oid)) is not None:
                return data, each.tid
        return None

    def serial(self, oid: bytes) -> bytes:
        found = self.value(oid, self.truth[-1].tid)
        return found[1] if found else word(0)

    # ---- what a client does; each opens when it first does something -----------------------------------

    def tell(self, client: int, until: bytes | None = None) -> None:
        """One change, or all up to `until`."""
        for each in self.truth:
            if each.tid > self.last_told[client] and (until is None or each.tid <= until):
                oids = self.rng.sample(list(each.records), len(each.records))
                self.history.events.append(Told(client, self.tick(), each.tid, tuple(oids)))
                self.last_told[client] = each.tid
                if until is None:
                    return

    def read(self, client: int, oids: Iterable[bytes], *, linearizable: bool) -> None:
        begun = self.tick()
        if linearizable:
            self.tell(client, self.truth[-1].tid)
        snapshot = self.last_told[client]
        values = {oid: self.value(oid, snapshot) for oid in oids}
        self.history.events.append(Read(client, begun, self.tick(), snapshot, linearizable, values))

    def begin(self, client: int) -> None:
        snapshot = self.last_told[client]
        values = {oid: self.value(oid, snapshot) for oid in (*REGISTERS, *ACCOUNTS, *LISTS)}
        begun = Begun(self.tick(), snapshot, values)
        self.under_way[client] = begun
        if not self.silent:
            self.history.events.append(Read(client, begun.at, self.tick(), snapshot, False, values))

    def finish(self, client: int, fate: str) -> None:
        begun = self.under_way.pop(client)
        made = self._commit(client, begun)
        if fate == "limbo":
            self.limbo.append(made)
            self._record(made, "unknown", None)
        elif fate == "refused" or not self._current(made):
            self._record(made, "refused", None)
        else:
            tid = self._land(made)
            self._record(made, "unknown" if fate == "unanswered" else "acknowledged", tid)
            if fate != "unanswered":
                self.tell(client, tid)

    def land(self) -> None:
        """The cluster gets to a commit that its client has given up."""
        if self.limbo:
            made = self.limbo.pop(self.rng.randrange(len(self.limbo)))
            if self._current(made):
                self._land(made)

    def step(self, client: int, what: str) -> None:
        if client not in self.last_told:
            self.last_told[client] = self.truth[-1].tid
            self.history.events.append(Opened(client, self.tick(), self.truth[-1].tid))
        oids = self.rng.choice((REGISTERS, ACCOUNTS, LISTS, REGISTERS + LISTS))
        match what:
            case "tell":
                self.tell(client)
            case "read":
                self.read(client, oids, linearizable=False)
            case "linearizable":
                self.read(client, oids, linearizable=True)
            case "begin":
                self.begin(client)
            case "land":
                self.land()
            case fate:
                if client not in self.under_way:
                    if self.rng.random() < 0.7:
                        self.tell(client, self.truth[-1].tid)
                    self.begin(client)
                self.finish(client, fate)

    # ---- what comes of it ------------------------------------------------------------------------------

    def _commit(self, client: int, begun: Begun) -> Commit:
        self._made += 1
        writes = self._changes(begun.values)
        serials = {oid: value[1] if value else word(0) for oid, value in begun.values.items()}
        free = [oid for oid in serials if oid not in writes]
        checks = {oid: serials[oid] for oid in self.rng.sample(free, self.rng.randrange(3))}
        bases = {oid: serials[oid] for oid in writes}
        return Commit(
            client, identity(self._made), begun.at, None, begun.snapshot, writes, bases, checks, "unknown", None
        )

    def _changes(self, values: Mapping[bytes, Value]) -> dict[bytes, bytes]:
        token = b"t%d" % self._made
        writes = {}
        kinds = self.rng.sample(("registers", "accounts", "lists"), self.rng.randint(1, 2))
        if "registers" in kinds:
            writes.update(dict.fromkeys(self.rng.sample(REGISTERS, self.rng.randint(1, 2)), token))
        if "lists" in kinds:
            for oid in self.rng.sample(LISTS, self.rng.randint(1, 2)):
                before = values[oid]
                writes[oid] = token if before is None else before[0] + b" " + token
        if "accounts" in kinds:
            change = self.rng.randint(1, 9)
            for oid, sign in zip(self.rng.sample(ACCOUNTS, 2), (1, -1), strict=True):
                held = values[oid]
                assert held is not None
                writes[oid] = b"%d|%s" % (int(held[0].split(b"|")[0]) + sign * change, token)
        return writes

    def _current(self, made: Commit) -> bool:
        return all(self.serial(oid) == serial for oid, serial in {**made.bases, **made.checks}.items())

    def _land(self, made: Commit) -> bytes:
        tid = word(int.from_bytes(self.truth[-1].tid) + self.rng.randint(1, 3))
        self.truth.append(Committed(tid, made.identity, made.writes))
        return tid

    def _record(self, made: Commit, outcome: Outcome, tid: bytes | None) -> None:
        known = outcome != "unknown"
        self.history.events.append(
            Commit(
                made.client, made.identity, made.begun, self.tick() if known else None, made.snapshot,
                made.writes, made.bases, made.checks, outcome, tid if known else None,
            )
        )  # fmt: skip


STEPS = ("tell", "read", "linearizable", "begin", "land", "commit", "commit", "limbo", "unanswered", "refused")


def run(seed: object, steps: int, clients: int = 3) -> Model:
    """A good history of about that many events."""
    rng = random.Random(str(seed))
    model = Model(rng)
    for _ in range(steps):
        model.step(rng.randrange(clients), rng.choice(STEPS))
    return model
