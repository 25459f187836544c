"""What ClientStorage refuses, and whom it does not talk to."""

from __future__ import annotations

from typing import Any

import pytest
import ZODB.POSException as E
from prometheus_client import CollectorRegistry
from raftstorage import client as rc
from raftstorage.client import ClientStorage
from raftstorage.client.cluster.loop import run_in_loop
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
        node.version = 2
    with pytest.raises(rc.ProtocolMismatch):
        ClientStorage(cluster.addresses, wait_timeout=5, registry=registry)


def test_a_node_of_another_cluster_is_not_used(cluster: Any, storage: Any) -> None:
    cluster.stop()
    run_in_loop(lambda: setattr(cluster, "cluster_id", "cd" * 16))
    for node_id in cluster.nodes:
        cluster.restart(node_id)
    storage.cluster.wait_timeout = 1.0
    with pytest.raises(rc.ClientDisconnected):
        storage.load(b"\0" * 8)
