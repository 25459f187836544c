"""What applications and tools call on a storage though no interface names it: methods of ZODB's own storages and
of ZEO's client. Each is there, or has a reason not to be; docs/moving.md tells users of those they may miss."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from persistent.TimeStamp import TimeStamp
from raftstorage.client import ClientStorage
from ZEO.ClientStorage import ClientStorage as ZEOStorage
from ZODB.BaseStorage import BaseStorage, TransactionRecord
from ZODB.Connection import TransactionMetaData
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage
from ZODB.mvccadapter import MVCCAdapter
from ZODB.POSException import POSKeyError
from ZODB.utils import maxtid, p64, z64

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

OID = p64(1)
DAY = 86_400.0

_SERVER = "a ZEO server calls it"
_WITHIN = "a part of how that storage is made"
#: Public names of other storages that ours has not, and why.
NOT_HERE = {
    "answer_to_the_ultimate_question": _WITHIN,
    "checkData": _WITHIN,
    "checkTxn": _WITHIN,
    "cleanup": "removes a database's files: tests call it; a client does not remove a cluster",
    "fail": _WITHIN,
    "getExtensionMethods": "ZEO's servers asked for it until ZEO 4, and every storage answered {}",
    "getTxnFromData": _WITHIN,
    "info": _SERVER,
    "invalidateCache": _SERVER,
    "invalidateTransaction": _SERVER,
    "is_blob_record": _WITHIN,
    "is_read_only": "isReadOnly",
    "lastTid": "getTid, and lastTransaction",
    "new_addr": "members are learnt",
    "not_in_transaction": _WITHIN,
    "notify_connected": _SERVER,
    "notify_disconnected": _SERVER,
    "opened": "whether close() was called: in memory only, for tests",
    "packer": _WITHIN,
    "pop": "DemoStorages on top of one another; any storage may stand below one",
    "push": "DemoStorages on top of one another; any storage may stand below one",
    "receiveBlobChunk": _SERVER,
    "receiveBlobStart": _SERVER,
    "receiveBlobStop": _SERVER,
    "server_status": "`raftstorage status`, and the metrics of nodes and clients",
    "set_max_oid": "who restores a larger oid moves it",
    "set_server_addr": _SERVER,
    "tpc_end": _WITHIN,
}

#: Where ours does not take all that theirs does, and why.
OTHER_ARGUMENTS = {
    ("history", FileStorage): "a filter, which no other storage takes",
    ("pack", ZEOStorage): "wait and days by position, where FileStorage has gc: here they have to be named",
    ("tpc_abort", ZEOStorage): "a timeout, for its tests",
}

#: Of IMVCCStorage, by which ZODB tells a storage with an MVCC of its own (RelStorage) from one that it wraps.
MVCC = ("new_instance", "release", "poll_invalidations")


@pytest.mark.parametrize(
    "other", [FileStorage, MappingStorage, DemoStorage, BaseStorage, ZEOStorage], ids=lambda each: each.__module__
)
def test_has_what_others_have(other: type) -> None:
    theirs = {name for name in dir(other) if not name.startswith("_") and callable(getattr(other, name))}
    assert {name for name in theirs if not hasattr(ClientStorage, name)} <= set(NOT_HERE)
    assert not [name for name in NOT_HERE if hasattr(ClientStorage, name)]


@pytest.mark.parametrize("other", [FileStorage, ZEOStorage], ids=lambda each: each.__module__)
def test_takes_what_others_take(other: type) -> None:
    """Arguments that theirs take by position or by name, but for their options when they are opened."""
    for name, theirs in inspect.getmembers(other, inspect.isfunction):
        ours = getattr(ClientStorage, name, None)
        if name.startswith("_") or ours is None:
            continue
        wanted = [each for each in inspect.signature(theirs).parameters.values() if each.name != "self"]
        needed = [each for each in wanted if each.default is each.empty]
        signature = inspect.signature(ours)
        signature.bind(None, *needed)  # TypeError when it takes fewer or more
        if (name, other) not in OTHER_ARGUMENTS:
            signature.bind(None, *wanted)


@pytest.fixture
def storage(disk_directory: Path) -> Iterator[ClientStorage]:
    storage = ClientStorage(f"embedded:{disk_directory}/database")
    yield storage
    storage.close()


def commit(storage: ClientStorage, serial: bytes, data: bytes) -> bytes:
    t = TransactionMetaData()
    storage.tpc_begin(t)
    storage.store(OID, serial, data, "", t)
    storage.tpc_vote(t)
    return storage.tpc_finish(t)


def test_called_without_what_has_a_default(storage: ClientStorage) -> None:
    first = commit(storage, z64, b"one")
    second = commit(storage, first, b"two")
    assert [each["time"] for each in storage.undoLog()] == [TimeStamp(t).timeTime() for t in (second, first)]
    assert storage.undoLog() == storage.undoInfo() == storage.undoLog(0, -20, None)
    assert storage.load(OID) == storage.load(OID, "") == (b"two", second)
    assert storage.getTid(OID) == second
    assert [each["tid"] for each in storage.history(OID)] == [second]
    assert [len(storage.history(OID, size)) for size in (0, 1, 2, 3, 1 << 40)] == [0, 1, 2, 2, 2]
    assert len(storage) == 1
    assert storage.getSize() > 0
    assert isinstance(storage.sortKey(), str)
    with pytest.raises(POSKeyError):
        storage.getTid(p64(2))


def test_pack_as_zeos_client_is_called(storage: ClientStorage) -> None:
    """`zeopack` and cron jobs: without a time, and with days to go back."""
    first = commit(storage, z64, b"one")
    second = commit(storage, first, b"two")
    storage.pack(days=1)
    assert storage.loadSerial(OID, first) == b"one"
    storage.pack(time.time() + 1, None, wait=True, days=1)
    assert storage.loadSerial(OID, first) == b"one"
    storage.pack(gc=False)
    assert len(storage.history(OID, 10)) == 1
    with pytest.raises(POSKeyError):
        storage.loadSerial(OID, first)
    assert storage.loadBefore(OID, maxtid) == (b"two", second, None)


def test_copies_with_words(storage: ClientStorage, tmp_path: Path) -> None:
    source = MappingStorage()
    t = TransactionRecord(p64(5), " ", b"ann", b"", b"")
    source.tpc_begin(t, t.tid)
    source.store(OID, z64, b"data", "", t)
    source.tpc_vote(t)
    tid = source.tpc_finish(t) or source.lastTransaction()
    storage.copyTransactionsFrom(source, 1)
    assert storage.load(OID) == (b"data", tid)


def test_a_storage_without_mvcc_of_its_own_is_wrapped(storage: ClientStorage) -> None:
    import ZODB

    assert not [name for name in MVCC if hasattr(storage, name)]
    assert isinstance(ZODB.DB(storage)._mvcc_storage, MVCCAdapter)


def test_is_connected(
    cluster: LocalCluster, open_storage: Callable[..., Any], wait_for: Callable[..., Any]
) -> None:
    storage = open_storage(cluster.addresses)
    assert storage.is_connected()
    cluster.kill(cluster.leader(timeout=60.0))
    assert storage.is_connected()
    for i in range(len(cluster)):
        if cluster.is_running(i):
            cluster.kill(i)
    wait_for(lambda: not storage.is_connected(), "streams to end")
    for i in range(len(cluster)):
        cluster.start(i)
    wait_for(lambda: storage.is_connected(test=True), "streams to be there again")
    storage.close()
    assert not storage.is_connected()
