"""Transactions in fragments: whatever happens to them, they are what they would be in one piece, or nothing."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
from google.protobuf.message import DecodeError
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from raftstorage.node.engine import MemoryEngine, RocksEngine, commits, layout
from raftstorage.node.engine.api import MAX_CONFLICTS, Applied, EngineError
from raftstorage.node.engine.fragments import split
from raftstorage.node.engine.layout import read_head, read_stub, seal
from raftstorage.node.engine.rocks import RocksStore
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.raft.types import Entry, EntryKind
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.blob_model import CHUNK, UPLOADS, blob_commands
from tests.unit.engine.commands import allocate, change, entry, feed, in_fragments, p64, run
from tests.unit.engine.machine import EngineMachine
from tests.unit.engine.model import commands
from tests.unit.service.fuzzing import explore

A, B = b"A" * 16, b"B" * 16


def is_tidy(engine: StateMachine) -> None:
    """Nothing is stored but what can be read, once what packs made invisible is removed."""
    store = engine._store
    if engine.pack.collect and not engine.pack.collected:
        over = pb.CollectCommand(pack_id=engine.pack.pack_id, last=True)
        feed(engine, pb.Command(collect=over).SerializeToString())
    while engine.pack_step(7):
        pass
    heads = {tid: read_head(tid, sealed) for tid, sealed in store.scan("transactions", b"")}
    oids = {
        oid + tid
        for tid, head in heads.items()
        for oid in (engine._changed(head) if head.pages else [each.oid for each in head.info.records])
    }
    stubs = {key: read_stub(key, sealed) for key, sealed in store.scan("records", b"")}
    assert stubs.keys() == {key for key in oids if engine._stub(key) is not None}
    left = Counter(key[8:] for key in stubs)
    listed = Counter(key[8:] for key in oids)
    assert [tid for tid in heads if not left[tid] and tid < engine.packed] == []
    gone = {b"gone" + tid: listed[tid] - left[tid] for tid in heads if left[tid] < listed[tid]}
    packing = {key: layout.unseal("packing", key, value) for key, value in store.scan("packing", b"")}
    assert {key: int.from_bytes(value, "big") for key, value in packing.items() if len(key) == 12} == gone
    assert packing.keys() - gone.keys() <= {b"pack", b"removal"}
    chunks = {layout.chunk_key(key, number) for key, stub in stubs.items() for number in range(stub.chunks)}
    assert {key for key, _ in store.scan("data", b"")} == chunks
    pages = {layout.page_key(head.fragment, page) for head in heads.values() for page in range(head.pages)}
    assert {key for key, _ in store.scan("pages", b"")} == pages
    assert {key for key, _ in store.scan("meta", b"")} <= {b"state", b"membership"}
    open_uploads = [each for each in map(engine._upload, UPLOADS) if each is not None]
    named = Counter(stub.blob.number for stub in stubs.values() if stub.blob is not None and stub.blob.number)
    blobs = dict(store.scan("blobs", b""))
    counts = {int.from_bytes(key, "big"): sealed for key, sealed in blobs.items() if len(key) == 8}
    assert counts == {number: seal(count.to_bytes(4, "big")) for number, count in named.items() if count > 1}
    assert {int.from_bytes(key[:8], "big") for key in blobs} == {*named, *(each.number for each in open_uploads)}
    idle = [key for key, _ in store.scan("uploads", b"t")]
    assert len(idle) == sum(1 for _ in store.scan("uploads", b"")) - len(idle)


# ---- any transaction, cut anywhere ---------------------------------------------------------------------------


@st.composite
def cuts(draw: st.DrawFn, whole: pb.Transaction) -> tuple[list[bytes], bytes]:
    """Bodies of fragments and the rest, which together are `whole`."""
    pieces = [pb.Transaction()]
    for record in whole.records:
        data = record.data
        inner = [] if record.no_data else sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
        for begin, end in itertools.pairwise([0, *inner, len(data)]):
            pieces[-1].records.add(oid=record.oid, data=data[begin:end], more=True)
            pieces.append(pb.Transaction())
        first, last = pieces[-2 - len(inner)].records[-1], pieces[-2].records[-1]
        first.base_serial, first.data_tid, first.no_data = record.base_serial, record.data_tid, record.no_data
        if record.HasField("blob"):
            last.blob.CopyFrom(record.blob)
        last.more = False
        if draw(st.booleans()):  # what comes next comes in the same fragment
            pieces.pop()
    at = 0
    for check in whole.checks:
        at = draw(st.integers(at, len(pieces) - 1))
        pieces[at].checks.append(check)
    rest = pieces.pop() if draw(st.booleans()) else pb.Transaction()
    rest.user, rest.description, rest.extension = whole.user, whole.description, whole.extension
    rest.tid, rest.status = whole.tid, whole.status
    return [each.SerializeToString() for each in pieces], rest.SerializeToString()


class FragmentMachine(EngineMachine):
    """Runs of fragments, gone on with or interrupted by all that an EngineMachine does.

    The model never hears of a fragment: nothing shows before the commit, which it gets in one piece.
    """

    pending: list[bytes]

    def made(self, retention: int) -> list[StateMachine]:
        self.directory = Path(tempfile.mkdtemp())
        self.home = self.directory / "db"
        self.retention = retention
        self.small = ExitStack()
        for name, size in (("commits.INLINE_BYTES", 8), ("commits.PAGE_OIDS", 2), ("layout.CHUNK_BYTES", 5)):
            self.small.enter_context(mock.patch(f"raftstorage.node.engine.{name}", size))
        self.small.enter_context(mock.patch.object(StateMachine, "blob_chunk_bytes", CHUNK))
        self.pending, self.whole, self.intact = [], b"", False
        return [MemoryEngine(retention), RocksEngine(self.home, retention)]

    def feed(self, data: bytes) -> None:
        self.intact = False
        super().feed(data)

    @rule(
        data=st.data(),
        modes=st.lists(st.sampled_from(["whole", "whole", "again", "cut", "left"]), min_size=1, max_size=6),
    )
    def runs(self, data: st.DataObject, modes: list[str]) -> None:
        """Each goes on to its end, with the last one's command, or to where something comes between, or stops."""
        for mode in modes:
            if mode != "again" or not self.whole:
                self.whole = data.draw(commands(self.model))
            self.pending = self.cut(data, pb.Command.FromString(self.whole).commit)
            self.intact = True
            if mode in ("cut", "left"):
                self.go_on(data.draw(st.integers(1, max(1, len(self.pending) - 1))))
            if mode == "cut":
                self.feed(data.draw(st.one_of(st.just(b""), commands(self.model), blob_commands(self.model))))
            if mode != "left":
                self.go_on(99)

    def cut(self, data: st.DataObject, commit: pb.CommitCommand) -> list[bytes]:
        try:
            bodies, rest = data.draw(cuts(pb.Transaction.FromString(commit.transaction)))
        except DecodeError:
            bodies, rest = [b"", commit.transaction], b""
            if data.draw(st.booleans()):
                bodies, rest = [b""], commit.transaction
        return run(commit.transaction_id, commit.tid, bodies, rest)

    @precondition(lambda self: self.pending)
    @rule(count=st.integers(1, 9))
    def go_on(self, count: int) -> None:
        for _ in range(min(count, len(self.pending))):
            data = self.pending.pop(0)
            if self.pending:
                self.staged(data)
            else:
                self.committed(data)

    def staged(self, data: bytes) -> None:
        self.model.index += 1
        self.model.forget()
        for engine in self.engines:
            outcome = engine.apply(entry(self.model.index, data))
            assert (outcome.tid, outcome.oids, outcome.conflicts) == (None, (), ())
            assert self.intact or outcome.refused

    def committed(self, data: bytes) -> None:
        commit = pb.Command.FromString(data).commit
        if self.intact or not commit.fragments or commit.transaction_id in self.model.ids:
            kind, expected = self.model.apply(self.whole)
        else:
            self.model.index += 1
            self.model.forget()
            kind, expected = "cut", Applied(self.model.index, commit.transaction_id, refused="?")
        event(f"run: {kind}")
        self.expect(data, kind, expected)

    @precondition(lambda self: len(self.pending) > 1)
    @rule(at=st.integers(0, 9))
    def lose_some(self, at: int) -> None:
        """A later leader's log begins in the middle of the run, or lacks some of it: no log can."""
        self.intact = False
        del self.pending[at % len(self.pending)]
        if pb.Command.FromString(self.pending[-1]).WhichOneof("kind") != "commit":
            self.pending.clear()

    @precondition(lambda self: self.pending)
    @rule()
    def give_up(self) -> None:
        self.pending = []

    @rule(kind=st.sampled_from([EntryKind.NOOP, EntryKind.MEMBERSHIP]))
    def something_else(self, kind: EntryKind) -> None:
        self.intact = False
        self.model.index += 1
        self.model.forget()
        for engine in self.engines:
            engine.apply(Entry(1, self.model.index, kind, b"members" if kind is EntryKind.MEMBERSHIP else b""))

    @rule(number=st.integers(0, 99))
    def reopen(self, number: int) -> None:
        """Or go on with a checkpoint."""
        engine = self.engines[1]
        digest = engine.digest()
        if number % 2:
            engine.flush()
            engine.close()
            self.engines[1] = RocksEngine(self.home, self.retention)
        else:
            copy = self.directory / f"copy {self.model.index} {number}"
            if not copy.exists():
                engine.checkpoint(copy)
                engine.adopt(RocksStore(copy)).close()
                self.home = copy
        assert self.engines[1].digest() == digest

    def teardown(self) -> None:
        for engine in getattr(self, "engines", []):
            while engine._staging is not None or engine._dropped:
                engine.apply(entry(engine.applied_index + 1, b""))
            is_tidy(engine)
        super().teardown()
        shutil.rmtree(self.directory)
        self.small.close()


