"""A car is stored by one process, read and given a third wheel by another; only what changed is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transaction
import ZODB

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

HERE = Path(__file__).parent


@pytest.fixture
def garage(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(HERE)
    import garage

    return garage


@pytest.fixture
def db(shared_cluster: LocalCluster, open_storage: Callable[..., Any]) -> Iterator[ZODB.DB]:
    db = ZODB.DB(open_storage(shared_cluster.addresses))
    yield db
    transaction.abort()
    db.close()


@pytest.fixture
def car(db: ZODB.DB, garage: Any) -> Any:
    """A committed car with two wheels, in an open connection."""
    car = garage.Car("Isetta")
    car.wheels.extend([garage.Wheel("front left", screws=3), garage.Wheel("front right", screws=3)])
    car.owners.append("Ada")
    db.open().root()["car"] = car
    transaction.commit()
    return car


def elsewhere(cluster: LocalCluster, command: str) -> Any:
    """Runs a garage command in another process; its answer."""
    done = subprocess.run(
        [sys.executable, str(HERE / "garage.py"), cluster.addresses, command],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def records(db: ZODB.DB, tid: bytes) -> list[bytes]:
    """The oids that the transaction `tid` wrote."""
    (found,) = db.storage.iterator(tid, tid)
    return sorted(record.oid.hex() for record in found)


def test_first_commit_writes_the_whole_graph(db: ZODB.DB, car: Any, garage: Any) -> None:
    parts = [car, car.wheels, *car.wheels, *(wheel.screws for wheel in car.wheels)]
    parts += [screw for wheel in car.wheels for screw in wheel.screws]
    assert records(db, car._p_serial) == garage.oids(car._p_jar.root(), *parts)


def test_another_process_reads_it_and_adds_a_wheel(
    db: ZODB.DB, car: Any, garage: Any, shared_cluster: LocalCluster
) -> None:
    assert elsewhere(shared_cluster, "read") == garage.describe(car)

    added = elsewhere(shared_cluster, "add_wheel")

    assert len(car.wheels) == 2  # this transaction's snapshot is older
    transaction.begin()
    assert [wheel.position for wheel in car.wheels] == ["front left", "front right", "rear left"]
    assert [screw.millimetres for screw in car.wheels[2].screws] == [12, 13]
    assert records(db, bytes.fromhex(added["tid"])) == added["oids"]
    assert garage.oids(car)[0] not in added["oids"]


def test_a_plain_list_needs_p_changed(db: ZODB.DB, car: Any, garage: Any, shared_cluster: LocalCluster) -> None:
    before = db.lastTransaction()
    car.owners.append("Grace")
    transaction.commit()
    assert db.lastTransaction() == before  # nothing was written
    assert elsewhere(shared_cluster, "read")["owners"] == ["Ada"]

    car.owners.append("Edsger")
    car._p_changed = True
    transaction.commit()
    assert records(db, car._p_serial) == garage.oids(car)
    assert elsewhere(shared_cluster, "read")["owners"] == ["Ada", "Grace", "Edsger"]
