"""The client's record cache: what it may answer, whatever overtakes what; and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from raftstorage.client.cache.records import OVERHEAD_BYTES, RecordCache, Revision


def t(number: int) -> bytes:
    return number.to_bytes(8)


A, B = t(1), t(2)


def test_a_current_revision_ends_when_a_change_is_told() -> None:
    cache = RecordCache()
    cache.start(t(10))
    cache.store(A, b"old", t(5), None, t(10))
    assert cache.load_before(A, t(11)) == Revision(b"old", t(5), None)
    cache.invalidate(t(12), [A])
    assert cache.load_before(A, t(12)) == Revision(b"old", t(5), t(12))
    assert cache.load_before(A, t(13)) is None
    assert cache.load_before(A, t(5)) is None, "before its first revision, nothing is known"
    cache.store(A, b"new", t(12), None, t(12))
    assert cache.load_before(A, t(13)) == Revision(b"new", t(12), None)
    assert cache.load_serial(A, t(5)) == b"old"


def test_an_answer_that_a_change_has_overtaken_is_not_current() -> None:
    cache = RecordCache()
    cache.start(t(10))
    cache.invalidate(t(11), [A])  # told while the answer, as of 10, is on its way
    cache.store(A, b"old", t(5), None, t(10))
    assert cache.load_before(A, t(12)) is None


def test_an_answer_of_a_replica_that_lags_is_not_current() -> None:
    """It was told before the question: there was nothing here that it could have ended."""
    cache = RecordCache()
    cache.start(t(10))
    cache.invalidate(t(20), [A])
    cache.store(A, b"old", t(5), None, t(15))
    assert cache.load_before(A, t(21)) is None
    cache.store(B, b"else", t(5), None, t(15))
    assert cache.load_before(B, t(21)) == Revision(b"else", t(5), None)


def test_what_is_not_remembered_makes_nothing_current() -> None:
    cache = RecordCache(remembered=2)
    cache.start(t(10))
    cache.invalidate(t(11), [A])
    cache.invalidate(t(12), [t(7), t(8), t(9)])
    cache.store(A, b"old", t(5), None, t(10))
    cache.store(B, b"else", t(5), None, t(10))
    assert cache.load_before(A, t(13)) is None
    assert cache.load_before(B, t(13)) is None, "it may have changed at 11, for all that is remembered"
    cache.store(B, b"else", t(5), None, t(12))
    assert cache.load_before(B, t(13)) == Revision(b"else", t(5), None)


def test_an_answer_that_was_asked_for_before_missed_changes_is_not_current() -> None:
    cache = RecordCache()
    cache.start(t(10))
    cache.missed()
    cache.store(A, b"old", t(5), None, t(10))
    assert not cache.has(A, t(11))
    cache.invalidate(t(20), [B])
    cache.store(A, b"old", t(5), None, t(19))
    assert not cache.has(A, t(21))
    cache.store(A, b"old", t(5), None, t(20))
    assert cache.load_before(A, t(21)) == Revision(b"old", t(5), None)


def test_revisions_of_one_object_stand_side_by_side() -> None:
    cache = RecordCache()
    cache.start(t(30))
    cache.store(A, b"three", t(30), None, t(30))
    cache.store(A, b"one", t(10), t(20), t(15))
    assert [cache.load_before(A, t(n)) for n in (11, 20, 21, 30, 31)] == [
        Revision(b"one", t(10), t(20)),
        Revision(b"one", t(10), t(20)),
        None,
        None,
        Revision(b"three", t(30), None),
    ]


def test_bytes_stay_within_the_bound() -> None:
    cache = RecordCache(100 * (OVERHEAD_BYTES + 100))
    cache.start(t(1))
    for number in range(1000):
        cache.store(t(number), bytes(100), t(1), None, t(1))
        assert cache.figures().bytes <= cache.max_bytes
    assert cache.figures().entries == 100
    assert cache.figures().evictions == 900
    cache.store(t(5000), bytes(cache.max_bytes), t(1), None, t(1))
    assert not cache.has(t(5000), t(2)), "one that would take the place of all others"
    cache.clear()
    assert cache.figures()[:2] == (0, 0)


def test_what_is_asked_for_again_outlives_a_scan() -> None:
    cache = RecordCache(100 * (OVERHEAD_BYTES + 100))
    cache.start(t(1))
    hot = [t(number) for number in range(20)]
    for oid in hot:
        cache.store(oid, bytes(100), t(1), None, t(1))
        cache.load_before(oid, t(2))
    for number in range(100, 2000):
        cache.store(t(number), bytes(100), t(1), None, t(1))
    assert sum(cache.has(oid, t(2)) for oid in hot) == 20


def test_contents_go_into_another_cache() -> None:
    cache, other = RecordCache(), RecordCache()
    cache.start(t(10))
    cache.store(A, b"old", t(5), t(8), t(6))
    cache.store(A, b"new", t(8), None, t(10))
    known, contents = cache.contents()
    other.restore(known, contents)
    assert other.known == t(10)
    assert other.load_before(A, t(8)) == Revision(b"old", t(5), t(8))
    other.invalidate(t(11), [A])
    assert other.load_before(A, t(12)) is None


class Interleavings(RuleBasedStateMachine):
    """A history of three objects, a client that is told of it step by step, and replicas that answer late.

    Whatever the cache says at a snapshot that the client may read must be what the history says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cache = RecordCache(9 * (OVERHEAD_BYTES + 8), remembered=2)
        self.tid = 1
        self.told = 1
        self.cache.start(t(1))
        self.history: dict[bytes, list[int]] = {oid: [1] for oid in (A, B, t(3))}
        self.changes: list[tuple[int, list[bytes]]] = []
        self.answers: list[tuple[Any, ...]] = []

    def _truth(self, oid: bytes, before: int, applied: int) -> tuple[int, int | None]:
        tids = [each for each in self.history[oid] if each <= applied]
        serial = max(each for each in tids if each < before)
        later = [each for each in tids if each >= before]
        return serial, min(later) if later else None

    @rule(oids=st.sets(st.sampled_from([A, B, t(3)]), min_size=1))
    def commit(self, oids: set[bytes]) -> None:
        self.tid += 1
        for oid in oids:
            self.history[oid].append(self.tid)
        self.changes.append((self.tid, sorted(oids)))

    @precondition(lambda self: self.changes)
    @rule()
    def tell(self) -> None:
        tid, oids = self.changes.pop(0)
        self.cache.invalidate(t(tid), oids)
        self.told = tid

    @rule(oid=st.sampled_from([A, B, t(3)]), back=st.integers(0, 3), ahead=st.integers(0, 3))
    def ask(self, oid: bytes, back: int, ahead: int) -> None:
        """A replica that has applied what is asked for, or more, has answered; the answer is on its way."""
        as_of = max(1, self.told - back)
        applied = min(self.tid, as_of + ahead)
        serial, later = self._truth(oid, as_of + 1, applied)
        self.answers.append((oid, serial, later, as_of))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        oid, serial, later, as_of = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        self.cache.store(oid, t(serial), t(serial), None if later is None else t(later), t(as_of))

    @invariant()
    def true(self) -> None:
        for oid in self.history:
            for before in range(2, self.told + 2):
                found = self.cache.load_before(oid, t(before))
                if found is not None:
                    serial, later = self._truth(oid, before, self.tid)
                    assert (found.serial, found.data) == (t(serial), t(serial))
                    assert found.next_serial in (None, None if later is None else t(later))
                    if found.next_serial is None:
                        assert later is None or later > self.told


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000), st.booleans()), max_size=200))
@settings(deadline=None)
def test_counts_are_those_of_the_entries(stores: list[tuple[int, int, bool]]) -> None:
    cache = RecordCache(20_000)
    cache.start(t(50))
    for number, size, use in stores:
        cache.store(t(number), bytes(size), t(1 + size % 7), t(9), t(50))
        if use:
            cache.load_before(t(number), t(9))
        _known, contents = cache.contents()
        figures = cache.figures()
        assert figures.entries == len(contents)
        assert figures.bytes == sum(len(each.data) + OVERHEAD_BYTES for _, each in contents)
        assert figures.bytes <= 20_000


@pytest.mark.parametrize("remembers", [True, False])
def test_the_model_notices_a_cache_that_errs(monkeypatch: pytest.MonkeyPatch, remembers: bool) -> None:
    """A test that cannot fail proves nothing."""

    def forgetful(
        self: RecordCache, oid: bytes, data: bytes, serial: bytes, later: bytes | None, as_of: bytes
    ) -> None:
        real(self, oid, data, serial, later, max(as_of, self.known) if remembers else as_of)
        if not remembers:
            self._changed.clear()
            self._forgotten = t(0)

    real = RecordCache.store
    monkeypatch.setattr(RecordCache, "store", forgetful)
    case = Interleavings.TestCase("runTest")
    case.settings = settings(max_examples=500, stateful_step_count=40, deadline=None, database=None)
    with pytest.raises(AssertionError):
        case.runTest()