def test_fragments_against_dictionaries() -> None:
    explore(FragmentMachine, 60, steps=30)


# ---- by hand -------------------------------------------------------------------------------------------------


def test_nothing_shows_before_the_commit_and_all_with_it(engine: StateMachine) -> None:
    feed(engine, *in_fragments(A, 10, change(1, 2)))
    *fragments, commit = in_fragments(B, 20, change(1, base=10), change(3, 4), change(5), user=b"user")
    outcomes = feed(engine, *fragments)
    assert [each.staged for each in outcomes] == [(p64(1),), (p64(3), p64(4))]
    assert engine.last_tid == engine.current_serial(p64(1)) == p64(10)
    assert engine.current_serial(p64(3)) is None
    assert engine.load_before(p64(1), b"\xff" * 8).next_serial is None  # type: ignore[union-attr]
    with pytest.raises(KeyError):
        engine.load_serial(p64(3), p64(20))
    with pytest.raises(KeyError):
        engine.load_before(p64(3), b"\xff" * 8)
    assert engine.changed_since(p64(10), 9) == []
    assert engine.approximate_size()[1] == 2
    (outcome,) = feed(engine, commit)
    assert outcome.tid == engine.last_tid == engine.current_serial(p64(1)) == p64(20)
    assert not isinstance(outcome.oids, tuple)
    assert list(outcome.oids.pages()) == [(p64(1),), (p64(3), p64(4)), (p64(5),)]
    assert (len(outcome.oids), outcome.oids.last) == (4, (p64(5),))
    assert engine.changed_since(p64(10), 9) == [(p64(20), (p64(1), p64(3), p64(4), p64(5)))]
    assert engine.history(p64(1), 1)[0][0].user == b"user"
    assert engine.approximate_size()[1] == 5
    assert feed(engine, allocate(1))[0].first_oid == p64(6)
    is_tidy(engine)


