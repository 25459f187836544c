"""Threads that use the real ClientStorage and write down what they did and saw, for the simulation's checks.

What they do is the simulation's workload: registers, a bank, lists that only grow, new objects. Times are
`time.monotonic()` of this one process.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import threading
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

from raftstorage.client import ClientStorage
from raftstorage.client.cluster.errors import ClientDisconnected, ClusterError, CommitOutcomeUnknown, LeaseExpired
from ZODB import POSException
from ZODB.Connection import TransactionMetaData

from tests.simulation.checks import Checked, check_all
from tests.simulation.choices import Change, Choices, Objects, Reading, Values, Writing
from tests.simulation.history import Commit, Committed, Event, History, Opened, Outcome, Read, Told, Value

Z64 = b"\0" * 8
LONG = 256 << 10  # far more than a list grows to in a run
#: What an application expects of a storage on bad days.
Expected = (POSException.POSError, ClusterError)


def brief(data: bytes) -> bytes:
    """`data` as the history has it: records that only fill disks are there by their digest."""
    return data if len(data) <= LONG else hashlib.sha256(data).digest()


class Storage(ClientStorage):
    """The records here are no pickles: no class could resolve their conflicts."""

    def tryToResolveConflict(self, oid: bytes, committed: bytes, old: bytes, data: bytes, *_: object) -> bytes:
        raise POSException.ConflictError(oid=oid, serials=(committed, old), data=data)


class Crowd:
    """All clients of a run: `with Crowd(addresses, clients, rng) as crowd: ...`; leaving it stops and joins them.

    `errors` are exceptions that no application expects. `acknowledged` are the times of the acknowledged commits.
    """

    def __init__(self, addresses: str, clients: int, rng: random.Random, *, pause: float = 0.01) -> None:
        self.history = History()
        self.objects = Objects()
        self.acknowledged: list[float] = []
        self.errors: list[str] = []
        self.ballast = 0  # bytes that each new object is to have; then there are only new objects
        self._addresses = addresses
        self._numbers = count(1)
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._clients = [
            Client(self, addresses, random.Random(rng.getrandbits(64)), pause) for _ in range(clients)
        ]

    # ---- for the test ----------------------------------------------------------------------------------

    def __enter__(self) -> Crowd:
        try:
            self._clients[0].prepare()
        except BaseException:
            self._clients[0].close()
            raise
        for client in self._clients:
            client.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            if client.thread.is_alive():
                client.thread.join(180)
            client.close()

    def wait_commits(self, number: int, seconds: float) -> bool:
        """Waits until that many more commits that begin from now on are acknowledged; False: not in `seconds`."""
        with self._news:
            # What is under way now may have been decided before.
            goal = len(self.acknowledged) + number + len(self._clients)
            self._news.wait_for(lambda: self.errors or len(self.acknowledged) >= goal, seconds)
            return len(self.acknowledged) >= goal

    def stop(self, seconds: float = 180.0) -> None:
        """Lets each finish the transaction it is at. AssertionError when one hangs or met the unexpected."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for client in self._clients:
            client.thread.join(max(0.0, deadline - time.monotonic()))
        hanging = [client.thread.name for client in self._clients if client.thread.is_alive()]
        assert not hanging, f"after {seconds:g} s these still wait for an answer: {hanging}"
        for client in self._clients:
            client.close()
        assert not self.errors, "\n".join(self.errors)

    def truth(self) -> list[Committed]:
        """What the cluster holds, as one who asks it anew sees it. After `stop`."""
        storage = ClientStorage(self._addresses, read_only=True, wait_timeout=60.0, consistency="linearizable")
        try:
            storage.sync()
            return [
                Committed(each.tid, each.description, {record.oid: brief(record.data) for record in each})
                for each in storage.iterator()
            ]
        finally:
            storage.close()

    def check(self) -> Checked:
        """Compares the truth with the history. Broken."""
        objects = self.objects
        return check_all(
            self.history, self.truth(), accounts=objects.accounts, total=objects.total, lists=objects.lists
        )

    # ---- for the clients -------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def rest(self, seconds: float) -> None:
        """Waits; not when all are to stop."""
        self._stop.wait(seconds)

    def new_number(self) -> int:
        return next(self._numbers)

    def record(self, event: Event) -> None:
        self.history.events.append(event)
        if isinstance(event, Commit) and event.outcome == "acknowledged" and event.ended is not None:
            with self._news:
                self.acknowledged.append(event.ended)
                self._news.notify_all()

    def failed(self, error: str) -> None:
        with self._news:
            self.errors.append(error)
            self._news.notify_all()


