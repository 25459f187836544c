"""The example application: a car with wheels, held by screws. Imported by the test and by the second process.

    python garage.py ADDRESSES COMMAND

opens the database in a process of its own, does what COMMAND says and prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import transaction
import ZODB
from persistent import Persistent
from persistent.list import PersistentList
from raftstorage.client import ClientStorage


class Screw(Persistent):
    def __init__(self, millimetres: int) -> None:
        self.millimetres = millimetres


class Wheel(Persistent):
    def __init__(self, position: str, screws: int) -> None:
        self.position = position
        self.screws = PersistentList(Screw(12 + n) for n in range(screws))


class Car(Persistent):
    def __init__(self, model: str) -> None:
        self.model = model
        self.wheels = PersistentList()
        self.owners = []  # a plain list: the database does not see it change


def describe(car: Car) -> dict[str, Any]:
    """The whole car as plain data."""
    return {
        "model": car.model,
        "owners": list(car.owners),
        "wheels": [[wheel.position, [screw.millimetres for screw in wheel.screws]] for wheel in car.wheels],
    }


def oids(*objects: Persistent) -> list[str]:
    return sorted(obj._p_oid.hex() for obj in objects)


def read(car: Car) -> dict[str, Any]:
    return describe(car)


def add_wheel(car: Car) -> dict[str, Any]:
    """Fits a wheel with two screws; names the objects that this changed or made."""
    wheel = Wheel("rear left", screws=2)
    car.wheels.append(wheel)
    transaction.get().note("a third wheel")
    transaction.commit()
    return {"tid": wheel._p_serial.hex(), "oids": oids(car.wheels, wheel, wheel.screws, *wheel.screws)}


COMMANDS = {"read": read, "add_wheel": add_wheel}


def main(addresses: str, command: str) -> None:
    db = ZODB.DB(ClientStorage(addresses))
    connection = db.open()
    print(json.dumps(COMMANDS[command](connection.root()["car"])))
    transaction.abort()
    connection.close()
    db.close()


if __name__ == "__main__":
    # pickles must name the module as others import it, not __main__
    import garage

    garage.main(*sys.argv[1:])