def test_fragments_that_were_dropped_never_show(engine: StateMachine) -> None:
    """Not even where the last tid passes theirs, or another transaction takes it."""
    feed(engine, *in_fragments(A, 10, change(1)))
    feed(engine, *in_fragments(B, 20, change(1, 3, base=10, size=99), change(4), change(7))[:2])
    feed(engine, *in_fragments(B, 20, *(change(oid, size=99) for oid in range(3, 9)), change(1))[:5])
    feed(engine, *in_fragments(B, 20, change(3, size=2), change(9)), *in_fragments(b"C" * 16, 30, change(5)))
    assert engine._dropped, "all was removed already: this proves nothing"
    for _ in range(12):
        assert engine.current_serial(p64(1)) == p64(10)
        assert engine.load_before(p64(3), p64(29)).data == b"33"  # type: ignore[union-attr]
        assert engine.load_before(p64(5), p64(31)).serial == p64(30)  # type: ignore[union-attr]
        assert engine.load_before(p64(5), p64(30)) is None
        for oid in (4, 6, 7):
            assert engine.current_serial(p64(oid)) is None
            with pytest.raises(KeyError):
                engine.load_serial(p64(oid), p64(20))
            with pytest.raises(KeyError):
                engine.history(p64(oid), 9)
        feed(engine, b"")
    assert not engine._dropped
    is_tidy(engine)


