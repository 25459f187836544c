"""A cache's contents in a file, for the next process: an SQLite database that is thrown away when in doubt.

It says which cluster it is of and up to which tid its contents are known, and holds a checksum of every record. It
is written as a whole, in one transaction, so that a process that dies leaves what was written before. Nothing that
is wrong with it is an error of the application's: it is told in the log, and the cache begins empty.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from ..blobs.locks import FileLock
from .records import RecordCache, Revision

log = logging.getLogger(__name__)

FORMAT = "1"
_LOCK_SECONDS = 5.0
_SCHEMA = """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE record (
        position INTEGER PRIMARY KEY, oid BLOB NOT NULL, serial BLOB NOT NULL, next_serial BLOB,
        data BLOB NOT NULL, crc32c INTEGER NOT NULL
    );
"""


class Origin(NamedTuple):
    """Of which cluster a file's contents are, and the tid up to which all its changes are in them."""

    cluster_id: str
    known: bytes


class CacheFileError(Exception):
    """It is not what this software wrote."""


class CacheFile:
    """One process has it at a time: `open` gives None to another one. Used from one thread at a time."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self._path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> CacheFile | None:
        """None, and a line in the log: another process has it, or the directory cannot be written to."""
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock.take(Path(f"{path}.lock"))
        except OSError as error:
            log.warning("no persistent cache: %s", error)
            return None
        if lock is None:
            log.warning("another process has the cache %s: going without a persistent one", path)
            return None
        return cls(path, lock)

    def close(self) -> None:
        """Lets others have it."""
        self._lock.release()

    def load(self, cache: RecordCache) -> Origin | None:
        """Fills `cache`, which must be new; where its contents are from.

        None: there is nothing that can be used, and the cache is as it was.
        """
        if not self._path.exists():
            return None
        try:
            origin, contents = self._read()
        except (CacheFileError, sqlite3.Error, OSError) as error:
            log.warning("the cache %s cannot be used and is begun anew: %s", self._path, error)
            self._remove()
            return None
        cache.restore(origin.known, contents)
        return origin

    def save(self, cache: RecordCache, cluster_id: str) -> None:
        """Writes what `cache` holds now. A full disk or the like costs the file, and nothing else."""
        known, contents = cache.contents()
        try:
            self._write(known, contents, cluster_id)
        except (sqlite3.Error, OSError) as error:
            log.warning("the cache %s was not written: %s", self._path, error)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_LOCK_SECONDS, isolation_level=None)

    def _read(self) -> tuple[Origin, list[tuple[bytes, Revision]]]:
        with closing(self._connect()) as database:
            meta = dict(database.execute("SELECT name, value FROM meta"))
            if meta.get("format") != FORMAT:
                raise CacheFileError(f"it has format {meta.get('format')}, not {FORMAT}")
            rows = database.execute("SELECT oid, serial, next_serial, data, crc32c FROM record ORDER BY position")
            contents = list(_checked(rows))
            known, cluster_id = meta.get("known"), meta.get("cluster")
            if not isinstance(known, bytes) or len(known) != 8 or not isinstance(cluster_id, str):
                raise CacheFileError("it does not say what it is of")
            if meta.get("records") != len(contents):
                raise CacheFileError("it is not whole")
            return Origin(cluster_id, known), contents

    def _write(self, known: bytes, contents: Iterable[tuple[bytes, Revision]], cluster_id: str) -> None:
        with closing(self._connect()) as database:
            try:
                self._replace(database, known, contents, cluster_id)
            except sqlite3.DatabaseError:
                database.close()
                self._remove()  # what is there is no database of ours
                with closing(self._connect()) as again:
                    self._replace(again, known, contents, cluster_id)

    @staticmethod
    def _replace(
        database: sqlite3.Connection, known: bytes, contents: Iterable[tuple[bytes, Revision]], cluster_id: str
    ) -> None:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(
            "PRAGMA synchronous = NORMAL"
        )  # with less a power cut could leave a mixture of old and new
        database.execute("BEGIN IMMEDIATE")
        database.execute("DROP TABLE IF EXISTS meta")
        database.execute("DROP TABLE IF EXISTS record")
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        rows = [(oid, each.serial, each.next_serial, each.data, _checksum(oid, each)) for oid, each in contents]
        database.executemany(
            "INSERT INTO record (oid, serial, next_serial, data, crc32c) VALUES (?, ?, ?, ?, ?)", rows
        )
        meta = [("format", FORMAT), ("cluster", cluster_id), ("known", known), ("records", len(rows))]
        database.executemany("INSERT INTO meta VALUES (?, ?)", meta)
        database.execute("COMMIT")

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)


def _checksum(oid: bytes, revision: Revision) -> int:
    parts = (oid, revision.serial, revision.next_serial or b"", revision.data)
    return int(google_crc32c.value(b"".join(parts)))


def _checked(rows: Iterable[tuple[bytes, bytes, bytes | None, bytes, int]]) -> Iterator[tuple[bytes, Revision]]:
    for oid, serial, next_serial, data, crc32c in rows:
        try:
            revision = Revision(data, serial, next_serial)
            sound = _checksum(oid, revision) == crc32c and len(oid) == len(serial) == 8
        except TypeError:  # another type in a column: SQLite takes any
            sound = False
        if not sound:
            raise CacheFileError("the checksum of a record does not fit")
        yield oid, revision
