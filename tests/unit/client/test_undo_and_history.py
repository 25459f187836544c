"""Undo, deletions, histories and packed states beyond what ZODB's own tests look at, on a node in this process."""

from __future__ import annotations

import time
from base64 import encodebytes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import transaction
import ZODB
from persistent.TimeStamp import TimeStamp
from raftstorage.client import ClientStorage
from raftstorage.client.storage.errors import PackedAway
from ZODB import POSException, interfaces
from ZODB.Connection import TransactionMetaData
from ZODB.tests.ConflictResolution import PCounter
from ZODB.tests.MinPO import MinPO
from ZODB.tests.StorageTestBase import zodb_pickle, zodb_unpickle
from ZODB.utils import p64, u64, z64
from zope.interface.verify import verifyObject

Changes = dict[bytes, tuple[bytes, bytes | None]]


@pytest.fixture
def storage(place: str) -> Iterator[ClientStorage]:
    client = ClientStorage(place)
    yield client
    client.close()


def commit(storage: ClientStorage, changes: Changes, **metadata: Any) -> bytes:
    """Stores {oid: (base serial, data)} or deletes (data None); the tid."""
    t = TransactionMetaData(**metadata)
    storage.tpc_begin(t)
    try:
        for oid, (serial, data) in changes.items():
            if data is None:
                storage.deleteObject(oid, serial, t)
            else:
                storage.store(oid, serial, data, "", t)
        storage.tpc_vote(t)
        return storage.tpc_finish(t)
    except BaseException:
        storage.tpc_abort(t)
        raise


def undo(storage: ClientStorage, *tids: bytes, before_vote: Callable[[], object] = lambda: None) -> bytes:
    t = TransactionMetaData()
    storage.tpc_begin(t)
    try:
        for tid in tids:
            storage.undo(encodebytes(tid).rstrip(), t)
        before_vote()
        storage.tpc_vote(t)
        return storage.tpc_finish(t)
    except BaseException:
        storage.tpc_abort(t)
        raise


def pack_to(storage: ClientStorage, tid: bytes, gc: bool | None = None) -> None:
    """Packs so that `tid` is the last transaction that is packed."""
    storage.pack(TimeStamp(tid).timeTime() + 1e-6, None, gc)
    assert storage.lastPack() >= tid


def later(storage: ClientStorage) -> None:
    """Returns when a new transaction is a microsecond and more behind the last one."""
    last = TimeStamp(storage.lastTransaction()).timeTime()
    while time.time() < last + 0.001:
        time.sleep(0.001)


def counter(value: int) -> bytes:
    made = PCounter()
    made._value = value
    data: bytes = zodb_pickle(made)
    return data


@pytest.mark.parametrize(
    "interface",
    [
        interfaces.IStorageUndoable,
        interfaces.IStorageCurrentRecordIteration,
        interfaces.IExternalGC,
        interfaces.IStorageIteration,
        interfaces.IStorageRestoreable,
        interfaces.IMultiCommitStorage,
        interfaces.IPrefetchStorage,
        interfaces.ReadVerifyingStorage,
    ],
)
def test_what_it_says_that_it_can(storage: ClientStorage, interface: Any) -> None:
    assert verifyObject(interface, storage)


# ---- undo ----------------------------------------------------------------------------------------------


def test_undo_answers_what_it_changes(storage: ClientStorage) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, counter(1))})
    second = commit(storage, {oid: (first, counter(2))})
    t = TransactionMetaData()
    storage.tpc_begin(t)
    assert storage.undo(second, t) == (None, [oid])
    assert storage.tpc_vote(t) is None
    tid = storage.tpc_finish(t)
    assert storage.load(oid) == (counter(1), tid)
    (record,) = next(storage.iterator(tid))
    assert record.data_txn == first


def test_undo_meets_a_change_of_another_client_and_resolves_it(storage: ClientStorage, place: str) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, counter(10))})
    second = commit(storage, {oid: (first, counter(15))})
    other = ClientStorage(place)
    undo(storage, second, before_vote=lambda: commit(other, {oid: (second, counter(17))}))
    other.close()
    assert zodb_unpickle(storage.load(oid)[0])._value == 12


