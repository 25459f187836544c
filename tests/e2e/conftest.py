"""Raw gRPC sessions, commits without ZODB and metrics, for tests that look at single nodes."""

from __future__ import annotations

import contextlib
import itertools
import queue
import re
import secrets
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from raftstorage.proto import PROTOCOL_VERSION, storage_pb2_grpc
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.utils import maxtid, z64

from tests.e2e.charts import pinned_helm

#: How long a node may take to answer a single call.
ANSWER_SECONDS = 30.0
#: How long no commit may be acknowledged while nodes die and others take over.
FAILOVER_SECONDS = 60.0


class RawSession:
    """One stream to one node, nothing hidden: no retry, no failover.

    `hello` overrides fields of the Hello. `welcome` is the answer to it (a Failure for a refused one).
    """

    def __init__(self, address: str, **hello: Any) -> None:
        self._requests: queue.SimpleQueue[pb.RequestBatch | None] = queue.SimpleQueue()
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self.unasked: list[pb.Event] = []
        self.ended = threading.Event()
        self.status: grpc.RpcError | None = None
        self._channel = grpc.insecure_channel(address)
        self._call = storage_pb2_grpc.StorageStub(self._channel).Session(iter(self._requests.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        fields = {"protocol_version": PROTOCOL_VERSION, "client_id": secrets.token_hex(16)} | hello
        self.welcome = self.ask(hello=pb.Hello(**fields))

    def _read(self) -> None:
        try:
            for batch in self._call:
                for event in batch.events:
                    with self._lock:
                        waiting = self._answers.pop(event.id, None)
                    if waiting is None:
                        self.unasked.append(event)
                    else:
                        waiting.put(event)
        except grpc.RpcError as error:
            self.status = error
        finally:
            self.ended.set()
            with self._lock:
                for waiting in self._answers.values():
                    waiting.put(self.status or EOFError("the node ended the stream"))
                self._answers.clear()

    def send(self, **call: Any) -> queue.SimpleQueue[Any]:
        """Sends one call (`vote=pb.Vote(...)`); the queue gets its answer's event, or the stream's error."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        request = pb.Request(id=next(self._ids), **call)
        with self._lock:
            self._answers[request.id] = answer
        self._requests.put(pb.RequestBatch(requests=[request]))
        if self.ended.is_set():
            answer.put(self.status or EOFError("the node ended the stream"))
        return answer

    def ask(self, **call: Any) -> Any:
        """Sends one call and waits for the message that answers it (`Failure` included)."""
        event = self.send(**call).get(timeout=ANSWER_SECONDS)
        if isinstance(event, Exception):
            raise event
        return getattr(event, event.WhichOneof("kind"))

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._channel.close()
        self._reader.join(ANSWER_SECONDS)


@pytest.fixture
def raw() -> Iterator[Callable[..., RawSession]]:
    """Opens raw sessions: `raw(address, **hello_fields)`."""
    with contextlib.ExitStack() as stack:

        def open_(address: str, **hello: Any) -> RawSession:
            session = RawSession(address, **hello)
            stack.callback(session.close)
            return session

        yield open_


def _commit(storage: Any, changes: dict[bytes, tuple[bytes, bytes]], note: str = "") -> bytes:
    """Commits {oid: (base serial, data)} in one transaction; its tid."""
    t = TransactionMetaData(description=note)
    storage.tpc_begin(t)
    try:
        for oid, (serial, data) in changes.items():
            storage.store(oid, serial, data, "", t)
        storage.tpc_vote(t)
        tid: bytes = storage.tpc_finish(t)
        return tid
    except BaseException:
        storage.tpc_abort(t)
        raise


@pytest.fixture(scope="session")
def commit() -> Callable[..., bytes]:
    return _commit


@pytest.fixture(scope="session")
def commit_new() -> Callable[..., tuple[bytes, bytes]]:
    """Commits one new object: `commit_new(storage, data, note="")` -> (oid, tid)."""

    def commit_new(storage: Any, data: bytes, note: str = "") -> tuple[bytes, bytes]:
        oid = storage.new_oid()
        return oid, _commit(storage, {oid: (z64, data)}, note)

    return commit_new


@pytest.fixture(scope="session")
def notes_of() -> Callable[[Any], list[str]]:
    """The descriptions of all transactions in the database, in order: what really was committed, how often."""

    def notes_of(storage: Any) -> list[str]:
        return [transaction.description.decode() for transaction in storage.iterator()]

    return notes_of


class Writers:
    """Threads that commit numbered new objects, each with a storage of its own, until told to stop.

    `acknowledged`: what commits returned, {note: (oid, tid)}; a commit's data is its note. `pause`: seconds from
    one commit of a thread to its next, where others need the machine too.
    """

    def __init__(self, count: int, addresses: str, pause: float = 0.0) -> None:
        self.acknowledged: dict[str, tuple[bytes, bytes]] = {}
        self._latest: dict[str, tuple[str, bytes, bytes]] = {}
        self.errors: list[BaseException] = []
        self._addresses = addresses
        self._pause = pause
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(f"writer {n}",)) for n in range(count)]

    def _run(self, name: str) -> None:
        from raftstorage.client import ClientStorage

        try:
            storage = ClientStorage(self._addresses, wait_timeout=2 * FAILOVER_SECONDS)
            try:
                for n in itertools.count():
                    if self._stop.wait(self._pause):
                        return
                    note = f"{name} {n}"
                    oid = storage.new_oid()
                    tid = _commit(storage, {oid: (z64, note.encode())}, note)
                    with self._changed:
                        self.acknowledged[note] = (oid, tid)
                        self._latest[name] = (note, oid, tid)
                        self._changed.notify_all()
            finally:
                storage.close()
        except BaseException as error:
            with self._changed:
                self.errors.append(error)
                self._changed.notify_all()

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(3 * FAILOVER_SECONDS)

    def reach(self, count: int) -> None:
        """Waits until that many commits are acknowledged."""
        with self._changed:
            self._changed.wait_for(lambda: self.errors or len(self.acknowledged) >= count, FAILOVER_SECONDS)
            assert not self.errors, self.errors
            assert len(self.acknowledged) >= count, f"no progress for {FAILOVER_SECONDS} s"

    def more(self, count: int) -> None:
        """Waits for so many commits that are acknowledged from now on."""
        self.reach(len(self.acknowledged) + count)

    def latest(self) -> list[tuple[str, bytes, bytes]]:
        """Each writer's newest acknowledged commit: (note, oid, tid)."""
        with self._changed:
            return list(self._latest.values())

    def stop(self) -> None:
        """Lets each finish the commit it is at."""
        self.__exit__()
        assert not any(thread.is_alive() for thread in self._threads), "a writer hangs"
        assert not self.errors, self.errors

    def check_all(self, storage: Any) -> None:
        """Each acknowledged commit is in the database once, as it was told, and nothing else is. After stop()."""
        found: dict[str, list[tuple[bytes, bytes]]] = {}
        for transaction in storage.iterator():
            ((oid, data),) = [(record.oid, record.data) for record in transaction]
            note = transaction.description.decode()
            assert data == note.encode()
            found.setdefault(note, []).append((oid, transaction.tid))
        assert {note: places[0] for note, places in found.items()} == self.acknowledged
        assert not {note: places for note, places in found.items() if len(places) > 1}
        for note, (oid, tid) in self.acknowledged.items():
            assert storage.loadBefore(oid, maxtid) == (note.encode(), tid, None)


@pytest.fixture(scope="session")
def start_writers() -> type[Writers]:
    """`with start_writers(count, addresses) as writers: ...`."""
    return Writers


SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)", re.MULTILINE)


@pytest.fixture(scope="session")
def metrics() -> Callable[[str], list[tuple[str, dict[str, str], float]]]:
    """Fetches a node's metrics over HTTP: (name, labels, value) for each sample."""

    def metrics(address: str) -> list[tuple[str, dict[str, str], float]]:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=ANSWER_SECONDS) as reply:
            text = reply.read().decode()
        return [
            (found["name"], dict(re.findall(r'(\w+)="([^"]*)"', found["labels"] or "")), float(found["value"]))
            for found in SAMPLE.finditer(text)
        ]

    return metrics


@pytest.fixture(scope="session")
def helm() -> str:
    return pinned_helm()
