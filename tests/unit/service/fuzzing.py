"""What the property tests share: how many examples there are, and values that nobody should send.

`RAFTSTORAGE_EXAMPLES=20` multiplies the examples of every property, for a longer campaign than CI's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import google_crc32c
import grpc
import grpc.aio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.node import Node
from raftstorage.proto import PROTOCOL_VERSION
from raftstorage.proto import storage_pb2 as pb

FACTOR = max(1, int(os.environ.get("RAFTSTORAGE_EXAMPLES", "1")))


def explore(what: Callable[[], None] | type[RuleBasedStateMachine], examples: int, steps: int = 20) -> None:
    """Runs a `given` function, or a state machine with up to `steps` steps, on so many examples.

    The same ones each time, or a change that broke nothing could fail in CI.
    """
    profile = settings(
        max_examples=examples * FACTOR,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=False,
        phases=(Phase.explicit, Phase.generate, Phase.target, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    if isinstance(what, type):
        run_state_machine_as_test(what, settings=profile)
    else:
        runner: Any = profile(what)
        runner()
    print(f"{what.__name__}: {examples * FACTOR} examples")


# ---- values -------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.sampled_from([0, 1, 2, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 20),
)
small = numbers.map(lambda number: number & 0xFFFFFFFF)
oids = st.sampled_from([number.to_bytes(8, "big") for number in range(4)])
tids = st.sampled_from([b"", bytes(8), b"\1" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 8])
octets = st.one_of(oids, oids, tids, st.binary(max_size=20))
identities = st.one_of(st.sampled_from([b"%016d" % number for number in range(6)]), st.binary(max_size=20))
#: Most reads must not wait for a tid, or the examples would.
at_least = st.one_of(st.just(b""), st.just(b""), st.just(b""), octets)

blobs = st.builds(
    pb.Blob,
    upload_id=st.one_of(st.just(b""), identities),
    size=st.integers(0, 5),
    crc32c=st.sampled_from([0, 1, google_crc32c.value(b"\0")]),
    same_as=octets,
)
records = st.builds(
    pb.NewRecord,
    oid=octets,
    base_serial=tids,
    data=st.binary(max_size=40),
    no_data=st.booleans(),
    data_tid=tids,
    blob=st.one_of(st.none(), blobs),
)
empty_blobs = st.builds(pb.Blob, upload_id=st.just(b"u" * 16))
good_records = st.builds(
    pb.NewRecord, oid=oids, data=st.binary(max_size=40), blob=st.one_of(st.none(), st.none(), empty_blobs)
)
checks = st.builds(pb.Check, oid=octets, serial=octets)
transactions = st.one_of(
    st.builds(pb.Transaction, records=st.lists(good_records, min_size=1, max_size=2)),
    st.builds(
        pb.Transaction,
        user=st.binary(max_size=20),
        records=st.lists(st.one_of(good_records, records), max_size=4),
        checks=st.lists(checks, max_size=3),
        tid=st.one_of(st.just(b""), octets),
        status=st.binary(max_size=2),
    ),
).map(lambda transaction: transaction.SerializeToString())


@st.composite
def mangled(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were something once."""
    data = draw(source)
    at, some = draw(st.integers(0, len(data))), draw(st.binary(max_size=8))
    how = draw(st.integers(0, 3))
    return [data[:at], data[:at] + some + data[at:], data[:at] + some + data[at + len(some) :], data + data][how]