def test_undo_meets_a_change_that_cannot_be_resolved(storage: ClientStorage, place: str) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, zodb_pickle(MinPO(1)))})
    second = commit(storage, {oid: (first, zodb_pickle(MinPO(2)))})
    other = ClientStorage(place)
    with pytest.raises(POSException.ConflictError):
        undo(storage, second, before_vote=lambda: commit(other, {oid: (second, zodb_pickle(MinPO(3)))}))
    other.close()
    assert zodb_unpickle(storage.load(oid)[0]).value == 3


def test_undo_of_a_creation_meets_a_change(storage: ClientStorage, place: str) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, counter(10))})
    other = ClientStorage(place)
    with pytest.raises(POSException.ConflictError):
        undo(storage, first, before_vote=lambda: commit(other, {oid: (first, counter(11))}))
    other.close()
    assert zodb_unpickle(storage.load(oid)[0])._value == 11


def test_undo_sees_what_others_committed_a_moment_ago(storage: ClientStorage, place: str) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, counter(1))})
    other = ClientStorage(place)
    undo(storage, commit(other, {oid: (first, counter(2))}))
    other.close()
    assert storage.load(oid)[0] == counter(1)


def test_undo_of_many_objects(storage: ClientStorage) -> None:
    """More than one LoadMany takes, and more bytes than one answers."""
    oids = [storage.new_oid() for _ in range(1500)]
    first = commit(storage, {oid: (z64, b"%d" % n * 500) for n, oid in enumerate(oids)})
    second = commit(storage, dict.fromkeys(oids, (first, b"other")))
    undo(storage, second)
    assert [storage.load(oid)[0] for oid in oids] == [b"%d" % n * 500 for n in range(1500)]


def test_nothing_is_undone_when_one_object_cannot_be(storage: ClientStorage) -> None:
    one, two = storage.new_oid(), storage.new_oid()
    first = commit(storage, {one: (z64, b"1a"), two: (z64, b"2a")})
    second = commit(storage, {one: (first, b"1b"), two: (first, b"2b")})
    third = commit(storage, {two: (second, b"2c")})
    t = TransactionMetaData()
    storage.tpc_begin(t)
    with pytest.raises(POSException.MultipleUndoErrors, match="modified by a later transaction"):
        storage.undo(second, t)
    storage.undo(third, t)  # the transaction can go on, and try again
    storage.undo(second, t)
    storage.tpc_vote(t)
    storage.tpc_finish(t)
    assert (storage.load(one)[0], storage.load(two)[0]) == (b"1a", b"2a")


@pytest.mark.parametrize("transaction_id", [b"", b"nonsense?", b"\0" * 7, encodebytes(b"1234567"), p64(5)])
def test_an_id_of_no_transaction(storage: ClientStorage, transaction_id: bytes) -> None:
    t = TransactionMetaData()
    storage.tpc_begin(t)
    with pytest.raises(POSException.UndoError, match="Invalid transaction id"):
        storage.undo(transaction_id, t)
    storage.tpc_abort(t)


def test_what_is_packed_can_not_be_undone(storage: ClientStorage) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, counter(1))})
    second = commit(storage, {oid: (first, counter(2))})
    later(storage)
    third = commit(storage, {oid: (second, counter(3))})
    pack_to(storage, second, gc=False)
    with pytest.raises(POSException.UndoError, match="non-undoable"):
        undo(storage, second)
    undo(storage, third)
    assert storage.load(oid)[0] == counter(2)


def test_undo_wants_a_begun_transaction(storage: ClientStorage) -> None:
    with pytest.raises(POSException.StorageTransactionError):
        storage.undo(p64(5), TransactionMetaData())


# ---- the log of what can be undone -----------------------------------------------------------------------


