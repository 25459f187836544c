"""Everything that a peer can send: to the core, and over the wire to nodes of a cluster.

The process may end by a peer's message only where Raft's own guarantees are broken, as RaftInvariantError:
node/raft/following.py (an APPEND whose entry at the commit index is another one) and node/raft/log.py (a committed
entry to be cut). No message leads to the third one, in RaftCore's constructor.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.messages import LIMIT, REPLIES, is_sane
from raftstorage.node.raft.types import (
    Config,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    Output,
    RaftInvariantError,
    Role,
)
from raftstorage.node.service.codec import decode, encode
from raftstorage.proto import PROTOCOL_VERSION, raft_pb2_grpc
from raftstorage.proto import raft_pb2 as pb

from tests.unit.node.fuzzed_peers import Fuzzed
from tests.unit.raft.memory_log import MemoryLog
from tests.unit.raft.raft_cluster import Timeouts
from tests.unit.service import fuzzing as fuzz
from tests.unit.service.fuzzing import explore

# ---- the core -----------------------------------------------------------------------------------------------

small = st.integers(0, 9)
#: Near what the core holds, and as far from it as a message may say.
numbers = st.one_of(small, small, small, st.sampled_from([LIMIT - 1, LIMIT, (1 << 64) - 1]))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(MessageType))
    index = draw(numbers)
    term = draw(numbers)
    log_term = draw(st.one_of(small, numbers))
    entries = []
    if kind is MessageType.APPEND or draw(st.integers(0, 9)) == 9:
        at = max(1, log_term)
        for position in range(draw(st.integers(0, 4))):
            at += draw(st.integers(0, 1))
            gap = draw(st.integers(0, 30)) == 30
            kinds = st.sampled_from(EntryKind)
            entries.append(Entry(at, index + 1 + position + gap, draw(kinds), draw(st.binary(max_size=3))))
    return Message(
        kind,
        draw(st.sampled_from([2, 2, 3, 3, 1, 9])),
        draw(st.sampled_from([1, 1, 1, 1, 2])),
        term,
        index,
        log_term,
        tuple(entries),
        draw(numbers),
        draw(st.booleans()),
        draw(numbers),
        draw(numbers),
        draw(st.one_of(small, numbers)),
        draw(st.booleans()),
    )


class Glass:
    """A core whose effects are carried out and checked."""

    def __init__(self, terms: list[int], applied: int) -> None:
        entries = [Entry(term, index, EntryKind.COMMAND) for index, term in enumerate(terms, 1)]
        self.disk = MemoryLog(entries, HardState(max([0, *terms])))
        self.core = RaftCore(
            Config(1, frozenset({1, 2, 3}), election_ticks=3),
            self.disk,
            self.disk.hard_state,
            min(applied, len(terms)),
            Timeouts(1),
        )
        self.applied = entries[: self.core.commit_index]
        self.commit = self.core.commit_index

    def carry_out(self) -> Output:
        output = self.core.take_output()
        sent = list(output.send)
        for persist in output.persist:
            self.disk.write(persist.hard_state, persist.entries, persist.snapshot)
            self.core.persisted(persist.ticket)
            sent += persist.then_send
        for message in sent:
            wire = pb.RaftMessage.FromString(encode(message).SerializeToString())
            assert decode(wire, from_node=1, to_node=message.to_node) == message
            assert is_sane(message) or message.term >= LIMIT, message
        for entry in output.apply:
            assert entry.index == len(self.applied) + 1, "applied out of order"
            self.applied.append(entry)
        assert self.commit <= self.core.commit_index <= self.core.last_index
        assert self.disk.entries(1, len(self.applied) + 1, 1 << 40) == self.applied if self.applied else True
        self.commit = self.core.commit_index
        return output


steps = st.lists(
    st.one_of(messages(), messages(), messages(), st.sampled_from(["tick", "propose", "read"])), max_size=30
)


@given(terms=st.lists(st.integers(0, 1), max_size=6), applied=st.integers(0, 6), todo=steps, lead=st.booleans())
def a_core_and_its_peers(terms: list[int], applied: int, todo: list[Any], lead: bool) -> None:
    glass = Glass([1 + sum(terms[: at + 1]) for at in range(len(terms))], applied)
    core = glass.core
    term = core.term
    if lead:
        for _ in range(6):
            core.tick()
        glass.carry_out()
        core.step(Message(MessageType.PRE_VOTE_REPLY, 2, 1, term + 1))
        glass.carry_out()
        core.step(Message(MessageType.VOTE_REPLY, 2, 1, term + 1))
        glass.carry_out()
        assert core.role is Role.LEADER
    for number, what in enumerate(todo, 1):
        before = (core.term, core.vote, core.role, core.leader, core.commit_index, core.last_index)
        event(str(core.role))
        try:
            if what == "tick":
                core.tick()
            elif what == "read":
                core.read_index(number)
            elif what == "propose":
                if core.role is Role.LEADER and not core.transferring_to:
                    core.propose([b"command"])
            else:
                core.step(what)
                stranger = what.from_node == 9 and what.type in REPLIES
                if not is_sane(what) or stranger or what.from_node == 1 or what.to_node != 1:
                    after = (core.term, core.vote, core.role, core.leader, core.commit_index, core.last_index)
                    assert after == before
        except RaftInvariantError:
            event("RaftInvariantError")
            assert isinstance(what, Message) and what.type is MessageType.APPEND
            return
        while core.has_output():
            glass.carry_out()


def test_no_message_of_a_member_raises_anything_but_a_broken_guarantee() -> None:
    explore(a_core_and_its_peers, 500)


def test_a_term_at_the_end_of_the_range_leaves_terms_for_elections() -> None:
    glass = Glass([1], 1)
    glass.core.step(Message(MessageType.VOTE, 2, 1, LIMIT - 1, log_index=1, log_term=1, transfer=True))
    glass.carry_out()
    said: list[Message] = []
    for _ in range(12):
        glass.core.tick()
        output = glass.carry_out()
        said += [*output.send, *(message for persist in output.persist for message in persist.then_send)]
    assert [each for each in said if each.type is MessageType.PRE_VOTE]
    assert all(is_sane(each) for each in said), "what it asks for is nonsense to everybody"


# ---- the wire -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    with ExitStack() as stack:
        made = Fuzzed(tmp_path_factory.mktemp("fuzz"), stack)
        logging.getLogger().addHandler(made.problems)
        stack.callback(logging.getLogger().removeHandler, made.problems)
        yield made
        for node in made.nodes:
            made.run(node.stop())


wires = st.builds(
    pb.RaftMessage,
    type=st.integers(0, 15),
    from_node=st.sampled_from([1, 1, 1, 1, 0, 2, 3, 9, (1 << 64) - 1]),
    to_node=st.sampled_from([2, 3, 2, 3, 0, 1]),
    term=fuzz.numbers,
    log_index=fuzz.numbers,
    log_term=fuzz.numbers,
    entries=st.lists(
        st.builds(
            pb.LogEntry,
            kind=st.integers(0, 5),
            term=fuzz.numbers,
            index=fuzz.numbers,
            data=st.binary(max_size=9),
        ),
        max_size=3,
    ),
    commit=fuzz.numbers,
    reject=st.booleans(),
    hint_index=fuzz.numbers,
    hint_term=fuzz.numbers,
    context=fuzz.numbers,
    transfer=st.booleans(),
)


def is_harmless(wire: pb.RaftMessage, to: int, term: int) -> bool:
    """Whether a correct cluster must shrug it off: nonsense, of the past, or a question that a leader answers.

    A member that lies well can do more: begin a term, lead in it. Raft does not defend against that.
    """
    message = decode(wire, from_node=1, to_node=to)
    if message is None or not is_sane(message):
        return True
    if message.term > term:
        return message.type in (MessageType.PRE_VOTE, MessageType.VOTE) and not message.transfer
    return message.type is not MessageType.APPEND_REPLY and message.type is not MessageType.VOTE_REPLY


def test_messages_that_must_not_matter(fuzzed: Fuzzed) -> None:
    @given(some=st.lists(wires, min_size=1, max_size=12), to=st.sampled_from([2, 3]))
    def messages_of_every_kind(some: list[pb.RaftMessage], to: int) -> None:
        term = fuzzed.nodes[to - 2].driver.term
        kept = [wire for wire in some if is_harmless(wire, to, term)]
        event(f"{len(kept)} messages")
        batch = pb.PeerBatch(messages=kept).SerializeToString()
        code, details = fuzzed.talk(to, fuzzed.hello(to), batch, ends=False)
        assert code is None, details
        fuzzed.check()

    explore(messages_of_every_kind, 60)


def test_hellos_that_do_not_fit(fuzzed: Fuzzed) -> None:
    long = st.text(st.characters(exclude_characters=":"), min_size=1, max_size=80) | st.just("f" * 30_000)
    changes = st.fixed_dictionaries(
        {},
        optional={
            "protocol_version": fuzz.small,
            "min_protocol_version": fuzz.small,
            "cluster_id": long,
            "node_id": fuzz.numbers,
            "to_node_id": fuzz.numbers,
            "instance": st.sampled_from(["", "f" * 32, "e" * 32]) | long,
            "address": st.sampled_from(["", "a:1", "[::1]:2", "a:0", "::1", "\n:1"]) | long,
            "version": fuzz.small,
            "software": long,
        },
    )

    def fits(hello: pb.PeerHello, to: int) -> bool:
        return (
            (hello.min_protocol_version or hello.protocol_version) <= PROTOCOL_VERSION <= hello.protocol_version
            and hello.cluster_id == fuzzed.cluster_id
            and hello.to_node_id == to != hello.node_id
            and 1 <= hello.node_id < 1 << 63
            and hello.instance in ("", "f" * 32, "e" * 32)
            and hello.address in ("", "a:1", "[::1]:2")
        )

    @given(changes=changes, to=st.sampled_from([2, 3]), message=st.booleans())
    def a_hello(changes: dict[str, Any], to: int, message: bool) -> None:
        first = fuzzed.hello(to, **changes)
        good = not message and fits(pb.PeerBatch.FromString(first).hello, to)
        if message:
            first += pb.PeerBatch(
                messages=[pb.RaftMessage(type=pb.RaftMessage.HEARTBEAT, from_node=1)]
            ).SerializeToString()
        event("fits" if good else "does not fit")
        code, details = fuzzed.talk(to, first, ends=not good)
        if not good:
            assert code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED), (code, details)
            assert details
        elif code is not None:
            # Who is connected as that node, by the last example or for real, came with another directory.
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "another directory than the one that is connected" in details
        fuzzed.check()

    explore(a_hello, 80)


notes = st.builds(pb.PeerStatusNote, disk_full=st.booleans(), applied_index=fuzz.numbers)


def test_notes_of_every_kind(fuzzed: Fuzzed) -> None:
    @given(some=st.lists(notes, min_size=1, max_size=3), to=st.sampled_from([2, 3]))
    def batches(some: list[pb.PeerStatusNote], to: int) -> None:
        sent = [pb.PeerBatch(status=note).SerializeToString() for note in some]
        code, details = fuzzed.talk(to, fuzzed.hello(to), *sent, ends=False)
        assert code is None, details
        fuzzed.check()

    explore(batches, 10)


def test_requests_for_a_snapshot(fuzzed: Fuzzed) -> None:
    """Who asks without a hello that fits is refused; who asks with one is sent a manifest first."""

    async def ask(address: str, request: pb.SnapshotRequest) -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(address) as channel:
            call = raft_pb2_grpc.PeersStub(channel).Snapshot(request)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            return await call.code(), await call.details()

    hello = pb.PeerBatch.FromString(fuzzed.hello(2)).hello
    for request, code, why in (
        (pb.SnapshotRequest(), grpc.StatusCode.UNIMPLEMENTED, "speaks protocol 0"),
        (
            pb.SnapshotRequest(hello=pb.PeerHello(protocol_version=PROTOCOL_VERSION)),
            grpc.StatusCode.FAILED_PRECONDITION,
            "is of cluster ''",
        ),
    ):
        got = fuzzed.run(ask(fuzzed.nodes[0].address, request))
        assert got[0] is code and why in got[1], got

    async def first_chunk() -> pb.SnapshotChunk:
        async with grpc.aio.insecure_channel(fuzzed.nodes[0].address) as channel:
            call = raft_pb2_grpc.PeersStub(channel).Snapshot(pb.SnapshotRequest(hello=hello))
            chunk: pb.SnapshotChunk = await call.read()
            call.cancel()
            return chunk

    assert fuzzed.run(first_chunk()).manifest.files

    async def ask_nonsense() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(fuzzed.nodes[0].address) as channel:
            call = fuzz.raw(channel).unary_stream("/raftstorage.v1.Peers/Snapshot")(b"\xff")
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            code: grpc.StatusCode = await call.code()
            return code

    assert fuzzed.run(ask_nonsense()) is grpc.StatusCode.INVALID_ARGUMENT
    fuzzed.check()


@pytest.mark.parametrize("greeted", [False, True])
def test_bytes_that_are_no_batch(fuzzed: Fuzzed, greeted: bool) -> None:
    batches = [fuzzed.hello(2), b"\xff"] if greeted else [b"\xff"]
    code, _details = fuzzed.talk(2, *batches, ends=True)
    found, fuzzed.problems.found = fuzzed.problems.found, []
    fuzzed.check()
    assert (code, found) == (grpc.StatusCode.INVALID_ARGUMENT, [])
