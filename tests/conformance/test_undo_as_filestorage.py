"""Random stores, deletions and undos on a FileStorage and on ours: the same refusals, data and back pointers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from persistent import Persistent
from raftstorage.client import ClientStorage
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSKeyError, UndoError
from ZODB.tests.ConflictResolution import PCounter
from ZODB.tests.MinPO import MinPO
from ZODB.tests.StorageTestBase import zodb_pickle
from ZODB.utils import load_current, maxtid, p64, z64

STEPS = 40
RUNS = 25
OIDS = [p64(n) for n in range(1, 5)]


def counter(value: int) -> Persistent:
    made = PCounter()
    made._value = value
    return made


class Twin:
    """One of the two storages, with its tids in the order of its transactions."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.tids: list[bytes] = []

    def current(self, oid: bytes) -> tuple[bytes | None, bytes]:
        """(data, serial); a deleted object has no data, but a serial."""
        try:
            return load_current(self.storage, oid)  # type: ignore[no-any-return]
        except POSKeyError:
            pass
        try:
            return None, self.storage.history(oid)[0]["tid"]
        except KeyError:
            return None, z64

    def begin(self, change: Callable[[Any, Any], object], number: int) -> str:
        """Makes and votes for a change: an empty text, or why it was refused. `end` must follow."""
        t = TransactionMetaData(user="ann", description=f"number {number}", extension={"number": number})
        self._transaction = t
        self.storage.tpc_begin(t)
        try:
            change(self.storage, t)
            self.storage.tpc_vote(t)
        except UndoError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def end(self, commit: bool) -> None:
        if commit:
            self.tids.append(self.storage.tpc_finish(self._transaction))
        else:
            self.storage.tpc_abort(self._transaction)

    def number(self, tid: bytes | None) -> int | None:
        return None if tid is None else self.tids.index(tid)

    def content(self) -> list[Any]:
        """All transactions with all records, told without tids. A FileStorage's that undid several others may have
        an object twice: the last one counts."""
        return [
            (
                self.number(each.tid),
                each.description,
                {r.oid: (r.data, self.number(r.data_txn)) for r in each},
            )
            for each in self.storage.iterator()
        ]

    def undoable(self) -> list[Any]:
        log = self.storage.undoInfo(0, 1000)
        return [(each["user_name"], each["description"], each["number"]) for each in log]

    def revisions(self, oid: bytes) -> list[int | None]:
        try:
            return [self.number(each["tid"]) for each in self.storage.history(oid, 1000)]
        except KeyError:
            return []

    def before(self, oid: bytes) -> list[Any]:
        """What loadBefore says at each transaction, and after the last one."""
        found: list[Any] = []
        for tid in [*self.tids, maxtid]:
            try:
                record = self.storage.loadBefore(oid, tid)
            except POSKeyError:
                found.append("POSKeyError")
                continue
            found.append(record and (record[0], self.number(record[1]), self.number(record[2])))
        return found


@pytest.fixture
def twins(disk_directory: Path) -> Iterator[list[Twin]]:
    storages = [FileStorage(str(disk_directory / "Data.fs")), ClientStorage(f"embedded:{disk_directory}/database")]
    yield [Twin(storage) for storage in storages]
    for storage in storages:
        storage.close()


def a_change(rng: random.Random, twins: list[Twin], kinds: dict[bytes, Any]) -> list[Callable[[Any, Any], object]]:
    """For each twin, a change of some objects with that twin's serials."""
    oids = rng.sample(OIDS, rng.randint(1, 3))
    delete = rng.random() < 0.15
    data = {oid: zodb_pickle(kinds[oid](rng.randrange(4))) for oid in oids}

    def change_of(twin: Twin) -> Callable[[Any, Any], object]:
        now = {oid: twin.current(oid) for oid in oids}

        def change(storage: Any, t: Any) -> None:
            for oid in oids:
                if delete and now[oid][0] is not None:
                    storage.deleteObject(oid, now[oid][1], t)
                elif not delete:
                    storage.store(oid, now[oid][1], data[oid], "", t)

        return change

    return [change_of(twin) for twin in twins]


def undo_of(twin: Twin, numbers: list[int]) -> Callable[[Any, Any], object]:
    def change(storage: Any, t: Any) -> None:
        ids = {info["number"]: info["id"] for info in storage.undoInfo(0, 1000)}
        for number in numbers:
            storage.undo(ids[number], t)

    return change


@pytest.mark.parametrize("run", range(RUNS))
def test_same_as_filestorage(run: int, twins: list[Twin], rng: random.Random) -> None:
    kinds = {oid: rng.choice([counter, MinPO]) for oid in OIDS}
    file, ours = twins
    for _ in range(STEPS):
        number = len(file.tids)
        if rng.random() < 0.45 or not file.tids:
            changes = a_change(rng, twins, kinds)
        else:
            numbers = rng.sample(range(number), min(number, rng.choice([1, 1, 1, 2, 3])))
            if rng.random() < 0.5:
                numbers.sort(reverse=True)
            changes = [undo_of(twin, numbers) for twin in twins]
        refused, also = (twin.begin(change, number) for twin, change in zip(twins, changes, strict=True))
        # In one text a FileStorage leaves a %s as it is.
        assert refused.replace(" for %s", "") == also
        for twin in twins:
            twin.end(commit=not refused)
        for oid in OIDS:
            assert file.current(oid)[0] == ours.current(oid)[0]
    assert file.content() == ours.content()
    assert file.undoable() == ours.undoable()
    for oid in OIDS:
        assert file.revisions(oid) == ours.revisions(oid)
        assert file.before(oid) == ours.before(oid)