def test_undo_log_is_cut_as_filestorage_cuts_it(storage: ClientStorage) -> None:
    tids = [
        commit(storage, {storage.new_oid(): (z64, b"x")}, user=f"u{n % 3}", extension={"n": n}) for n in range(30)
    ]
    numbers = list(range(30))[::-1]
    assert [each["n"] for each in storage.undoLog()] == numbers[:20]
    assert [each["n"] for each in storage.undoLog(5, 8)] == numbers[5:8]
    assert [each["n"] for each in storage.undoLog(5, -3)] == numbers[5:8]
    assert [each["n"] for each in storage.undoLog(28, -10)] == numbers[28:]
    assert storage.undoLog(5, 5) == []
    assert [each["n"] for each in storage.undoInfo(1, 3, {"user_name": b"u1"})] == [25, 22]
    assert [each["n"] for each in storage.undoLog(0, -2, lambda each: each["n"] < 10)] == [9, 8]
    (newest,) = storage.undoLog(0, 1)
    assert newest == {
        "id": encodebytes(tids[-1]).rstrip(),
        "time": TimeStamp(tids[-1]).timeTime(),
        "user_name": b"u2",
        "description": b"",
        "n": 29,
    }


# ---- deletions -------------------------------------------------------------------------------------------


def test_a_deletion_in_history_and_iteration(storage: ClientStorage) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, b"data")})
    gone = commit(storage, {oid: (first, None)}, description="delete")
    back = undo(storage, gone)
    assert [(each["tid"], each["size"]) for each in storage.history(oid, 9)] == [(back, 4), (gone, 0), (first, 4)]
    assert storage.history(oid, 2)[1]["description"] == b"delete"
    records = [(record.data, record.data_txn) for each in storage.iterator() for record in each]
    assert records == [(b"data", None), (None, None), (b"data", first)]
    assert storage.loadBefore(oid, gone) == (b"data", first, gone)
    with pytest.raises(POSException.POSKeyError):
        storage.loadBefore(oid, back)
    with pytest.raises(POSException.POSKeyError):
        storage.loadSerial(oid, gone)


def test_deleting_what_is_not_there(storage: ClientStorage) -> None:
    with pytest.raises(POSException.POSKeyError):
        commit(storage, {storage.new_oid(): (p64(1), None)})


def test_deleting_what_was_changed(storage: ClientStorage) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, counter(1))})
    commit(storage, {oid: (first, counter(2))})
    with pytest.raises(POSException.ConflictError) as caught:
        commit(storage, {oid: (first, None)})
    assert caught.value.oid == oid


def test_changing_what_was_deleted(storage: ClientStorage) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, counter(1))})
    gone = commit(storage, {oid: (first, None)})
    with pytest.raises(POSException.ConflictError) as caught:
        commit(storage, {oid: (first, counter(2))})
    assert caught.value.serials == (gone, first)


def test_load_at_tells_when_it_was_deleted(storage: ClientStorage) -> None:
    oid = storage.new_oid()
    first = commit(storage, {oid: (z64, b"data")})
    gone = commit(storage, {oid: (first, None)})
    again = undo(storage, gone)
    assert storage.loadAt(oid, first) == (b"data", first, gone)
    assert storage.loadAt(oid, gone) == (None, gone, None)
    assert storage.loadAt(oid, again) == (b"data", again, None)
    assert storage.loadAt(oid, p64(u64(first) - 1)) == (None, z64, None)
    assert storage.loadAt(p64(12345), again) == (None, z64, None)


# ---- packs -------------------------------------------------------------------------------------------------


def test_last_pack(storage: ClientStorage) -> None:
    assert storage.lastPack() == z64
    tid = commit(storage, {z64: (z64, b"x")})
    storage.pack(time.time() + 1000, None)
    assert storage.lastPack() == tid


