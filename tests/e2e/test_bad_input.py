"""Whatever a client sends: a clear error, a cluster that goes on serving, and nothing lost or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from raftstorage.ops.local import LocalCluster
from raftstorage.proto import PROTOCOL_VERSION, storage_pb2_grpc
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData
from ZODB.POSException import ConflictError, POSKeyError, StorageError
from ZODB.tests.MinPO import MinPO
from ZODB.tests.StorageTestBase import zodb_pickle
from ZODB.utils import maxtid, p64, z64

LEASE_MS = 400
MAX_RECORD = 10_000
UNKNOWN_OID = p64(1 << 60)
ID = b"0123456789abcdef"


@pytest.fixture(scope="module")
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One with a small record limit and short leases."""
    directory = tmp_path_factory.mktemp("bad-input")
    with LocalCluster(nodes=3, directory=directory, max_record_bytes=MAX_RECORD, lease_ms=LEASE_MS) as cluster:
        yield cluster
        logs = [cluster.log_path(i).read_text() for i in range(3)]
    assert not any("Traceback" in log for log in logs), logs  # bad input is no reason for one


@pytest.fixture
def storage(small_cluster: LocalCluster, open_storage: Callable[..., Any]) -> Any:
    return open_storage(small_cluster.addresses)


@pytest.fixture
def leader(small_cluster: LocalCluster, raw: Callable[..., Any]) -> Any:
    """A raw session with the leader."""
    return raw(small_cluster.address(small_cluster.leader(timeout=30)))


@pytest.fixture
def committed() -> list[bytes]:
    """The tids that a test commits on purpose."""
    return []


@pytest.fixture(autouse=True)
def _nothing_lost(
    small_cluster: LocalCluster, storage: Any, commit_new: Callable[..., Any], committed: list[bytes]
) -> Iterator[None]:
    """Around each test: what was there before is still there and nothing else, no node died, commits go on."""
    oid, tid = commit_new(storage, b"before")
    pids = [small_cluster.pid(i) for i in range(3)]
    before = [transaction.tid for transaction in storage.iterator()]
    yield
    assert storage.loadBefore(oid, maxtid) == (b"before", tid, None)
    assert [transaction.tid for transaction in storage.iterator()] == before + committed
    _, after = commit_new(storage, b"after")
    assert after > tid
    assert all(small_cluster.is_running(i) for i in range(3))
    assert [small_cluster.pid(i) for i in range(3)] == pids


def transaction(*records: tuple[bytes, bytes, bytes], **fields: Any) -> bytes:
    """A serialized Transaction of (oid, base serial, data) records."""
    new = [pb.NewRecord(oid=oid, base_serial=serial, data=data) for oid, serial, data in records]
    return pb.Transaction(records=new, **fields).SerializeToString()


def failed(answer: Any, reason: int, code: grpc.StatusCode) -> pb.Failure:
    """Checks that `answer` is that Failure, with a message for a person."""
    assert isinstance(answer, pb.Failure), answer
    assert pb.Reason.Name(answer.reason) == pb.Reason.Name(reason), answer.message
    assert answer.code == code.value[0]
    assert answer.message
    return answer


# ---- through ClientStorage -------------------------------------------------------------------------------


def test_unknown_oid(storage: Any) -> None:
    with pytest.raises(POSKeyError) as caught:
        storage.loadBefore(UNKNOWN_OID, maxtid)
    assert caught.value.args[0] == UNKNOWN_OID
    with pytest.raises(POSKeyError):
        storage.loadSerial(UNKNOWN_OID, p64(1))
    with pytest.raises(KeyError):
        storage.history(UNKNOWN_OID)


@pytest.mark.parametrize("oid", [b"", b"1234567", b"123456789"], ids=len)
def test_oid_of_the_wrong_length(storage: Any, commit: Callable[..., bytes], oid: bytes) -> None:
    with pytest.raises(StorageError, match="oid must have 8 bytes"):
        storage.loadBefore(oid, maxtid)
    with pytest.raises(StorageError, match="oid must have 8 bytes"):
        commit(storage, {oid: (z64, b"data")})


