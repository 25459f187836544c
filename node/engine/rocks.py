"""The engine on RocksDB.

RocksDB writes no log of its own: ours is replayed from the applied index. What must hold is that a crash loses a
tail of whole batches, in all column families together; hence atomic flushes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import rocksdict
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.kv import FAMILIES, Change
from raftstorage.node.engine.state import RETENTION, StateMachine


def _options() -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_atomic_flush(True)
    options.set_paranoid_checks(True)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_write_buffer_size(32 << 20)
    options.set_keep_log_file_num(4)
    return options


class RocksStore:
    """A KeyValueStore in a folder of its own. EngineError when RocksDB cannot open it."""

    def __init__(self, directory: Path) -> None:
        families = {family: _options() for family in FAMILIES}
        try:
            self._db = rocksdict.Rdict(str(directory), _options(), column_families=families)
        except Exception as error:  # rocksdict raises bare Exception
            raise EngineError(f"cannot open the database in {directory}: {error}") from error
        self._families = {family: self._db.get_column_family(family) for family in FAMILIES}
        self._handles = {family: self._db.get_column_family_handle(family) for family in FAMILIES}
        self._unlogged = rocksdict.WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign, assignment]  # its stub is wrong

    def get(self, family: str, key: bytes) -> bytes | None:
        value: bytes | None = self._families[family].get(key)
        return value

    def around(self, family: str, key: bytes) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
        """See KeyValueStore."""
        pairs = self._families[family].iter()
        pairs.seek_for_prev(key)
        found = None
        if pairs.valid():
            found = (pairs.key(), pairs.value())
            pairs.next()
        else:
            self._check(pairs)
            pairs.seek_to_first()
        following = pairs.key() if pairs.valid() else None
        self._check(pairs)
        return found, following

    def _check(self, pairs: rocksdict.RdictIter) -> None:
        try:
            pairs.status()
        except Exception as error:  # rocksdict raises bare Exception
            raise EngineError(f"cannot read the database: {error}") from error

    def scan(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        pairs = self._families[family].iter()
        pairs.seek(start)
        while pairs.valid():
            yield pairs.key(), pairs.value()
            pairs.next()
        self._check(pairs)

    def scan_back(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        pairs = self._families[family].iter()
        pairs.seek_for_prev(start)
        while pairs.valid():
            yield pairs.key(), pairs.value()
            pairs.prev()
        self._check(pairs)

    def write(self, changes: Sequence[Change]) -> None:
        """See KeyValueStore."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for family, key, value in changes:
            if value is None:
                batch.delete(key, self._handles[family])
            else:
                batch.put(key, value, self._handles[family])
        self._db.write(batch, self._unlogged)

    def bytes_used(self) -> int:
        """See KeyValueStore."""
        return sum(
            int(each.property_int_value(name) or 0)
            for each in self._families.values()
            for name in ("rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables")
        )

    def flush(self) -> None:
        """Durable when it returns."""
        self._db.flush(True)

    def close(self) -> None:
        """The folder may be opened again afterwards."""
        for family in self._families.values():
            family.close()
        # Handles keep RocksDB, and with it the folder's lock, alive.
        self._families.clear()
        self._handles.clear()
        self._db.close()


class RocksEngine(StateMachine):
    """An engine in `directory` (made when missing). EngineError for what cannot be opened."""

    def __init__(self, directory: Path, retention: int = RETENTION) -> None:
        super().__init__(RocksStore(directory), retention)