bodies = st.one_of(transactions, transactions, mangled(transactions), st.binary(max_size=60))
#: Of a part, mostly such as a node takes.
part_bodies = st.one_of(
    st.builds(pb.Transaction, records=st.lists(good_records, min_size=1, max_size=2)).map(
        lambda transaction: transaction.SerializeToString()
    ),
    st.builds(
        pb.Transaction,
        records=st.lists(
            st.builds(pb.NewRecord, oid=oids, data=st.binary(max_size=40), more=st.booleans()), max_size=2
        ),
        checks=st.lists(checks, max_size=2),
    ).map(lambda transaction: transaction.SerializeToString()),
    bodies,
)
few = st.one_of(st.just(0), st.integers(0, 3), small)
calls: dict[str, st.SearchStrategy[Any]] = {
    "hello": st.builds(pb.Hello, protocol_version=small, client_id=st.text(max_size=40), after_tid=octets),
    "load_before": st.builds(pb.LoadBefore, oid=octets, before=octets, at_least=at_least),
    "load_serial": st.builds(pb.LoadSerial, oid=octets, serial=octets, at_least=at_least),
    "history": st.builds(pb.History, oid=octets, size=small, at_least=at_least),
    "vote": st.builds(pb.Vote, transaction_id=identities, transaction=bodies, parts=few),
    "part": st.builds(pb.Part, transaction_id=identities, number=few, transaction=part_bodies),
    "finish": st.builds(pb.Finish, transaction_id=identities),
    "abort": st.builds(pb.Abort, transaction_id=identities),
    "commit": st.builds(pb.Commit, transaction_id=identities, transaction=bodies, parts=few),
    "allocate_oids": st.builds(pb.AllocateOids, count=small),
    "read_barrier": st.builds(pb.ReadBarrier),
    "read_transactions": st.builds(
        pb.ReadTransactions, start=octets, stop=octets, max_bytes=small, at_least=at_least
    ),
    "size": st.builds(pb.Size),
    "blob_chunk": st.builds(
        lambda upload_id, offset, data, flip: pb.BlobChunk(
            upload_id=upload_id, offset=offset, data=data, crc32c=google_crc32c.value(data) ^ flip
        ),
        identities,
        st.one_of(st.integers(0, 9), st.integers(0, (1 << 64) - 1)),
        st.binary(max_size=5),
        st.sampled_from([0, 0, 0, 1]),
    ),
    "load_blob": st.builds(
        pb.LoadBlob,
        oid=octets,
        serial=octets,
        offset=st.integers(0, (1 << 64) - 1),
        max_bytes=small,
        at_least=at_least,
    ),
}
#: A large transaction as a client sends it, or nearly: parts, one of them perhaps lost, and its vote or commit.
large = st.builds(
    lambda identity, some, kind, left_out, number: [
        *(
            pb.Request(id=number, part=pb.Part(transaction_id=identity, number=n, transaction=body))
            for n, body in enumerate(some)
            if n != left_out
        ),
        pb.Request(id=number, **{kind: calls_with_parts[kind](identity, len(some))}),
    ],
    identities,
    st.lists(part_bodies, min_size=1, max_size=3),
    st.sampled_from(["vote", "commit"]),
    st.sampled_from([0, 1, 9, 9, 9, 9]),
    st.sampled_from([1, 1, 1, 0]),
)
calls_with_parts: dict[str, Callable[[bytes, int], Any]] = {
    "vote": lambda identity, count: pb.Vote(transaction_id=identity, parts=count),
    "commit": lambda identity, count: pb.Commit(transaction_id=identity, parts=count),
}
requests = st.one_of(
    *(
        st.builds(lambda number, call, name=name: pb.Request(id=number, **{name: call}), numbers, call)
        for name, call in calls.items()
    ),
    st.builds(pb.Request, id=numbers),
    # a call of a later version: field 31
    st.builds(
        lambda number: pb.Request.FromString(pb.Request(id=number).SerializeToString() + b"\xfa\1\0"), numbers
    ),
)


# ---- nodes --------------------------------------------------------------------------------------------------