def test_record_over_the_limit(storage: Any, commit: Callable[..., bytes], committed: list[bytes]) -> None:
    good, big = storage.new_oid(), storage.new_oid()
    with pytest.raises(Exception, match=r"(?i)large|limit|exceed|10.?000"):
        commit(storage, {good: (z64, b"fits"), big: (z64, b"x" * (MAX_RECORD + 1))})
    with pytest.raises(POSKeyError):  # the transaction was refused as a whole
        storage.loadBefore(good, maxtid)
    tid = commit(storage, {big: (z64, b"x" * MAX_RECORD)})
    committed += [tid]
    assert storage.loadBefore(big, maxtid)[0] == b"x" * MAX_RECORD


def test_stale_serial(storage: Any, commit: Callable[..., bytes], committed: list[bytes]) -> None:
    oid = storage.new_oid()
    one, two, three = (zodb_pickle(MinPO(n)) for n in (1, 2, 3))
    first = commit(storage, {oid: (z64, one)})
    second = commit(storage, {oid: (first, two)})
    committed += [first, second]
    with pytest.raises(ConflictError) as caught:
        commit(storage, {oid: (first, three)})
    assert caught.value.oid == oid
    assert caught.value.serials == (second, first)
    assert storage.loadBefore(oid, maxtid) == (two, second, None)


def test_finish_after_the_lease_ran_out(
    storage: Any,
    small_cluster: LocalCluster,
    open_storage: Callable[..., Any],
    commit: Callable[..., bytes],
    committed: list[bytes],
) -> None:
    """Another client changed the object meanwhile: the late one is told, and changes nothing."""
    oid = storage.new_oid()
    one, two, three = (zodb_pickle(MinPO(n)) for n in (1, 2, 3))
    first = commit(storage, {oid: (z64, one)})
    late = open_storage(small_cluster.addresses)
    t = TransactionMetaData()
    late.tpc_begin(t)
    late.store(oid, first, two, "", t)
    late.tpc_vote(t)
    second = commit(storage, {oid: (first, three)})  # waits until the lease of `late` is over
    committed += [first, second]
    with pytest.raises(Exception, match=r"(?i)lease|conflict|expired|ran out"):
        late.tpc_finish(t)
    late.tpc_abort(t)
    assert storage.loadBefore(oid, maxtid) == (three, second, None)


# ---- raw -------------------------------------------------------------------------------------------------


def test_raw_lease_expired(leader: Any, storage: Any, wait_for: Callable[..., Any]) -> None:
    oid = storage.new_oid()
    reply = leader.ask(vote=pb.Vote(transaction_id=ID, transaction=transaction((oid, z64, b"voted"))))
    assert isinstance(reply, pb.VoteReply)
    assert not reply.conflicts
    # a second vote for the same object waits for the first one's lease to end, so its answer says it did
    other = leader.ask(vote=pb.Vote(transaction_id=ID[::-1], transaction=transaction((oid, z64, b"other"))))
    assert isinstance(other, pb.VoteReply)
    assert not other.conflicts
    failed(leader.ask(finish=pb.Finish(transaction_id=ID)), pb.LEASE_EXPIRED, grpc.StatusCode.FAILED_PRECONDITION)
    assert isinstance(leader.ask(abort=pb.Abort(transaction_id=ID[::-1])), pb.Aborted)


def test_finish_of_an_unknown_vote(leader: Any) -> None:
    failed(leader.ask(finish=pb.Finish(transaction_id=b"?" * 16)), pb.UNKNOWN_VOTE, grpc.StatusCode.NOT_FOUND)
    assert isinstance(leader.ask(abort=pb.Abort(transaction_id=b"?" * 16)), pb.Aborted)


