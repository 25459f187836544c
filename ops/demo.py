"""`raftstorage demo`: the main job, told step by step. A ZODB application outlives its database's leader."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from raftstorage.ops.demo_objects import Car, Screw, Wheel
from raftstorage.ops.errors import CommandError, require_node, require_zodb
from raftstorage.ops.local import LocalCluster
from rich.console import Console


def run(console: Console, nodes: int = 3) -> None:
    """Runs the demonstration on a temporary cluster. CommandError as soon as something is not as it must be."""
    require_zodb("raftstorage demo")
    require_node("raftstorage demo")

    def done(text: str) -> None:
        console.print(f"[green]✓[/] {text}")

    console.print("[bold]RaftStorage: a ZODB application that outlives its leader[/]\n")
    with LocalCluster(nodes) as cluster:
        leader = cluster.leader(timeout=30)
        done(f"{nodes} storage nodes run at {cluster.addresses}; node {leader + 1} leads")

        with _database(cluster.addresses) as db:
            with db.transaction() as connection:
                car = Car("Volvo 240")
                car.wheels = [Wheel("front left"), Wheel("front right")]
                for wheel in car.wheels:
                    wheel.screws = [Screw(f"M12 number {n}") for n in range(1, 5)]
                connection.root()["car"] = car
            done('a car with 2 wheels and 8 screws is committed under root["car"]')

            pid = cluster.pid(leader)
            began = time.monotonic()
            cluster.kill(leader)
            done(f"the leader, node {leader + 1} (process {pid}), is killed with SIGKILL")

            with db.transaction() as connection:
                car = connection.root()["car"]
                _demand(_parts(car) == (2, 8), f"the car has other parts now: {_parts(car)}")
                wheel = Wheel("rear left")
                wheel.screws = [Screw(f"M12 number {n}") for n in range(1, 5)]
                car.wheels = [*car.wheels, wheel]
            seconds = time.monotonic() - began
            successor = cluster.leader(timeout=30)
            _demand(successor != leader, "the dead node leads")
            done("the same application, with the same open database, reads the car back: 2 wheels, 8 screws")
            done(f"it commits a third wheel; node {successor + 1} leads now, {seconds:.2f} s after the kill")

        with _database(cluster.addresses) as db, db.transaction() as connection:
            found = _parts(connection.root()["car"])
        _demand(found == (3, 12), f"a fresh client sees {found[0]} wheels and {found[1]} screws, not 3 and 12")
        done("a fresh client sees 3 wheels and 12 screws")

        cluster.start(leader)
        wanted = cluster.status(cluster.leader(timeout=30)).last_tid
        deadline = time.monotonic() + 30
        while cluster.status(leader).last_tid != wanted:
            _demand(time.monotonic() < deadline, f"node {leader + 1} does not catch up")
            time.sleep(0.05)  # a node tells nobody how far it has caught up
        done(f"node {leader + 1} is started again and has caught up: every node holds transaction {wanted.hex()}")
    console.print("\n[bold green]Nothing was lost.[/]")


@contextlib.contextmanager
def _database(addresses: str) -> Any:
    import ZODB
    from raftstorage.client import ClientStorage

    with contextlib.closing(ZODB.DB(ClientStorage(addresses))) as db:
        yield db


def _parts(car: Car) -> tuple[int, int]:
    return len(car.wheels), sum(len(wheel.screws) for wheel in car.wheels)


def _demand(truth: bool, otherwise: str) -> None:
    if not truth:
        raise CommandError(otherwise)
