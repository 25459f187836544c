"""The demonstration's application: a car has wheels, a wheel has screws."""

from __future__ import annotations

from persistent import Persistent


class Screw(Persistent):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.name = name


class Wheel(Persistent):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.name = name
        self.screws: list[Screw] = []


class Car(Persistent):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        self.name = name
        self.wheels: list[Wheel] = []
