"""The engine against plain dictionaries: good, conflicting, repeated, malformed and meaningless commands."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import rule
from raftstorage.node.engine import MemoryEngine, RocksEngine
from raftstorage.node.engine.state import RETENTION, StateMachine

from tests.unit.engine.commands import entry
from tests.unit.engine.machine import EngineMachine
from tests.unit.engine.model import Model, commands, mangled
from tests.unit.service.fuzzing import explore


class BothEngines(EngineMachine):
    """RocksDB beside memory: whatever is applied, the digests stay equal."""

    def made(self, retention: int) -> list[StateMachine]:
        self.directory = Path(tempfile.mkdtemp())
        self.retention = retention
        return [MemoryEngine(retention), RocksEngine(self.directory / "db", retention)]

    @rule()
    def reopen(self) -> None:
        self.engines[1].flush()
        self.engines[1].close()
        self.engines[1] = RocksEngine(self.directory / "db", self.retention)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


def test_the_memory_engine_against_dictionaries() -> None:
    explore(EngineMachine, 130, steps=30)


def test_both_engines_against_dictionaries() -> None:
    explore(BothEngines, 25, steps=25)


@given(data=st.data())
def bytes_of_any_kind(data: st.DataObject) -> None:
    model = Model(RETENTION)
    engines = [MemoryEngine(), MemoryEngine()]
    for index in range(1, data.draw(st.integers(2, 12))):
        command = data.draw(commands(model))
        if data.draw(st.booleans()):
            command = data.draw(st.one_of(st.binary(max_size=200), mangled(command)))
        first, second = [engine.apply(entry(index, command)) for engine in engines]
        assert first == second
        assert engines[0].digest() == engines[1].digest()
        assert engines[0].applied_index == index
        model.apply(command)
    assert engines[0].last_tid == model.last


def test_bytes_of_any_kind_stop_no_engine_and_divide_none() -> None:
    explore(bytes_of_any_kind, 200)
