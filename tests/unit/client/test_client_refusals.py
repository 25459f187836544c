"""What ClientStorage refuses, and whom it does not talk to."""

from __future__ import annotations

from typing import Any

import pytest
import ZODB.POSException as E
from prometheus_client import CollectorRegistry
from raftstorage import client as rc
from raftstorage.client import ClientStorage
from raftstorage.client.cluster import replicas
from raftstorage.client.cluster.loop import run_in_loop
from raftstorage.proto import storage_pb2 as pb
from ZODB.Connection import TransactionMetaData

Z64 = b"\0" * 8


def test_bad_input(cluster: Any, storage: Any, registry: CollectorRegistry) -> None:
    transaction = TransactionMetaData()
    storage.tpc_begin(transaction)
    with pytest.raises(rc.RecordTooLarge):
        storage.store(storage.new_oid(), Z64, b"x" * 1001, "", transaction)
    with pytest.raises(rc.RecordTooLarge):
        for n in range(6):
            storage.store(bytes(7) + bytes([n]), Z64, b"x" * 1000, "", transaction)
    with pytest.raises(E.StorageTransactionError):
        storage.tpc_begin(transaction)
    with pytest.raises(E.StorageTransactionError):
        storage.tpc_finish(transaction)
    storage.tpc_abort(transaction)
    with pytest.raises(E.Unsupported):
        storage.pack(0.0, None)
    reader = ClientStorage(cluster.addresses, read_only=True, registry=registry, wait_timeout=5)
    with pytest.raises(E.ReadOnlyError):
        reader.tpc_begin(TransactionMetaData())
    with pytest.raises(E.ReadOnlyError):
        reader.new_oid()
    reader.close()
    reader.close()
    with pytest.raises(rc.ClientDisconnected):
        reader.load(Z64)
    for wrong in ("", "nohost", "host:", "host:x", "host:70000", "a:1,,b:2", [], "::1:80"):
        with pytest.raises(ValueError, match="address"):
            ClientStorage(wrong)
    with pytest.raises(ValueError, match="consistency"):
        ClientStorage(cluster.addresses, consistency="eventual")  # type: ignore[arg-type]


def test_nobody_there(registry: CollectorRegistry) -> None:
    with pytest.raises(rc.ClientDisconnected) as caught:
        ClientStorage("127.0.0.1:1", wait_timeout=0.3, registry=registry)
    assert isinstance(caught.value, E.StorageError)


def test_another_protocol_is_refused(cluster: Any, registry: CollectorRegistry) -> None:
    for node in cluster.nodes.values():
        node.speaks = (2, 3)
    with pytest.raises(rc.ProtocolMismatch, match="I speak"):
        ClientStorage(cluster.addresses, wait_timeout=5, registry=registry)


def test_a_welcome_in_another_protocol_is_refused_by_both_ranges(
    cluster: Any, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "PROTOCOL", (1, 2))
    for node in cluster.nodes.values():
        node.speaks = (2, 3)
    client = ClientStorage(cluster.addresses, wait_timeout=5, registry=registry)
    monkeypatch.setattr(replicas, "PROTOCOL", (1, 1))
    hello = run_in_loop(client.cluster._replicas.hello)
    assert (hello.min_protocol_version, hello.protocol_version) == (1, 1)
    welcome = pb.Welcome(min_protocol_version=2, protocol_version=3, cluster_id=cluster.cluster_id)
    some = next(iter(client.cluster._replicas.connections.values()))
    with pytest.raises(rc.ProtocolMismatch, match=r":\d+ speaks protocol 2 to 3, this client 1$"):
        run_in_loop(lambda: client.cluster._replicas.up(some, welcome))
    client.close()


@pytest.mark.parametrize(("speaks", "common"), [((1, 1), 1), ((1, 9), 3), ((2, 2), 2), ((3, 4), 3)])
def test_the_newest_common_protocol_is_spoken(
    cluster: Any,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    speaks: tuple[int, int],
    common: int,
) -> None:
    monkeypatch.setattr(replicas, "PROTOCOL", (1, 3))
    cluster.level = 5
    for node in cluster.nodes.values():
        node.speaks = speaks
    client = ClientStorage(cluster.addresses, wait_timeout=5, registry=registry)
    connected = [each for each in client.cluster._replicas.connections.values() if each.replica.connected]
    assert connected and {(each.protocol, each.level) for each in connected} == {(common, 5)}
    client.close()


def test_a_node_of_another_cluster_is_not_used(cluster: Any, storage: Any) -> None:
    cluster.stop()
    run_in_loop(lambda: setattr(cluster, "cluster_id", "cd" * 16))
    for node_id in cluster.nodes:
        cluster.restart(node_id)
    storage.cluster.wait_timeout = 1.0
    with pytest.raises(rc.ClientDisconnected):
        storage.load(b"\0" * 8)