class Problems(logging.Handler):
    """What no input may cause: errors in the log, and exceptions that nobody took."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self.found.append(logging.Formatter().format(record))

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.found.append(f"unhandled in the loop: {context}")

    def fatal(self, error: BaseException) -> NoReturn:
        self.found.append(f"the process would end: {error!r}")
        raise SystemExit(70)


def raw(channel: Any) -> Any:
    """A channel as its stubs do not know it: without serializers it carries bytes."""
    return channel


EOF: Any = raw(grpc.aio).EOF
HELLO = pb.Hello(protocol_version=PROTOCOL_VERSION, client_id="0" * 32)
SESSION = "/raftstorage.v1.Storage/Session"


async def exchange(
    address: str, path: str, messages: Sequence[bytes], done: Callable[[list[bytes]], bool], seconds: float = 10.0
) -> tuple[list[bytes], grpc.StatusCode | None, str]:
    """Sends raw messages; returns what came until `done` (then with status None), or until the other side ended.

    AssertionError after `seconds` of neither.
    """
    got: list[bytes] = []
    async with grpc.aio.insecure_channel(address) as channel:
        call = raw(channel).stream_stream(path)()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                await call.write(message)
                # A write into a stream that is being refused hides its status: the first one decides that alone.
                if message is messages[0] and len(messages) > 1:
                    got.append(await asyncio.wait_for(call.read(), 10))
            while not done(got):
                try:
                    answer = await asyncio.wait_for(call.read(), seconds)
                except TimeoutError:
                    raise AssertionError(f"no answer; {len(got)} came") from None
                if answer is EOF:
                    break
                got.append(answer)
            else:
                call.cancel()
                return got, None, ""
        return got, await call.code(), await call.details() or ""


def events(batches: Sequence[bytes]) -> list[pb.Event]:
    return [event for batch in batches for event in pb.EventBatch.FromString(batch).events]


def answers(batches: Sequence[bytes]) -> list[pb.Event]:
    """All but what nobody asked for."""
    return [each for each in events(batches) if each.WhichOneof("kind") not in ("invalidations", "leader")]


def greeting(**changes: Any) -> bytes:
    hello = pb.Hello.FromString(HELLO.SerializeToString())
    hello.MergeFrom(pb.Hello(**changes))
    return pb.RequestBatch(requests=[pb.Request(id=1, hello=hello)]).SerializeToString()


class Witness:
    """Proves after each example that a node serves, and that its state is what its log says and no more."""

    def __init__(self) -> None:
        self.replica = MemoryEngine()
        self.probes = 0

    async def serves(self, node: Node) -> None:
        """A commit and a load, as any client's."""
        self.probes += 1
        assert await self._served(node)

    async def serves_in_time(self, leader: Callable[[], Awaitable[Node]]) -> None:
        """As `serves`, by whoever leads: who loses leadership meanwhile leaves it to the next one, and once."""
        self.probes += 1
        while not await self._served(await leader()):
            pass

    async def _served(self, node: Node) -> bool:
        """False when the node says that it does not lead any more; the same commit is asked again then."""
        oid, data = (1 << 40 | self.probes).to_bytes(8, "big"), b"probe %d" % self.probes
        body = pb.Transaction(records=[pb.NewRecord(oid=oid, data=data)]).SerializeToString()
        asked = [
            pb.Request(id=2, commit=pb.Commit(transaction_id=oid + b"witness!", transaction=body)),
            pb.Request(id=3, read_barrier=pb.ReadBarrier()),
        ]
        batch = pb.RequestBatch(requests=asked).SerializeToString()
        got, _code, why = await exchange(
            node.address, SESSION, [greeting(), batch], lambda b: len(answers(b)) == 3
        )
        answer = {each.id: each for each in answers(got)}[2]
        if answer.failure.reason in (pb.LEADERSHIP_LOST, pb.NOT_LEADER):
            return False
        tid = answer.committed.tid
        assert tid, (why, answers(got))
        load = pb.Request(id=2, load_before=pb.LoadBefore(oid=oid, before=b"\xff" * 8, at_least=tid))
        batch = pb.RequestBatch(requests=[load]).SerializeToString()
        got, _code, why = await exchange(
            node.address, SESSION, [greeting(), batch], lambda b: len(answers(b)) == 2
        )
        assert answers(got)[1].record == pb.Record(data=data, serial=tid), why
        return True

    def replay(self, node: Node) -> list[bytes]:
        """Tids that were committed since the last call."""
        engine, wal = node.driver.engine, node.driver._wal
        tids = []
        while self.replica.applied_index < engine.applied_index:
            index = self.replica.applied_index + 1
            (entry,) = wal.entries(index, index + 1, 0)
            outcome = self.replica.apply(entry)
            if outcome.tid is not None and not outcome.repeated:
                tids.append(outcome.tid)
        assert engine.digest() == self.replica.digest(), "the state is not what the log says"
        return tids


# ---- clients of a coordinator -------------------------------------------------------------------------------


class Reply:
    """Takes the one answer to a request; `unheard`: it does not get to the client."""

    def __init__(self, world: Any, node: Any, kind: str, txn: Txn, owner: object) -> None:
        self.world, self.node, self.kind, self.txn, self.owner = world, node, kind, txn, owner
        self.attempt, self.unheard = txn.attempt, False
        self.answer: pb.Event | None = None
        node.open.append(self)

    def __call__(self, answer: pb.Event) -> None:
        assert self.answer is None, f"answered twice: {self.answer}, {answer}"
        self.answer = answer
        self.node.open = [each for each in self.node.open if each is not self]
        self.world.answered(self, answer)


@dataclass(eq=False)
class Txn:
    """One transaction of a client. `asked`: a Finish or Commit of it left; `refused`: it must not be committed."""

    identity: bytes
    transaction: pb.Transaction
    state: str = "new"
    attempt: int = 0
    voted_at: Any = None  # a node
    asked: bool = False
    refused: str = ""
