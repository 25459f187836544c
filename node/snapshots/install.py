"""Which folder is the node's database: the file `database`, and the one step that makes it another."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from raftstorage.node.snapshots.api import SnapshotError
from raftstorage.node.snapshots.files import SYSTEM, SnapshotFiles, remove_tree, write_durably

log = logging.getLogger(__name__)

POINTER = "database"
#: The database of a node that never took a snapshot.
FIRST = "db"
#: A folder that is being removed is renamed first: half a database never has a database's name.
REMOVED = "removed-"

_NAME = re.compile(r"db(-[1-9][0-9]{0,18}-[1-9][0-9]{0,18})?")


class InstallError(SnapshotError):
    """The directory does not say which database is its own, or does not have it any more."""


@dataclass(frozen=True, slots=True)
class Installed:
    """`index`, `term`: of the last entry in the snapshot it came as; 0 for `db`, which the log alone made."""

    name: str = FIRST
    index: int = 0
    term: int = 0


def folder_name(index: int, term: int) -> str:
    """Of the database that a snapshot of the state behind entry `index` becomes."""
    return f"{FIRST}-{index}-{term}"


def current(directory: Path, files: SnapshotFiles = SYSTEM) -> Installed:
    """The database of the node in `directory`. InstallError, OSError.

    The folder of one that came as a snapshot is there; `db` may be not there yet.
    """
    try:
        text = files.read_all(directory / POINTER)
    except FileNotFoundError:
        return Installed()
    try:
        found = json.loads(text)
        installed = Installed(found["name"], found["index"], found["term"])
        _check(installed)
    except (ValueError, KeyError, TypeError) as error:
        raise InstallError(f"{directory / POINTER} does not name a database: {error!r}") from error
    if installed.name != FIRST and not files.is_directory(directory / installed.name):
        raise InstallError(f"{directory / POINTER} names {installed.name}, which is not there")
    return installed


def point_to(directory: Path, name: str, index: int, term: int, files: SnapshotFiles = SYSTEM) -> None:
    """Makes the folder `name` the node's database, durably when this returns. A crash before leaves either one.

    The folder must be there, whole and durable, as SnapshotFetcher leaves it. InstallError. OSError: it is not
    known which one the next start will find, and this process must end.
    """
    installed = Installed(name, index, term)
    try:
        _check(installed)
    except (ValueError, TypeError) as error:
        raise InstallError(str(error)) from error
    if not files.is_directory(directory / name):
        raise InstallError(f"{directory / name} is not there")
    content = {"name": name, "index": index, "term": term}
    write_durably(files, directory / POINTER, json.dumps(content).encode() + b"\n")


def clean(directory: Path, files: SnapshotFiles = SYSTEM) -> None:
    """At a start: removes databases that are not the node's, and what a crash has left of other work here.

    InstallError and nothing is removed when it is not certain which one is the node's. OSError.
    """
    keep = current(directory, files)
    # What `database` says may be a rename that only this system remembers: it must be on the disk before what it
    # replaced goes.
    files.sync_directory(directory)
    for name in files.names(directory):
        path = directory / name
        if _NAME.fullmatch(name) and name != keep.name and files.is_directory(path):
            log.info("removing %s: the database is %s", path, keep.name)
            remove_database(path, files)
        elif name.startswith(REMOVED):
            remove_tree(files, path)
        elif name == POINTER + ".tmp":
            files.remove(path)


def remove_database(path: Path, files: SnapshotFiles = SYSTEM) -> None:
    """Removes a database's folder, if it is there, so that half of it is never taken for one. OSError."""
    away = path.with_name(REMOVED + path.name)
    remove_tree(files, away)
    if files.is_directory(path):
        files.rename(path, away)
        files.sync_directory(path.parent)
        remove_tree(files, away)


def _check(installed: Installed) -> None:
    """ValueError, TypeError."""
    name, index, term = installed.name, installed.index, installed.term
    if type(index) is not int or type(term) is not int:
        raise TypeError("index and term are not whole numbers")
    expected = FIRST if index == 0 and term == 0 else folder_name(index, term)
    if not _NAME.fullmatch(expected) or name != expected:
        raise ValueError(f"{name!r} is not the name of a database as of entry {index} of term {term}")
