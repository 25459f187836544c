"""Both engines; every test of one holds for the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from raftstorage.node.engine.memory import MemoryEngine
from raftstorage.node.engine.rocks import RocksEngine
from raftstorage.node.engine.state import StateMachine


@pytest.fixture(params=["memory", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateMachine]:
    made = MemoryEngine() if request.param == "memory" else RocksEngine(tmp_path / "db")
    yield made
    made.close()
