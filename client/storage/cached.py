"""A cluster opened together with a cache of its records, which may go on where an earlier process's ended."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ZODB import POSException

from ..cache import RecordCache
from ..cluster import Cluster
from ..cluster.errors import ClientDisconnected, NotResumed

if TYPE_CHECKING:
    from ..cache.disk import CacheFile

log = logging.getLogger(__name__)

#: How often a cache that has a file is written to it, in seconds.
SAVE_SECONDS = 120.0


class Opened(NamedTuple):
    cluster: Cluster
    cache: RecordCache
    keeper: Keeper | None


def open_cached(
    make: Callable[[], Cluster], max_bytes: int, path: str | os.PathLike[str] | None, patience: float
) -> Opened:
    """A cluster that was made by `make` and opened, its cache of `max_bytes`, and who writes that to `path`.

    What the file says is used when it is of this cluster and no newer than it; whatever was changed since then is
    asked for, however long ago that was.
    """
    file = None if path is None else _cache_file(Path(path))
    try:
        cluster, cache = _resumed(make, max_bytes, file, patience) or _new(make, max_bytes, patience)
    except BaseException:
        if file is not None:
            file.close()
        raise
    return Opened(cluster, cache, None if file is None else Keeper(file, cache, cluster.cluster_id))


def _cache_file(path: Path) -> CacheFile | None:
    try:
        from ..cache.disk import CacheFile
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise POSException.Unsupported("a persistent cache needs a POSIX system") from error
    return CacheFile.open(path)


def _new(make: Callable[[], Cluster], max_bytes: int, patience: float) -> tuple[Cluster, RecordCache]:
    cluster, cache = make(), RecordCache(max_bytes)
    cluster.feed.on_change = cache.invalidate
    cluster.feed.on_missed = cache.missed
    cluster.open(patience=patience)
    cache.start(cluster.feed.last)
    return cluster, cache


def _resumed(
    make: Callable[[], Cluster], max_bytes: int, file: CacheFile | None, patience: float
) -> tuple[Cluster, RecordCache] | None:
    """None: there is nothing to go on with."""
    cache = RecordCache(max_bytes)
    origin = None if file is None else file.load(cache)
    if origin is None:
        return None
    cluster = make()
    cluster.feed.on_change = cache.invalidate
    cluster.feed.on_missed = cache.missed
    try:
        cluster.open(patience=patience, since=origin.known)
        if cluster.cluster_id != origin.cluster_id:
            raise NotResumed("it is of another cluster")
    except (NotResumed, ClientDisconnected) as error:
        log.warning("the persistent cache is begun anew: %s", error)
        cluster.close()
        return None
    return cluster, cache


class Keeper:
    """Writes a cache to its file now and then, and when it is closed."""

    def __init__(self, file: CacheFile, cache: RecordCache, cluster_id: str) -> None:
        self._file = file
        self._cache = cache
        self._cluster_id = cluster_id
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raftstorage-cache", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """To be called when nothing changes any more. Again: does nothing."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._file.save(self._cache, self._cluster_id)
            self._file.close()

    def _run(self) -> None:
        written = self._cache.known
        while not self._closed.wait(SAVE_SECONDS):
            if self._cache.known != written:
                written = self._cache.known
                self._file.save(self._cache, self._cluster_id)