def test_states_before_a_pack(storage: ClientStorage) -> None:
    oid, lost = storage.new_oid(), storage.new_oid()
    first = commit(storage, {oid: (z64, b"one"), lost: (z64, b"lost")})
    second = commit(storage, {oid: (first, b"two"), lost: (first, None)})
    pack_to(storage, second, gc=False)
    assert storage.loadBefore(oid, second) is None
    assert storage.load(oid) == (b"two", second)
    with pytest.raises(PackedAway):
        storage.loadBefore(lost, second)
    with pytest.raises(POSException.POSKeyError):
        storage.load(lost)
    with pytest.raises(POSException.ReadConflictError):
        storage.loadAt(oid, first)
    with pytest.raises(POSException.POSKeyError):
        storage.loadSerial(oid, first)
    assert [each["tid"] for each in storage.history(oid, 9)] == [second]
    assert len(storage) == 1


def test_a_connection_that_a_pack_overtook_can_run_again(storage: ClientStorage, place: str) -> None:
    db = ZODB.DB(storage)
    elsewhere = ZODB.DB(ClientStorage(place))
    with db.transaction() as connection:
        connection.root()["a"] = MinPO(1)
        connection.root()["b"] = MinPO(1)
    reader = transaction.TransactionManager()
    connection = elsewhere.open(reader)
    objects = [connection.root()["a"], connection.root()["b"]]  # ghosts
    with db.transaction() as other:
        other.root()["a"].value = 2
        del other.root()["b"]
    db.pack(time.time() + 1)
    for each in objects:
        with pytest.raises(POSException.ReadConflictError):
            each._p_activate()
    reader.begin()
    assert connection.root()["a"].value == 2
    assert "b" not in connection.root()
    elsewhere.close()
    db.close()


def test_a_pack_to_an_earlier_time_changes_nothing(storage: ClientStorage) -> None:
    first = commit(storage, {z64: (z64, b"1")})
    later(storage)
    second = commit(storage, {z64: (first, b"2")})
    pack_to(storage, second)
    storage.pack(TimeStamp(first).timeTime(), None)
    assert storage.lastPack() == second


# ---- restoring ---------------------------------------------------------------------------------------------


def test_a_transaction_that_restores_stores_deletes_and_undoes(storage: ClientStorage) -> None:
    kept, gone, made = (storage.new_oid() for _ in range(3))
    first = commit(storage, {kept: (z64, b"kept"), gone: (z64, b"gone")})
    second = commit(storage, {kept: (first, b"changed")})
    t = TransactionMetaData(description="all at once")
    tid = p64(u64(second) + 1000)
    storage.tpc_begin(t, tid, "p")
    storage.restore(made, tid, b"made", "", None, t)
    storage.store(p64(99), None, b"stored", "", t)
    storage.deleteObject(gone, first, t)
    storage.undo(second, t)
    storage.tpc_vote(t)
    assert storage.tpc_finish(t) == tid
    (found,) = storage.iterator(tid)
    assert (found.status, found.description) == ("p", b"all at once")
    assert sorted((record.oid, record.data, record.data_txn) for record in found) == sorted(
        [(made, b"made", None), (p64(99), b"stored", None), (gone, None, None), (kept, b"kept", first)],
        key=lambda each: each[0],
    )


# ---- what no interface names -------------------------------------------------------------------------------


def test_last_invalidations(storage: ClientStorage) -> None:
    tids = [commit(storage, {p64(n): (z64, b"x"), p64(n + 100): (z64, b"x")}) for n in range(1, 5)]
    assert storage.lastInvalidations(2) == [(tids[3], [p64(4), p64(104)]), (tids[2], [p64(3), p64(103)])]
    assert len(storage.lastInvalidations(100)) == 4
    assert storage.lastInvalidations(0) == []


def test_records_are_walked_as_they_were_at_the_beginning(storage: ClientStorage) -> None:
    first = commit(storage, {p64(n): (z64, b"old") for n in range(4)})
    oid, tid, data, following = storage.record_iternext()
    assert (oid, tid, data) == (p64(0), first, b"old")
    commit(storage, {p64(2): (first, b"new"), p64(3): (first, None)})
    seen = []
    while following is not None:
        oid, _, data, following = storage.record_iternext(following)
        seen.append((oid, data))
    assert seen == [(p64(n), b"old") for n in (1, 2, 3)]
    assert storage.record_iternext(p64(2))[2:] == (b"new", None)
