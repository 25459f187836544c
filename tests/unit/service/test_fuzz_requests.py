"""Everything that a client can send to a node: each bad request gets its reason, and nothing else happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import grpc.aio
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st
from raftstorage.node.failures import CODES
from raftstorage.node.node import Node
from raftstorage.node.options import NodeOptions
from raftstorage.proto import PROTOCOL_VERSION, admin_pb2
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service import fuzzing as fuzz
from tests.unit.service.fuzzing import SESSION, Problems, Witness, answers, exchange, explore, greeting

ADMIN = "/raftstorage.v1.Admin/"
#: What answers which call, if no failure does.
KINDS = {
    "load_before": "record",
    "load_serial": "record",
    "history": "history",
    "vote": "vote",
    "finish": "committed",
    "abort": "aborted",
    "commit": "committed",
    "allocate_oids": "oids",
    "read_barrier": "read_point",
    "read_transactions": "transactions",
    "size": "size",
    "blob_chunk": "blob_stored",
    "load_blob": "blob_data",
}


class Fuzzed:
    """One node in a loop of its own that only runs while a test does."""

    def __init__(self, directory: Path) -> None:
        self.runner = asyncio.Runner()
        self.problems = Problems()
        self.witness = Witness()
        options = NodeOptions(
            1,
            directory,
            {1: "127.0.0.1:1"},
            listen="127.0.0.1:0",
            tick_ms=10,
            lease_ms=30,
            max_record_bytes=10_000,
            max_transaction_bytes=20_000,
        )
        self.node = Node(options, fatal=self.problems.fatal)
        self.run(self._start())

    async def _start(self) -> None:
        asyncio.get_running_loop().set_exception_handler(self.problems.unhandled)
        await self.node.start()
        await self.node.wait_until_leader(timeout=30)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(asyncio.wait_for(work, 60))

    def talk(
        self, messages: list[bytes], count: int, silent: Iterable[int] = ()
    ) -> tuple[list[pb.Event], grpc.StatusCode | None, str]:
        """A stream until `count` answers, or its end. `silent`: requests that need not be answered, by id."""

        def done(batches: Sequence[bytes]) -> bool:
            return sum(each.id not in silent for each in answers(batches)) >= count

        got, code, details = self.run(exchange(self.node.address, SESSION, messages, done))
        return answers(got), code, details

    def check(self, told: set[bytes]) -> None:
        """`told`: tids that were answered `committed` since the last call. The node must be as good as new."""
        assert set(self.witness.replay(self.node)) <= told, "committed, and nobody was told"
        self.run(self.witness.serves(self.node))
        assert len(self.witness.replay(self.node)) == 1
        assert not self.problems.found, self.problems.found.pop()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    made = Fuzzed(tmp_path_factory.mktemp("fuzz") / "node")
    logging.getLogger().addHandler(made.problems)
    yield made
    logging.getLogger().removeHandler(made.problems)
    made.run(made.node.stop())
    made.runner.close()


def batch(*requests: pb.Request) -> bytes:
    return pb.RequestBatch(requests=requests).SerializeToString()


def is_bad(request: pb.Request) -> bool:
    """Said once more: what must be refused, whatever the node holds."""
    call = request.WhichOneof("call")
    if request.id == 0 or call in (None, "hello"):
        return True
    fields = getattr(request, call)
    for field, value in ((field.name, getattr(fields, field.name)) for field in fields.DESCRIPTOR.fields):
        if call == "blob_chunk":
            crc = google_crc32c.value(fields.data)
            bad = (
                len(fields.upload_id) != 16 or fields.crc32c != crc or fields.offset + len(fields.data) >= 1 << 63
            )
        elif field == "max_bytes" and call == "load_blob":
            bad = value > 1 << 20
        elif field == "oid" or field == "before" or (call in ("load_serial", "load_blob") and field == "serial"):
            bad = len(value) != 8
        elif field in ("at_least", "start", "stop"):
            bad = len(value) not in (0, 8)
        elif field == "transaction_id":
            bad = len(value) != 16
        else:
            bad = field in ("size", "count") and not 1 <= value <= 10_000
        if bad:
            return True
    return False


def check_answer(request: pb.Request, answer: pb.Event) -> None:
    kind, call = answer.WhichOneof("kind"), request.WhichOneof("call") or "none"
    reason = answer.failure.reason
    event(f"{call}: {pb.Reason.Name(reason) if reason else kind}")
    if kind == "failure":
        assert answer.failure.code == CODES[reason] and answer.failure.message
        assert reason not in (pb.INTERNAL, pb.NOT_LEADER, pb.LEADERSHIP_LOST), answer
    else:
        assert call != "part" and kind == KINDS[call]
    assert is_bad(request) <= (reason == pb.INVALID), answer


def test_requests_of_every_kind_with_values_of_every_kind(fuzzed: Fuzzed) -> None:
    some = st.one_of(fuzz.requests.map(lambda request: [request]), fuzz.large)

    @given(groups=st.lists(some, min_size=1, max_size=25), cut=st.integers(1, 25))
    def requests_of_every_kind(groups: list[list[pb.Request]], cut: int) -> None:
        requests = [request for group in groups for request in group]
        for number, request in enumerate(requests, 2):
            request.id = 0 if request.id == 0 else number
        messages = [greeting(), batch(*requests[:cut]), batch(*requests[cut:])]
        # A part is answered only when it is refused.
        silent = {each.id for each in requests if each.HasField("part") and not is_bad(each)}
        loud = [request for request in requests if request.id not in silent]
        got, code, details = fuzzed.talk(messages, len(loud) + 1, silent)
        assert code is None, details
        assert got[0].WhichOneof("kind") == "welcome"
        by_id = {request.id: request for request in requests if request.id}
        nameless = [request for request in requests if not request.id]
        counts = Counter(each.id for each in got[1:])
        assert all(count == 1 for number, count in counts.items() if number)
        assert sorted(each.id for each in got[1:] if each.id not in silent) == sorted(each.id for each in loud)
        for answer in got[1:]:
            check_answer(by_id[answer.id] if answer.id else nameless[0], answer)
        fuzzed.check({each.committed.tid for each in got if each.HasField("committed")})

    explore(requests_of_every_kind, 130)


def test_bytes_that_are_no_requests(fuzzed: Fuzzed) -> None:
    serialized = st.lists(fuzz.requests, min_size=1, max_size=3).map(lambda each: batch(*each))

    @given(garbage=st.one_of(st.binary(max_size=80), fuzz.mangled(serialized)), greeted=st.booleans())
    def bytes_of_any_kind(garbage: bytes, greeted: bool) -> None:
        try:
            parsed = pb.RequestBatch.FromString(garbage)
        except Exception:
            count = 1 << 30  # until the node ends the stream
        else:
            assume(not any(each.HasField("part") for each in parsed.requests))  # it may have no answer
            # Without a Hello the first request is the last one; without requests nobody answers.
            count = len(parsed.requests) + 1 if greeted else min(1, len(parsed.requests))
        got, code, details = fuzzed.talk([greeting(), garbage] if greeted else [garbage], count)
        event(str(code))
        if count == 1 << 30:
            assert code is grpc.StatusCode.INVALID_ARGUMENT, (code, details)
            assert "not a RequestBatch" in details
            assert len(got) <= greeted
        else:
            assert code in (None, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED), (code, details)
            assert all(each.failure.reason != pb.INTERNAL for each in got)
        fuzzed.check({each.committed.tid for each in got if each.HasField("committed")})

    explore(bytes_of_any_kind, 120)


def test_streams_that_begin_with_anything_but_a_good_hello(fuzzed: Fuzzed) -> None:
    hellos = st.builds(
        pb.Hello,
        protocol_version=st.one_of(st.just(PROTOCOL_VERSION), fuzz.small),
        min_protocol_version=st.one_of(st.just(0), fuzz.small),
        client_id=st.one_of(st.just("0" * 32), st.text(max_size=40)),
        cluster_id=st.one_of(st.just(""), st.just("f" * 32), st.text(max_size=200)),
        after_tid=fuzz.octets,
        read_only=st.booleans(),
    )
    firsts = st.one_of(
        fuzz.requests, st.builds(lambda n, hello: pb.Request(id=n, hello=hello), fuzz.numbers, hellos)
    )

    @given(first=firsts)
    def a_first_request(first: pb.Request) -> None:
        got, code, details = fuzzed.talk([batch(first)], 1 << 30 if is_refused(first) else 1)
        assert len(got) == 1 and got[0].id == first.id
        failure = got[0].failure
        if not is_refused(first):
            assert got[0].HasField("welcome")
        else:
            assert code is not None and details == failure.message
            assert failure.code == CODES[failure.reason] == code.value[0]
            event(code.name)
        fuzzed.check(set())

    def is_refused(first: pb.Request) -> bool:
        hello = first.hello
        good_id = len(hello.client_id) == 32 and all(each in "0123456789abcdefABCDEF" for each in hello.client_id)
        return not (
            first.HasField("hello")
            and first.id
            and (hello.min_protocol_version or hello.protocol_version)
            <= PROTOCOL_VERSION
            <= hello.protocol_version
            and good_id
            and hello.cluster_id in ("", fuzzed.node.identity.cluster_id)
            and len(hello.after_tid) in (0, 8)
        )

    explore(a_first_request, 100)


def test_floods(fuzzed: Fuzzed) -> None:
    """More than a batch may hold, and more barriers and votes than may wait."""
    many = [pb.Request(id=number, size=pb.Size()) for number in range(2, 1027)]
    got, code, details = fuzzed.talk([greeting(), batch(*many)], 1 << 30)
    assert (code, len(got)) == (grpc.StatusCode.INVALID_ARGUMENT, 1) and "1024 requests" in details
    barriers = [pb.Request(id=number, read_barrier=pb.ReadBarrier()) for number in range(2, 1026)]
    got, code, _ = fuzzed.talk([greeting(), batch(*barriers), batch(*barriers)], 2049)
    assert code is None
    assert {each.failure.reason for each in got} <= {pb.REASON_UNSPECIFIED, pb.BUSY}
    body = pb.Transaction(records=[pb.NewRecord(oid=b"flooded!", data=b"x")]).SerializeToString()
    votes = [
        pb.Request(id=number, vote=pb.Vote(transaction_id=b"%016d" % number, transaction=body))
        for number in range(2, 102)
    ]
    got, code, _ = fuzzed.talk([greeting(), batch(*votes)], 10)
    assert code is None and all(not each.failure.reason for each in got)
    fuzzed.check(set())


async def call_admin(address: str, method: str, message: bytes) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            await fuzz.raw(channel).unary_unary(ADMIN + method)(message)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def test_what_operators_send(fuzzed: Fuzzed) -> None:
    @given(node=fuzz.numbers, unknown=st.binary(max_size=8))
    def a_transfer(node: int, unknown: bytes) -> None:
        message = admin_pb2.TransferLeaderRequest(to_node=node).SerializeToString()
        code, details = fuzzed.run(call_admin(fuzzed.node.address, "TransferLeader", message))
        assert (code, bool(details)) == (
            (grpc.StatusCode.OK, False) if node == 1 else (grpc.StatusCode.NOT_FOUND, True)
        )
        extra = bytes([15 << 3 | 2, len(unknown)]) + unknown  # a field of a later version
        assert fuzzed.run(call_admin(fuzzed.node.address, "Status", extra))[0] is grpc.StatusCode.OK
        fuzzed.check(set())

    explore(a_transfer, 30)


@pytest.mark.parametrize("method", ["Status", "TransferLeader"])
def test_bytes_that_are_no_admin_request(fuzzed: Fuzzed, method: str) -> None:
    code, _details = fuzzed.run(call_admin(fuzzed.node.address, method, b"\xff"))
    found, fuzzed.problems.found = fuzzed.problems.found, []
    assert (code, found) == (grpc.StatusCode.INVALID_ARGUMENT, [])


def test_a_hello_with_a_long_cluster_id(fuzzed: Fuzzed) -> None:
    _got, code, _details = fuzzed.talk([greeting(cluster_id="f" * 30_000)], 1 << 30)
    assert code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)


def test_the_end_of_a_session_while_something_is_written_to_it(fuzzed: Fuzzed) -> None:
    """Its client must hear of it; left alone with a dead stream it would wait for its answers for ever."""

    async def talk() -> grpc.StatusCode | None:
        async with grpc.aio.insecure_channel(fuzzed.node.address) as channel:
            call = fuzz.raw(channel).stream_stream(SESSION)()
            try:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(greeting())
                    await call.write(b"\xff")
                    while await asyncio.wait_for(call.read(), 2) is not fuzz.EOF:
                        pass
                code: grpc.StatusCode = await asyncio.wait_for(call.code(), 2)
            except TimeoutError:
                return None
            return code

    codes: set[grpc.StatusCode | None] = set()
    try:
        for _ in range(300):
            codes.add(fuzzed.run(talk()))
            if None in codes or fuzzed.problems.found:
                break
    finally:
        found, fuzzed.problems.found = fuzzed.problems.found, []
    assert (codes, found) == ({grpc.StatusCode.INVALID_ARGUMENT}, [])
