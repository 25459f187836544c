"""A directory of committed blobs on a client's disk, and how what is missing gets there."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from ZODB.blob import (
    LAYOUT_MARKER,
    BlobFile,
    FilesystemHelper,
    auto_layout_select,
    rename_or_copy_blob,
    set_not_writable,
)

from ..cluster.errors import BlobDirectoryFull, ClientDisconnected, WrongCluster
from .bound import Bound
from .layout import NAME
from .workshop import Workshop, remove_abandoned

#: Writes the blob of a revision, whole and checked, into the file: how many bytes it has.
Fetch = Callable[[bytes, bytes, int], int]

WORK = ".work"
CLUSTER_MARKER = ".cluster"
POLL_SECONDS = 0.02  # a lock of another process does not say when it is free


class BlobDirectory:
    """For any number of threads, and of processes that have the same directory.

    `shared`: laid out as a FileStorage's blobs are, and nothing is ever removed from it; otherwise it is a cache,
    laid out as ZEO's, of about `size` bytes (None: without a bound), looked through whenever `check` percent of it
    came in. A file that is there is finished, read-only, and never changes. `patience`: for how many seconds a
    process waits for another one that fetches the same blob, before it does so itself. WrongCluster: the directory
    has another cluster's blobs. ValueError: it has another layout. OSError: it cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cluster_id: str,
        fetch: Fetch,
        *,
        shared: bool = False,
        size: int | None = None,
        check: int = 10,
        patience: float = 30.0,
    ) -> None:
        base = Path(path).absolute()
        base.mkdir(parents=True, exist_ok=True)
        self._fetch = fetch
        self._shared = shared
        self._patience = patience
        self._mutex = threading.Lock()
        self._flights: dict[Path, Future[None]] = {}
        self._closed = False
        self._workshop = Workshop(base / WORK)
        self._bound: Bound | None = None
        try:
            _claim(base, cluster_id, self._workshop)
            layout = auto_layout_select(str(base)) if shared else NAME
            stated = _write_once(base / LAYOUT_MARKER, layout, self._workshop)
            (base / "tmp").mkdir(exist_ok=True)  # ZODB's own way of making it is not for several processes
            self.fshelper = FilesystemHelper(str(base), stated if shared else NAME)
            self.fshelper.create()
            remove_abandoned(base / "tmp")
            if size is not None and not shared:
                self._bound = Bound(base, size, check, self._workshop.lock)
        except BaseException:
            self._workshop.close()
            raise

    @property
    def temporary(self) -> str:
        """A directory for files that are not committed yet, on the same file system."""
        return str(self.fshelper.temp_dir)

    def close(self) -> None:
        """What is there may be used on. Again: does nothing."""
        with self._mutex:
            closed, self._closed = self._closed, True
        if not closed:
            if self._bound is not None:
                self._bound.close()
            self._workshop.close()

    # ---- reading -------------------------------------------------------------------------------------

    def load(self, oid: bytes, serial: bytes) -> Path:
        """The path of a revision's blob, which may be removed from a bounded cache at any time. Raises what the
        fetching of a missing one raises; BlobDirectoryFull."""
        path = self._path(oid, serial)
        while not self._used(path):
            with self._mutex:
                flight = self._flights.get(path)
                first = flight is None
                if flight is None:
                    flight = self._flights[path] = Future()
            if not first:
                with contextlib.suppress(CancelledError):  # whoever fetched it was interrupted: try it here
                    flight.result()
                continue
            try:
                with self._locked(path):
                    if not path.exists():
                        self._get(oid, serial, path)
            except Exception as error:
                flight.set_exception(error)
                raise
            except BaseException:
                flight.cancel()
                raise
            else:
                flight.set_result(None)
            finally:
                with self._mutex:
                    del self._flights[path]
            break
        return path

    def open(self, oid: bytes, serial: bytes, blob: Any = None) -> Any:
        """The file, open for reading: a BlobFile of `blob` if there is one. As `load`."""
        path = self.load(oid, serial)
        with contextlib.suppress(FileNotFoundError):  # the cache's bound was faster
            return _opened(path, blob)
        with self._locked(path):  # which the bound respects
            if not path.exists():
                self._get(oid, serial, path)
            return _opened(path, blob)

    def _path(self, oid: bytes, serial: bytes) -> Path:
        return Path(self.fshelper.getBlobFilename(oid, serial))

    def _used(self, path: Path) -> bool:
        """Whether the file is there; notes that it was used."""
        try:
            if self._shared:
                path.stat()
            else:
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except FileNotFoundError:
            return False
        except PermissionError:
            pass  # another user's file: it can be read, that is all
        return True

    def _get(self, oid: bytes, serial: bytes, path: Path) -> None:
        if self._closed:
            raise ClientDisconnected("the storage is closed")
        temporary = self._workshop.new_path()
        with self._room(oid):
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                size = self._fetch(oid, serial, descriptor)
                os.fdatasync(descriptor)  # a name that is on disk must not stand for bytes that are not
                self._place(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        if self._bound is not None:
            self._bound.added(size)

    def _place(self, temporary: Path, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        set_not_writable(temporary)
        temporary.replace(path)

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Alone with that file; after `patience` not alone, which costs a second transfer and nothing else."""
        name = str(path.relative_to(self.fshelper.base_dir))
        deadline = time.monotonic() + self._patience
        pause = threading.Event()
        while (lock := self._workshop.lock(name)) is None and time.monotonic() < deadline:
            pause.wait(POLL_SECONDS)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    @contextlib.contextmanager
    def _room(self, oid: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = self.fshelper.base_dir
            raise BlobDirectoryFull(
                f"no room in the blob directory {where} for the blob of object {oid.hex()}: {error.strerror}"
            ) from error

    # ---- writing -------------------------------------------------------------------------------------

    def take(self, oid: bytes, filename: str) -> Path:
        """Takes a file away from where it is; its path until `keep` or `drop`. BlobDirectoryFull, OSError."""
        path = self._workshop.new_path()
        with self._room(oid):
            try:
                rename_or_copy_blob(filename, path, chmod=False)
            except BaseException:
                self.drop(path)
                raise
        return path

    def keep(self, path: Path, oid: bytes, serial: bytes) -> None:
        """What was taken is the blob of that revision. It must be synced. OSError."""
        size = path.stat().st_size
        self._place(path, self._path(oid, serial))
        if self._bound is not None:
            self._bound.added(size)

    def drop(self, path: Path) -> None:
        """What was taken is not needed. Again: does nothing."""
        path.unlink(missing_ok=True)


def _opened(path: Path, blob: Any) -> Any:
    return path.open("rb") if blob is None else BlobFile(str(path), "r", blob)


def _claim(base: Path, cluster_id: str, workshop: Workshop) -> None:
    """Says whose blobs these are, or sees that they are this cluster's."""
    theirs = _write_once(base / CLUSTER_MARKER, cluster_id, workshop)
    if theirs != cluster_id:
        raise WrongCluster(f"the blob directory {base} has blobs of cluster {theirs}, not of {cluster_id}")


def _write_once(path: Path, text: str, workshop: Workshop) -> str:
    """What the file says, from now on `text` if there was none. Nobody sees it half written."""
    temporary = workshop.new_path()
    temporary.write_text(text)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()
    return path.read_text().strip()
