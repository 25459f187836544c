"""Changes that are left out, as a pack took them while the client was away: what is told in which order, and that
nothing read before them is taken for current behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from raftstorage.client import ClientStorage
from raftstorage.client.cluster.feed import Feed
from raftstorage.client.cluster.loop import run_in_loop
from zc.zlibstorage import ZlibStorage
from ZODB.tests.hexstorage import HexStorage

from tests.unit.client.conftest import FakeCluster, tid_of

OID, OTHER = tid_of(1), tid_of(2)


class Told:
    """A database, which is told in the storage's order what its cache is told, too."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.transform_record_data = self.untransform_record_data = lambda data: data

    def invalidate(self, tid: bytes, oids: Sequence[bytes]) -> None:
        self.words.append(f"change {int.from_bytes(tid)}")

    def invalidateCache(self) -> None:
        self.words.append("missed")


@pytest.fixture
def feed() -> Iterator[tuple[Feed, list[str]]]:
    """At 10, with what it tells of."""
    feed, told = Feed(), Told()
    feed.accepted = feed.last = tid_of(10)
    feed.on_change, feed.on_missed = told.invalidate, told.invalidateCache
    yield feed, told.words
    feed.close()


def test_a_gap_is_told_where_it_is(feed: tuple[Feed, list[str]]) -> None:
    it, words = feed
    it.accept(tid_of(20), [OID])
    it.miss()
    it.accept(tid_of(30), [OID])
    it.accept(tid_of(40), [OID])
    assert it.last_transaction() == tid_of(40)
    assert words == ["change 20", "missed", "change 30", "change 40"]


def test_a_gap_with_nothing_behind_it_is_told(feed: tuple[Feed, list[str]]) -> None:
    it, words = feed
    it.miss()
    it.miss()
    assert it.last_transaction() == tid_of(10)
    assert words == ["missed", "missed"]


@pytest.mark.parametrize("before", [True, False])
def test_a_gap_beside_a_transaction_of_ones_own(feed: tuple[Feed, list[str]], before: bool) -> None:
    it, words = feed
    it.hold([OID])
    if before:
        it.miss()
    it.accept(tid_of(20), [OID])
    if not before:
        it.miss()
    it.accept(tid_of(30), [OTHER])
    it.finish(tid_of(20), lambda tid: words.append("finished"), 5.0)
    assert it.last_transaction() == tid_of(30)
    expected = ["missed", "finished", "change 20"] if before else ["finished", "change 20", "missed"]
    assert words == [*expected, "change 30"]


def test_who_cannot_be_told_of_a_gap_is_told_so(feed: tuple[Feed, list[str]]) -> None:
    it, _ = feed

    def fail() -> None:
        raise OSError("no")

    it.on_missed = fail
    it.miss()
    with pytest.raises(OSError, match="no"):
        it.last_transaction()
    it.accept(tid_of(20), [OID])
    with pytest.raises(Exception, match="reopen the storage"):
        it.last_transaction()


def test_what_was_asked_for_before_a_gap_is_not_current_behind_it(cluster: FakeCluster) -> None:
    """With a database over the storage as without one."""
    first = cluster.commit_elsewhere(OID)
    storage = ClientStorage(cluster.addresses)
    try:
        told = Told()
        storage.registerDB(told)
        assert storage.load(OID) == (b"elsewhere", first)
        run_in_loop(storage.cluster.feed.miss)
        storage.lastTransaction()
        storage.cache.store(OID, b"old", first, None, first)  # an answer that comes late
        newest = cluster.commit_elsewhere(OTHER)
        storage.cluster.feed.wait_for(newest, 5.0)
        assert "missed" in told.words
        storage.cache.store(OID, b"old", first, None, first)
        assert not storage.cache.has(OID, tid_of(int.from_bytes(newest) + 1))
    finally:
        storage.close()


@pytest.mark.parametrize("wrap", [HexStorage, ZlibStorage])
def test_a_gap_before_a_wrapper_has_its_database_hurts_nobody(
    cluster: FakeCluster, wrap: Callable[[Any], Any]
) -> None:
    storage = ClientStorage(cluster.addresses)
    try:
        wrapper, told = wrap(storage), Told()
        for _ in range(2):
            run_in_loop(storage.cluster.feed.miss)
            storage.lastTransaction()
            wrapper.registerDB(told)
        assert told.words == ["missed"]  # of the second one
    finally:
        storage.close()