class Client:
    """One thread with one storage, opened anew under another number when it cannot go on."""

    def __init__(self, crowd: Crowd, addresses: str, rng: random.Random, pause: float) -> None:
        self.thread = threading.Thread(target=self._run, name=f"client-{rng.randrange(1000)}")
        self._crowd = crowd
        self._addresses = addresses
        self._rng = rng
        self._pause = pause
        self._choices = Choices(rng, crowd.objects, rng.choice((0.2, 0.4, 0.8)))
        self._storage: Storage | None = None
        self._number = 0

    # ---- life ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Makes all objects, in one transaction."""
        self._open()
        oids = [self._new_oid() for _ in range(Objects.SIZE)]
        start = self._crowd.objects.begin(oids)
        self._commit(lambda _: start, oids)

    def close(self) -> None:
        storage, self._storage = self._storage, None
        if storage is not None:
            storage.close()

    def _open(self) -> Storage:
        if self._storage is not None:
            return self._storage
        patience = self._rng.choice((0.3, 2.0, 30.0))  # with a commit
        storage = Storage(self._addresses, wait_timeout=10.0, commit_timeout=patience, consistency="linearizable")
        self._number = self._crowd.new_number()
        feed = storage.cluster.feed
        with feed.lock:
            storage.registerDB(Listener(self._crowd, self._number))
            self._crowd.record(Opened(self._number, time.monotonic(), feed.last))
        self._storage = storage
        return storage

    def _run(self) -> None:
        try:
            while not self._crowd.stopping:
                self._crowd.rest(self._rng.expovariate(1 / self._pause))
                try:
                    self._open()
                    self._transaction()
                except Expected:
                    continue
        except BaseException:
            self._crowd.failed(f"{self.thread.name}: {traceback.format_exc()}")

    # ---- the workload ----------------------------------------------------------------------------------

    def _transaction(self) -> None:
        """One of many kinds; with ballast to load, only new objects."""
        choice = None if self._crowd.ballast else self._choices.next()
        if isinstance(choice, Reading):
            self._read(choice.oids, linearizable=choice.linearizable)
        elif isinstance(choice, Writing):
            self._commit(choice.change, choice.oids, choice.checks)
        else:
            self._create()

    def _create(self) -> None:
        oid, size = self._new_oid(), self._crowd.ballast
        data = self._crowd.objects.token() + (b"|" + secrets.token_bytes(size) if size else b"")
        self._commit(lambda _: {oid: data}, (oid,))

    def _new_oid(self) -> bytes:
        oid = self._open().new_oid()
        if not self._crowd.objects.allocated(oid):
            self._crowd.failed(f"oid {oid.hex()} is given out twice")
        return oid

    # ---- transactions ----------------------------------------------------------------------------------

    def _read(self, oids: Sequence[bytes], *, linearizable: bool) -> tuple[bytes, Values]:
        """One read-only transaction: its snapshot and what it saw. In the history when it ends well."""
        storage, begun = self._open(), time.monotonic()
        if linearizable:
            storage.sync()
        snapshot = storage.lastTransaction()
        values = {oid: self._load(storage, oid, snapshot) for oid in oids}
        ended = time.monotonic()
        self._crowd.record(Read(self._number, begun, ended, snapshot, linearizable, values))
        return snapshot, values

    def _load(self, storage: Storage, oid: bytes, snapshot: bytes) -> Value:
        try:
            found = storage.loadBefore(oid, (int.from_bytes(snapshot) + 1).to_bytes(8))
        except POSException.POSKeyError:
            return None
        return None if found is None else (brief(found[0]), found[1])

    def _commit(self, change: Change, oids: Sequence[bytes], checks: Sequence[bytes] = ()) -> None:
        """Reads `oids` and `checks` at a snapshot, and commits what `change` makes of them."""
        snapshot, values = self._read([*oids, *checks], linearizable=False)
        serial = {oid: found[1] if found is not None else Z64 for oid, found in values.items()}
        writes = change(values)
        bases = {oid: serial[oid] for oid in writes}
        self._attempt(snapshot, writes, bases, {oid: serial[oid] for oid in checks})

    def _attempt(
        self,
        snapshot: bytes,
        writes: Mapping[bytes, bytes | None],
        bases: Mapping[bytes, bytes],
        checks: Mapping[bytes, bytes],
    ) -> None:
        """One commit, with an identity that nobody else has; in the history, however it ends."""
        storage, number, begun = self._open(), self._number, time.monotonic()
        identity = secrets.token_bytes(16)
        transaction = TransactionMetaData(user=f"client {number}", description=identity)
        told: list[bytes] = []

        def record(outcome: Outcome, tid: bytes | None = None) -> None:
            short = {oid: None if data is None else brief(data) for oid, data in writes.items()}
            ended = None if outcome == "unknown" else time.monotonic()
            self._crowd.record(
                Commit(number, identity, begun, ended, snapshot, short, bases, checks, outcome, tid)
            )  # fmt: skip

        def finished(tid: bytes) -> None:
            told.append(tid)
            self._crowd.record(Told(number, time.monotonic(), tid, tuple(writes)))

        try:
            self._vote(storage, transaction, writes, bases, checks)
        except BaseException:
            record("refused")
            raise
        try:
            tid = storage.tpc_finish(transaction, finished)
        except BaseException as error:
            if told:  # it is committed, but this client does not see it: ZODB's users would reopen, too
                record("acknowledged", told[0])
                self.close()
            else:
                record(outcome_of(error))
            raise
        assert told == [tid], f"tpc_finish returned {tid.hex()}, its callback was given {told}"
        record("acknowledged", tid)

    def _vote(
        self,
        storage: Storage,
        transaction: Any,
        writes: Mapping[bytes, bytes | None],
        bases: Mapping[bytes, bytes],
        checks: Mapping[bytes, bytes],
    ) -> None:
        storage.tpc_begin(transaction)
        try:
            for oid, data in writes.items():
                if data is None:
                    storage.deleteObject(oid, bases[oid], transaction)
                else:
                    storage.store(oid, bases[oid], data, "", transaction)
            for oid, serial in checks.items():
                storage.checkCurrentSerialInTransaction(oid, serial, transaction)
            storage.tpc_vote(transaction)
        except BaseException:
            storage.tpc_abort(transaction)
            raise


class Listener:
    """Stands in for ZODB.DB: writes down what its storage tells it."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self._number = number

    def invalidate(self, tid: bytes, oids: Collection[bytes], version: str = "") -> None:
        self._crowd.record(Told(self._number, time.monotonic(), tid, tuple(oids)))

    def invalidateCache(self) -> None:
        self._crowd.failed(f"client {self._number} was told to forget everything")

    def references(self, record: bytes, oids: Any = None) -> list[bytes]:
        return []

    def transform_record_data(self, data: bytes) -> bytes:
        return data

    untransform_record_data = transform_record_data


def outcome_of(error: BaseException) -> Outcome:
    """What a tpc_finish that raised `error` says about the commit. Unknown is always true."""
    definite = (
        POSException.ConflictError,
        POSException.StorageTransactionError,
        ClientDisconnected,
        LeaseExpired,
    )  # fmt: skip
    known = isinstance(error, definite) and not isinstance(error, CommitOutcomeUnknown)
    return "refused" if known else "unknown"