def test_what_was_dropped_is_removed_a_page_at_a_time(engine: StateMachine) -> None:
    with mock.patch.object(commits, "PAGE_OIDS", 10):
        feed(engine, *in_fragments(A, 10, change(*range(95)), change(200))[:1])
        left = []
        for _ in range(12):
            feed(engine, b"")
            left.append(len(list(engine._store.scan("records", b""))))
    assert left == [95, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0, 0]


@pytest.mark.parametrize(
    "part",
    [
        b"\xff",
        pb.Transaction(user=b"user"),
        pb.Transaction(tid=p64(20)),
        change(2, 2),
        change(1),  # the first fragment had it
        pb.Transaction(records=[pb.NewRecord(oid=p64(2), more=True), pb.NewRecord(oid=p64(3))]),
        pb.Transaction(records=[pb.NewRecord(oid=p64(2), more=True, no_data=True)]),
        pb.Transaction(records=[pb.NewRecord(oid=p64(2), more=True)]),
    ],
)
def test_a_malformed_fragment_refuses_the_whole(engine: StateMachine, part: pb.Transaction | bytes) -> None:
    body = part if isinstance(part, bytes) else part.SerializeToString()
    first, last = change(1).SerializeToString(), change(9).SerializeToString()
    outcomes = feed(engine, *run(A, p64(20), [first, body, b""], last))
    assert "malformed" in outcomes[-1].refused
    feed(engine, *[b""] * 4)
    assert (engine.last_tid, engine.approximate_size()[1]) == (bytes(8), 0)
    is_tidy(engine)


def test_a_record_in_pieces_is_one(engine: StateMachine) -> None:
    """The first ones are smaller than what would be kept with its serial if it was all."""
    pieces = [pb.Transaction(records=[pb.NewRecord(oid=p64(1), data=b"one ", more=True)])]
    pieces += [pb.Transaction(records=[pb.NewRecord(oid=p64(1), data=b"x" * 600_000, more=True)])]
    pieces += [pb.Transaction(records=[pb.NewRecord(oid=p64(1), data=b" end"), pb.NewRecord(oid=p64(2))])]
    (*_, outcome) = feed(engine, *in_fragments(A, 10, *pieces))
    assert list(outcome.oids) == [p64(1), p64(2)]
    whole = b"one " + b"x" * 600_000 + b" end"
    assert engine.load_serial(p64(1), p64(10)) == whole
    assert engine.history(p64(1), 1)[0][0].size == len(whole)
    ((transaction,), _none) = engine.transactions(bytes(8), None, 1 << 20)
    assert [each.data for each in transaction.records] == [whole, b""]
    engine._store.write([("data", layout.chunk_key(p64(1) + p64(10), 1), None)])
    with pytest.raises(EngineError, match="missing"):
        engine.load_serial(p64(1), p64(10))


@pytest.mark.parametrize("whole", [False, True])
def test_only_the_first_conflicts_are_told(engine: StateMachine, whole: bool) -> None:
    feed(engine, *in_fragments(A, 10, change(*range(300))))
    stale, more = change(*range(150)), change(*range(150, 290))
    (*_, outcome) = feed(engine, *in_fragments(B, 20, *([stale] if whole else [stale, more, change()])))
    assert [each.oid for each in outcome.conflicts] == [p64(oid) for oid in range(MAX_CONFLICTS)]
    assert [each.serial for each in outcome.conflicts] == [p64(10)] * MAX_CONFLICTS


def test_a_transaction_is_split_and_comes_together_again() -> None:
    whole = change(*range(40), checks=(1, 2, 3), size=30)
    whole.records[7].data = bytes(5000)
    whole.records[39].data = bytes(1001)
    pieces = list(split(whole, max_bytes=500, max_items=6))
    assert max(each.ByteSize() for each in pieces) < 1000
    assert max(len(each.records) + len(each.checks) for each in pieces) <= 6
    engine = MemoryEngine()
    (*_, outcome) = feed(engine, *in_fragments(A, 10, *pieces, pb.Transaction()))
    assert list(outcome.oids) == [p64(oid) for oid in range(40)]
    ((found,), _none) = engine.transactions(bytes(8), None, 1 << 20)
    assert [each.data for each in found.records] == [each.data for each in whole.records]
