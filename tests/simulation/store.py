"""The engine over a store that a crash takes back to its last flush."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from raftstorage.node.engine.api import Applied
from raftstorage.node.engine.kv import Change, MemoryStore
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.raft.types import (
    Entry,
)

#: A MemoryStore's values and keys, by family.
Contents: TypeAlias = tuple[dict[str, dict[bytes, bytes]], dict[str, list[bytes]]]


def copied(contents: Contents) -> Contents:
    values, keys = contents
    return {family: dict(each) for family, each in values.items()}, {f: list(each) for f, each in keys.items()}


class SimStore(MemoryStore):
    """Like RocksDB without its own log: a crash takes the store back to its last flush."""

    def __init__(
        self, flush_chance: Callable[[], bool], point: Callable[[str], None], congested: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._congested = congested
        self._point = point
        self.durable: Contents = ({f: {} for f in self._values}, {f: [] for f in self._keys})
        self._pending: list[Sequence[Change]] = []
        self._flush_chance = flush_chance

    @property
    def congested(self) -> bool:  # type: ignore[override]
        """Now and then, until the driver asks again."""
        return self._congested()

    def write(self, changes: Sequence[Change]) -> None:
        super().write(changes)
        self._pending.append(changes)
        if self._flush_chance():
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._point("before flush")
            saved = MemoryStore()
            saved._values, saved._keys = self.durable
            for changes in self._pending:
                saved.write(changes)
            self._pending.clear()
            self._point("after flush")

    def crash(self) -> None:
        self._values, self._keys = copied(self.durable)
        self._pending.clear()

    def take(self, contents: Contents) -> None:
        """Holds what another one held, and has it on disk."""
        self.durable = copied(contents)
        self.crash()


class SimEngine(StateMachine):
    """The production engine, with places where a crash may strike, and small chunks."""

    blob_chunk_bytes = 16

    def __init__(self, store: MemoryStore, point: Callable[[str], None], applied: Callable[[], None]) -> None:
        """`applied` is called behind each entry."""
        super().__init__(store)
        self._point = point
        self._applied = applied

    def pack_step(self, budget: int) -> bool:
        """A few records at a time."""
        if not self.removes:
            return False
        self._point("before pack step")
        more = super().pack_step(min(budget, 4))
        self._point("after pack step")
        return more

    def apply(self, entry: Entry) -> Applied:
        self._point("before apply")
        applied = super().apply(entry)
        self._point("after apply")
        if self._staging is not None:
            self._point("between fragments")
        self._applied()
        return applied
