"""The engine on RocksDB.

RocksDB writes no log of its own: ours is replayed from the applied index. What must hold is that a crash loses a
tail of whole batches. All families share one column family, told apart by the first byte of the key: then a flush
is atomic by itself. (With several, `atomic_flush` covers the automatic flushes but not one asked for by hand.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rocksdict
from raftstorage.node.engine.api import EngineError, EngineWriteError
from raftstorage.node.engine.kv import FAMILIES, Change, Until, sync_folder
from raftstorage.node.engine.layout import STATE_KEY, read_state
from raftstorage.node.engine.state import RETENTION, StateMachine

_PREFIXES = {family: bytes([position]) for position, family in enumerate(FAMILIES, 1)}
#: Greater than what keys have behind their beginnings.
_BEHIND = b"\xff" * 64
_CONGESTED = ("rocksdb.is-write-stopped", "rocksdb.actual-delayed-write-rate")


#: Of blocks of tables, and of their indexes and filters, in memory.
CACHE_BYTES = 64 << 20


def _options(cache_bytes: int) -> rocksdict.Options:
    tables = rocksdict.BlockBasedOptions()
    tables.set_block_cache(rocksdict.Cache(cache_bytes))
    # For lookups of transaction ids, nearly all of which are new.
    tables.set_bloom_filter(10, False)
    # Else indexes and filters take memory as the database grows. In parts: one lookup needs little of them.
    tables.set_cache_index_and_filter_blocks(True)
    tables.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
    tables.set_partition_filters(True)
    tables.set_pin_top_level_index_and_filter(True)
    tables.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_paranoid_checks(True)
    options.set_block_based_table_factory(tables)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    # What is large goes to files of its own when a memory table is flushed, and is not written again when tables
    # are compacted. lz4 costs a fifth more time for what is packed already, and saves time for what is not.
    options.set_enable_blob_files(True)
    options.set_min_blob_size(64 << 10)
    options.set_blob_file_size(64 << 20)
    options.set_blob_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_enable_blob_gc(True)
    options.set_write_buffer_size(32 << 20)
    # A pack leaves runs of deletions, which every search that meets them walks over until they are compacted.
    options.add_compact_on_deletion_collector_factory(8192, 4096, 0.5)
    # Applying must not wait for one slow flush.
    options.set_max_write_buffer_number(4)
    options.set_max_background_jobs(2)
    # Below the usual limit of 1,024 files for each process.
    options.set_max_open_files(512)
    options.set_max_log_file_size(16 << 20)
    options.set_keep_log_file_num(4)
    return options


@contextmanager
def _doing(what: str, failure: type[EngineError] = EngineError) -> Iterator[None]:
    """rocksdict raises bare Exceptions."""
    try:
        yield
    except Exception as error:
        raise failure(f"cannot {what} the database: {error}") from error


class RocksStore:
    """A KeyValueStore in a folder of its own. EngineError when RocksDB cannot open, read or write it."""

    def __init__(self, directory: Path, cache_bytes: int = CACHE_BYTES) -> None:
        try:
            options = _options(cache_bytes)
            # Named, or those of the day when the database was made would count.
            self._db = rocksdict.Rdict(str(directory), options, column_families={"default": options})
        except Exception as error:
            raise EngineError(f"cannot open the database in {directory}: {error}") from error
        self._flushing = threading.Lock()
        self._unlogged = rocksdict.WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign, assignment]  # its stub is wrong

    def get(self, family: str, key: bytes) -> bytes | None:
        """See KeyValueStore."""
        try:
            value: bytes | None = self._db.get(_PREFIXES[family] + key)
        except Exception as error:  # as `_doing`, which takes longer than the lookup
            raise EngineError(f"cannot read the database: {error}") from error
        return value

    def around(self, family: str, key: bytes, within: int = 0) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
        """See KeyValueStore."""
        prefix = _PREFIXES[family]
        pairs = self._db.iter()
        if within:
            # A step from the last key of its kind would walk over whatever was deleted behind it. (rocksdict's
            # bounds for iterators point to memory that is freed.)
            pairs.seek_for_prev(prefix + key[:within] + _BEHIND)
            if not pairs.valid():
                self._check(pairs)
                return None, None
            last = pairs.key()
            if last[: within + 1] != prefix + key[:within]:
                return None, None
            if last <= prefix + key:
                return (last[1:], pairs.value()), None
        pairs.seek_for_prev(prefix + key)
        found = None
        if pairs.valid():
            if (at := pairs.key())[:1] == prefix and at[1 : within + 1] == key[:within]:
                found = (at[1:], pairs.value())
            pairs.next()
        else:
            self._check(pairs)
            pairs.seek(prefix + key)
        if not pairs.valid():
            self._check(pairs)
            return found, None
        following = pairs.key()
        return found, following[1:] if following[:1] == prefix else None

    def at_or_before(self, family: str, key: bytes) -> bytes | None:
        """See KeyValueStore."""
        return self.all_at_or_before(family, (key,))[0]

    def all_at_or_before(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """See KeyValueStore."""
        prefix = _PREFIXES[family]
        pairs = self._db.iter()
        answer: dict[bytes, bytes | None] = {}
        for key in sorted(keys):  # what one search read is there for the next
            pairs.seek_for_prev(prefix + key)
            found: bytes | None = None
            if pairs.valid():
                found = pairs.key()
            else:
                self._check(pairs)
            answer[key] = found[1:] if found is not None and found[:1] == prefix else None
        return [answer[key] for key in keys]

    def _check(self, pairs: rocksdict.RdictIter) -> None:
        """An iterator that is not valid is at the end, or has failed."""
        with _doing("read"):
            pairs.status()

    def scan(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        prefix = _PREFIXES[family]
        pairs = self._db.iter()
        pairs.seek(prefix + start)
        while pairs.valid() and (key := pairs.key())[:1] == prefix:
            yield key[1:], pairs.value()
            pairs.next()
        self._check(pairs)

    def scan_back(self, family: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        prefix = _PREFIXES[family]
        pairs = self._db.iter()
        pairs.seek_for_prev(prefix + start)
        while pairs.valid() and (key := pairs.key())[:1] == prefix:
            yield key[1:], pairs.value()
            pairs.prev()
        self._check(pairs)

    def write(self, changes: Sequence[Change]) -> None:
        """See KeyValueStore."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for family, key, value in changes:
            if isinstance(value, Until):
                batch.delete_range(_PREFIXES[family] + key, _PREFIXES[family] + value.end)
            elif value is None:
                batch.delete(_PREFIXES[family] + key)
            else:
                batch.put(_PREFIXES[family] + key, value)
        with _doing("write", EngineWriteError):
            self._db.write(batch, self._unlogged)

    @property
    def congested(self) -> bool:
        """See KeyValueStore. RocksDB tells when the next write would be stopped, or slowed down."""
        with _doing("read"):
            return any(self._db.property_int_value(name) for name in _CONGESTED)

    def bytes_used(self) -> int:
        """See KeyValueStore."""
        with _doing("read"):
            return sum(
                int(self._db.property_int_value(name) or 0)
                for name in (
                    "rocksdb.total-sst-files-size",
                    "rocksdb.total-blob-file-size",
                    "rocksdb.cur-size-all-mem-tables",
                )
            )

    def flush(self) -> None:
        """Durable when it returns."""
        with self._flushing, _doing("flush", EngineWriteError):
            self._db.flush(True)

    def checkpoint(self, directory: Path) -> None:
        """See KeyValueStore. Flushes what was written since the last flush, holding the interpreter lock."""
        with _doing("copy", EngineWriteError):
            rocksdict.Checkpoint(self._db).create_checkpoint(str(directory))
            sync_folder(directory)  # the tables are synced already

    def close(self) -> None:
        """The folder may be opened again afterwards."""
        with self._flushing:
            self._db.close()


def check_format(directory: Path) -> None:
    """EngineError when the database in `directory` is of a format that is not known here; it is left as it is.

    To open it for writing would be too late: RocksDB begins new files at once, and may rewrite others.
    """
    if not (directory / "CURRENT").exists():
        return
    try:
        reading = rocksdict.AccessType.read_only()
        database = rocksdict.Rdict(str(directory), _options(CACHE_BYTES), access_type=reading)
    except Exception:
        return  # opening it for writing fails likewise, and says why
    try:
        with _doing("read"):
            sealed: bytes | None = database.get(_PREFIXES["meta"] + STATE_KEY)
    finally:
        database.close()
    if sealed is not None:
        read_state(sealed)


class RocksEngine(StateMachine):
    """An engine in `directory` (made when missing). EngineError for what cannot be opened."""

    def __init__(self, directory: Path, retention: int = RETENTION, *, cache_bytes: int = CACHE_BYTES) -> None:
        check_format(directory)
        super().__init__(RocksStore(directory, cache_bytes), retention)
