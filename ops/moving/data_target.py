"""A Data.fs that is written: a new one appears under its name when it is whole; one that is there is added to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raftstorage.ops.errors import CommandError
from zc.lockfile import LockError
from ZODB.FileStorage import FileStorage

from .data_file import DataFile
from .places import COPY_PREFIX, Target, is_data_file

Z64 = b"\0" * 8


@contextmanager
def data_target(path: Path, blob_dir: Path | None) -> Iterator[Target]:
    """For the time of a copy. A new file is made as `path` with .part behind it, which stays when the copy breaks
    off with something in it: the next one goes on with that. CommandError: it cannot be written to, and was left
    alone."""
    if not path.absolute().parent.is_dir():
        raise CommandError(f"no such directory: {path.absolute().parent}", 2)
    if path.exists():
        _must_be_sound(path)
        with _open(path, blob_dir) as target:
            yield target
        return
    partial = path.with_name(path.name + ".part")
    written = False
    if partial.exists():
        _cut(partial)
    try:
        with _open(partial, blob_dir) as target:
            yield target
            written = target.last() != Z64
        if written:
            publish(partial, path)
    finally:
        if partial.exists() and _is_empty(partial):
            partial.unlink()
        for suffix in (".index", ".lock", ".tmp"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _must_be_sound(path: Path) -> None:
    if not path.is_file() or not is_data_file(path):
        raise CommandError(f"{path} exists already, and is no Data.fs: it was left alone", 2)
    if path.stat().st_size == 0:
        return
    with DataFile(path) as file:
        file.heads()
        damage = [each for each in file.damage if not each.harmless]
    if damage:
        raise CommandError(f"{path} is damaged {damage[0]}. It was left alone", 2)


class _FileTarget(Target):
    def __init__(self, path: Path, storage: FileStorage) -> None:
        super().__init__(str(path), storage)
        self._path = path

    def packed(self) -> bytes:
        with DataFile(self._path) as file:
            return file.heads()[1]

    def last(self) -> bytes:
        # A FileStorage that cut an unfinished transaction off still gives that one's tid.
        with DataFile(self._path) as file:
            return file.heads()[0]


def _open(path: Path, blob_dir: Path | None) -> Target:
    try:
        storage = FileStorage(str(path), blob_dir=None if blob_dir is None else str(blob_dir))
    except LockError:
        raise CommandError(f"{path} is in use by another process", 1) from None
    if blob_dir is not None:
        for left in Path(storage.temporaryDirectory()).glob(COPY_PREFIX + "*"):
            left.unlink()  # of an export that was killed: nobody else has this file open
    return _FileTarget(path, storage)


def _cut(partial: Path) -> None:
    """Takes off what an export that broke off did not finish."""
    with DataFile(partial) as file:
        file.heads()
        damage = file.damage
    if damage and damage[-1].offset + damage[-1].size == file.size:
        os.truncate(partial, damage[-1].offset)


def _is_empty(partial: Path) -> bool:
    with DataFile(partial) as file:
        return file.heads()[0] == Z64


def publish(partial: Path, path: Path) -> None:
    """Gives the finished file its name; an error, not an overwrite, when that was taken meanwhile."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(partial, path)
    except FileExistsError:
        raise CommandError(f"{path} came into being during the export: it was left alone", 1) from None
    partial.unlink()
    descriptor = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
