"""Packs, packed revisions and walks over current records, as a client sees them: against scripted nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from persistent.TimeStamp import TimeStamp
from raftstorage.client import ClientStorage
from raftstorage.client.cluster.loop import run_in_loop
from raftstorage.client.storage.errors import PackedAway
from raftstorage.proto import HISTORY_LEVEL
from raftstorage.proto import storage_pb2 as pb
from ZODB import POSException
from ZODB.Connection import TransactionMetaData

from tests.unit.client.conftest import FakeCluster, Node, tid_of

Z64, OID, OTHER = tid_of(0), tid_of(1), tid_of(2)
NOON = 1_700_000_000.0


@pytest.fixture
def cluster(cluster: FakeCluster) -> FakeCluster:
    cluster.level = HISTORY_LEVEL
    cluster.commit_elsewhere(Z64)
    return cluster


def script(cluster: FakeCluster, kind: str, answer: Callable[[Node, Any], pb.Event]) -> None:
    setattr(cluster, f"_{kind}", answer)


def packs(cluster: FakeCluster, *phases: str) -> list[tuple[int, pb.Pack]]:
    """Has leaders tell of these phases, the last one again and again; who was asked for what."""
    asked: list[tuple[int, pb.Pack]] = []

    def answer(node: Node, call: pb.Pack) -> pb.Event:
        if node.node_id != cluster.leader:
            return pb.Event(failure=pb.Failure(reason=pb.NOT_LEADER, leader=cluster.leader_message()))
        asked.append((node.node_id, call))
        phase = phases[min(len(asked), len(phases)) - 1]
        return pb.Event(pack=pb.PackState(pack_id=call.pack_id, tid=call.tid, phase=phase))

    script(cluster, "pack", answer)
    return asked


def packed_to(cluster: FakeCluster, tid: bytes, gone: bool = False) -> None:
    """Everything below `tid` was packed away; `gone`: the objects, too."""

    def answer(node: Node, call: pb.LoadBefore) -> pb.Event:
        if call.before <= tid:
            return pb.Event(failure=pb.Failure(reason=pb.PACKED, oid=call.oid, serial=tid))
        if gone:
            return pb.Event(failure=pb.Failure(reason=pb.NO_SUCH_OBJECT, oid=call.oid))
        return pb.Event(record=pb.Record(data=b"current", serial=tid))

    script(cluster, "load_before", answer)


# ---- pack ----------------------------------------------------------------------------------------------


def test_pack_returns_when_the_leader_is_done(cluster: FakeCluster, storage: ClientStorage) -> None:
    asked = packs(cluster, "marking", "collecting", "removing", "done")
    told: list[str] = []
    storage.pack(NOON, None, progress=lambda state: told.append(state.phase))
    assert told == ["marking", "collecting", "removing", "done"]
    assert len({call.pack_id for _, call in asked}) == 1
    assert len(asked[0][1].pack_id) == 16
    assert {call.collect for _, call in asked} == {True}


def test_pack_time_becomes_a_tid(cluster: FakeCluster, storage: ClientStorage) -> None:
    cluster.last = TimeStamp(2100, 1, 1, 0, 0, 0.0).raw()
    asked = packs(cluster, "done")
    storage.pack(NOON)
    assert TimeStamp(asked[0][1].tid).timeTime() == pytest.approx(NOON, abs=1e-6)


def test_pack_to_the_future_is_to_the_last_transaction(cluster: FakeCluster, storage: ClientStorage) -> None:
    tid = cluster.commit_elsewhere(OID)
    asked = packs(cluster, "done")
    storage.pack(NOON)
    assert asked[0][1].tid == tid


def test_replicas_have_caught_up_when_pack_returns(cluster: FakeCluster, storage: ClientStorage) -> None:
    packs(cluster, "done")
    before = {i: node.served["read_barrier"] for i, node in cluster.nodes.items()}
    storage.pack(NOON)
    assert {i: node.served["read_barrier"] - before[i] for i, node in cluster.nodes.items()} == {
        1: 2,
        2: 1,
        3: 1,
    }  # and the time


def test_pack_goes_on_at_the_next_leader_with_the_same_id(cluster: FakeCluster, storage: ClientStorage) -> None:
    asked = packs(cluster, "marking", "marking", "done")
    cluster.nodes[1].lose_answer_of = "pack"
    cluster.nodes[1].on_loss = lambda: setattr(cluster, "leader", 2)
    storage.pack(NOON)
    assert [node for node, _ in asked] == [1, 2, 2]
    assert len({call.pack_id for _, call in asked}) == 1


def test_pack_without_waiting_returns_when_it_is_taken(cluster: FakeCluster, storage: ClientStorage) -> None:
    asked = packs(cluster, "marking")
    storage.pack(NOON, None, wait=False)
    assert len(asked) == 1


@pytest.mark.parametrize(("opened", "asked_for", "collects"), [(True, False, False), (False, None, False)])
def test_pack_collects_as_it_is_told(
    cluster: FakeCluster, opened: bool, asked_for: bool | None, collects: bool
) -> None:
    asked = packs(cluster, "done")
    storage = ClientStorage(cluster.addresses, pack_gc=opened)
    storage.pack(NOON, None, asked_for)  # HexStorage passes it by position
    storage.close()
    assert asked[0][1].collect is collects


def test_pack_waits_for_a_new_cluster_to_know_its_level(cluster: FakeCluster) -> None:
    cluster.level = 0
    storage = ClientStorage(cluster.addresses)
    packs(cluster, "done")
    packing = threading.Thread(target=storage.pack, args=(NOON,))
    packing.start()
    leader = cluster.leader_message()
    leader.level = HISTORY_LEVEL
    run_in_loop(lambda: cluster.nodes[1].publish(pb.Event(leader=leader)))
    packing.join(10)
    assert not packing.is_alive()
    storage.close()


def test_an_old_cluster_has_no_undo_pack_or_deletion(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftstorage.client.cluster.cluster.LEVEL_SECONDS", 0.01)
    cluster.level = HISTORY_LEVEL - 1
    storage = ClientStorage(cluster.addresses)
    with pytest.raises(POSException.Unsupported, match="too old"):
        storage.pack(NOON)
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    with pytest.raises(POSException.Unsupported):
        storage.undo(OID, transaction)
    with pytest.raises(POSException.Unsupported):
        storage.deleteObject(OID, tid_of(10), transaction)
    storage.tpc_abort(transaction)
    storage.close()


# ---- what was packed away ------------------------------------------------------------------------------


def test_a_revision_packed_away_is_none_as_in_a_filestorage(cluster: FakeCluster, storage: ClientStorage) -> None:
    tid = cluster.commit_elsewhere(OID)
    packed_to(cluster, tid)
    assert storage.loadBefore(OID, tid) is None


def test_an_object_that_is_gone_can_be_a_reason_to_run_again(cluster: FakeCluster, storage: ClientStorage) -> None:
    tid = cluster.commit_elsewhere(OID)
    packed_to(cluster, tid, gone=True)
    with pytest.raises(PackedAway) as caught:
        storage.loadBefore(OID, tid)
    assert caught.value.oid == OID
    assert isinstance(caught.value, POSException.POSKeyError | POSException.ReadConflictError)


# ---- current records -----------------------------------------------------------------------------------


def walk(storage: ClientStorage) -> list[tuple[bytes, bytes]]:
    found = []
    following: bytes | None = None
    while True:
        oid, _tid, data, following = storage.record_iternext(following)
        found.append((oid, data))
        if following is None:
            return found


def pages(cluster: FakeCluster, objects: dict[bytes, bytes], size: int) -> list[pb.CurrentRecords]:
    """Serves the objects in pages of `size` oids, of which those without data are left out."""
    asked: list[pb.CurrentRecords] = []

    def answer(node: Node, call: pb.CurrentRecords) -> pb.Event:
        asked.append(call)
        oids = sorted(oid for oid in objects if oid >= call.start)
        page = pb.CurrentPage(next=oids[size] if len(oids) > size else b"")
        for oid in oids[:size]:
            if objects[oid]:
                page.records.add(oid=oid).record.CopyFrom(pb.Record(data=objects[oid], serial=tid_of(10)))
        return pb.Event(current=page)

    script(cluster, "current_records", answer)
    return asked


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_records_are_walked_page_by_page(cluster: FakeCluster, storage: ClientStorage, size: int) -> None:
    objects = {tid_of(n): b"%d" % n if n not in (2, 3, 4, 9) else b"" for n in range(10)}
    asked = pages(cluster, objects, size)
    assert walk(storage) == [(oid, data) for oid, data in objects.items() if data]
    assert len(asked) == -(-10 // size)  # each page once
    assert len({call.before for call in asked}) == 1


def test_a_walk_goes_on_when_a_pack_overtakes_it(cluster: FakeCluster, storage: ClientStorage) -> None:
    asked = pages(cluster, {tid_of(n): b"data" for n in range(4)}, 2)
    serve = cluster._current_records  # type: ignore[attr-defined]
    first = storage.record_iternext()
    tid = cluster.commit_elsewhere(OTHER)

    def answer(node: Node, call: pb.CurrentRecords) -> pb.Event:
        if call.before <= tid:
            return pb.Event(failure=pb.Failure(reason=pb.PACKED, serial=tid))
        event: pb.Event = serve(node, call)
        return event

    script(cluster, "current_records", answer)
    seen = [first[0]]
    following = first[3]
    while following is not None:
        oid, _, _, following = storage.record_iternext(following)
        seen.append(oid)
    assert seen == [tid_of(n) for n in range(4)]
    assert asked[-1].before > tid


def test_a_walk_may_begin_at_an_oid(cluster: FakeCluster, storage: ClientStorage) -> None:
    pages(cluster, {tid_of(n): b"data" for n in (1, 5)}, 10)
    assert storage.record_iternext(tid_of(3))[0] == tid_of(5)


def test_an_empty_storage_has_no_record(cluster: FakeCluster, storage: ClientStorage) -> None:
    pages(cluster, {}, 10)
    with pytest.raises(ValueError, match="no records"):
        storage.record_iternext()