def test_writes_on_a_follower(small_cluster: LocalCluster, raw: Callable[..., Any], storage: Any) -> None:
    lead = small_cluster.leader(timeout=30)
    oid = storage.new_oid()
    for i in range(3):
        if i == lead:
            continue
        session = raw(small_cluster.address(i))
        data = transaction((oid, z64, b"data"))
        for call in (
            {"vote": pb.Vote(transaction_id=ID, transaction=data)},
            {"commit": pb.Commit(transaction_id=ID, transaction=data)},
            {"finish": pb.Finish(transaction_id=ID)},
            {"allocate_oids": pb.AllocateOids(count=1)},
        ):
            failure = failed(session.ask(**call), pb.NOT_LEADER, grpc.StatusCode.FAILED_PRECONDITION)
            assert failure.leader.node_id == small_cluster.node_id(lead)
            assert failure.leader.address == small_cluster.address(lead)


BAD_CALLS: dict[str, dict[str, Any]] = {
    "load, oid of 7 bytes": {"load_before": pb.LoadBefore(oid=b"1234567", before=maxtid)},
    "load, empty oid": {"load_before": pb.LoadBefore(before=maxtid)},
    "load, tid of 9 bytes": {"load_before": pb.LoadBefore(oid=p64(1), before=b"123456789")},
    "load, at_least of 3 bytes": {"load_before": pb.LoadBefore(oid=p64(1), before=maxtid, at_least=b"123")},
    "loadSerial, serial of 2 bytes": {"load_serial": pb.LoadSerial(oid=p64(1), serial=b"12")},
    "history of 0": {"history": pb.History(oid=p64(1), size=0)},
    "history of too many": {"history": pb.History(oid=p64(1), size=10_001)},
    "history, oid of 7 bytes": {"history": pb.History(oid=b"1234567", size=1)},
    "vote, garbage": {"vote": pb.Vote(transaction_id=ID, transaction=b"\xff" * 40)},
    "vote, short id": {"vote": pb.Vote(transaction_id=b"short", transaction=transaction((p64(1), z64, b"d")))},
    "vote, no id": {"vote": pb.Vote(transaction=transaction((p64(1), z64, b"d")))},
    "vote, oid of 7 bytes": {"vote": pb.Vote(transaction_id=ID, transaction=transaction((b"1234567", z64, b"d")))},
    "vote, serial of 4 bytes": {
        "vote": pb.Vote(transaction_id=ID, transaction=transaction((p64(1), b"1234", b"d")))
    },
    "vote, one oid twice": {
        "vote": pb.Vote(transaction_id=ID, transaction=transaction((p64(9), z64, b"d"), (p64(9), z64, b"e")))
    },
    "vote, given tid of 7 bytes": {"vote": pb.Vote(transaction_id=ID, transaction=transaction(tid=b"1234567"))},
    "vote, status of 2 bytes": {"vote": pb.Vote(transaction_id=ID, transaction=transaction(status=b"pp"))},
    "vote, user over 64 KiB": {"vote": pb.Vote(transaction_id=ID, transaction=transaction(user=b"u" * 65_537))},
    "commit, garbage": {"commit": pb.Commit(transaction_id=ID, transaction=b"\xff" * 40)},
    "commit, oid of 7 bytes": {
        "commit": pb.Commit(transaction_id=ID, transaction=transaction((b"1234567", z64, b"d")))
    },
    "finish, short id": {"finish": pb.Finish(transaction_id=b"x")},
    "no oids": {"allocate_oids": pb.AllocateOids(count=0)},
    "too many oids": {"allocate_oids": pb.AllocateOids(count=10_001)},
    "transactions, start of 5 bytes": {"read_transactions": pb.ReadTransactions(start=b"12345")},
    "no call at all": {},
    "a second hello": {"hello": pb.Hello(protocol_version=PROTOCOL_VERSION, client_id="0" * 32)},
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_malformed_call(leader: Any, name: str) -> None:
    failure = leader.ask(**BAD_CALLS[name])
    assert isinstance(failure, pb.Failure), failure
    assert failure.reason in (pb.INVALID, pb.TOO_LARGE), failure
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert failure.message


def test_raw_limits_and_stale_tid(leader: Any, storage: Any) -> None:
    big = transaction((storage.new_oid(), z64, b"x" * (MAX_RECORD + 1)))
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    failed(leader.ask(vote=pb.Vote(transaction_id=ID, transaction=big)), pb.TOO_LARGE, invalid)
    failed(leader.ask(commit=pb.Commit(transaction_id=ID, transaction=big)), pb.TOO_LARGE, invalid)
    old = transaction((storage.new_oid(), z64, b"x"), tid=p64(1))
    failed(
        leader.ask(commit=pb.Commit(transaction_id=ID, transaction=old)),
        pb.STALE_TID,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    failed(
        leader.ask(load_before=pb.LoadBefore(oid=UNKNOWN_OID, before=maxtid)),
        pb.NO_SUCH_OBJECT,
        grpc.StatusCode.NOT_FOUND,
    )


def test_raw_commit_conflict_is_not_committed_later(
    leader: Any, storage: Any, commit_new: Callable[..., Any], committed: list[bytes]
) -> None:
    oid, tid = commit_new(storage, b"current")
    committed += [tid]
    stale = transaction((oid, p64(3), b"stale"))
    for _ in range(2):
        failure = failed(
            leader.ask(commit=pb.Commit(transaction_id=ID, transaction=stale)),
            pb.CONFLICT,
            grpc.StatusCode.ABORTED,
        )
        assert (failure.oid, failure.serial, failure.expected_serial) == (oid, tid, p64(3))
        assert failure.data == b"current"


@pytest.mark.parametrize("which", ["vote", "commit"])
def test_read_only_session_cannot_write(
    small_cluster: LocalCluster, raw: Callable[..., Any], storage: Any, which: str
) -> None:
    session = raw(small_cluster.address(small_cluster.leader(timeout=30)), read_only=True)
    data = transaction((storage.new_oid(), z64, b"data"))
    kind = pb.Vote if which == "vote" else pb.Commit
    answer = session.ask(**{which: kind(transaction_id=ID, transaction=data)})
    failed(answer, pb.READ_ONLY, grpc.StatusCode.PERMISSION_DENIED)


# ---- the first message -----------------------------------------------------------------------------------


def refused(raw: Callable[..., Any], address: str, **hello: Any) -> tuple[int, str]:
    """(code, message) with which a node refuses that Hello, told in a Failure or by the stream's status."""
    try:
        session = raw(address, **hello)
    except grpc.RpcError as error:
        return error.code().value[0], error.details()
    assert isinstance(session.welcome, pb.Failure), session.welcome
    assert session.ended.wait(30), "the node keeps a session that it refused"
    return session.welcome.code, session.welcome.message


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1])
def test_other_protocol_version(small_cluster: LocalCluster, raw: Callable[..., Any], version: int) -> None:
    code, message = refused(raw, small_cluster.address(0), protocol_version=version)
    assert code == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert f"protocol {PROTOCOL_VERSION}, not {version}" in message


def test_other_cluster(small_cluster: LocalCluster, raw: Callable[..., Any]) -> None:
    code, message = refused(raw, small_cluster.address(0), cluster_id="f" * 32)
    assert code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert "cluster" in message


@pytest.mark.parametrize("client_id", ["", "short", "g" * 32])
def test_bad_client_id(small_cluster: LocalCluster, raw: Callable[..., Any], client_id: str) -> None:
    code, _ = refused(raw, small_cluster.address(0), client_id=client_id)
    assert code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_calls_before_hello_and_bytes_that_are_no_message(small_cluster: LocalCluster) -> None:
    with grpc.insecure_channel(small_cluster.address(0)) as channel:
        first = pb.RequestBatch(requests=[pb.Request(id=1, size=pb.Size())])
        with pytest.raises(grpc.RpcError) as caught:
            for batch in storage_pb2_grpc.StorageStub(channel).Session(iter([first])):
                (event,) = batch.events
                failed(event.failure, pb.INVALID, grpc.StatusCode.INVALID_ARGUMENT)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        garbage = channel.stream_stream("/raftstorage.v1.Storage/Session")
        with pytest.raises(grpc.RpcError):
            list(garbage(iter([b"\xff" * 100]), timeout=30))
