"""Whose directory this is: `node.json`, and the lock that keeps a second process out.

A node's directory holds `node.json`, `lock`, `log/` (the transaction log) and `db/` (the engine).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Version of the directory's layout, in `node.json`. A node refuses a directory with another one.
FORMAT = 1

_CLUSTER_ID = re.compile(r"[0-9a-f]{32}")


class DirectoryError(Exception):
    """The directory belongs to another node or another process, or cannot be used."""


class DirectoryLocked(DirectoryError):
    """Another process has the directory."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who a node is and who the others are. `members`: node id -> host:port, this node included."""

    cluster_id: str
    node_id: int
    members: Mapping[int, str]


def default_cluster_id(members: Mapping[int, str]) -> str:
    """32 hexadecimal digits that every node started with the same members agrees on."""
    text = "\n".join(f"{node}={members[node]}" for node in sorted(members))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_cluster_id(text: str) -> bool:
    return _CLUSTER_ID.fullmatch(text) is not None


def fsync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable. OSError propagates."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NodeDirectory:
    """An open, locked directory of this node. Use `NodeDirectory.open`; `close` gives the lock back."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.log = path / "log"
        self.db = path / "db"
        self._lock = lock

    @classmethod
    def open(cls, path: Path, identity: NodeIdentity) -> NodeDirectory:
        """Locks `path` (made when missing) and checks or writes its identity.

        DirectoryError: another process has it, it is another node's or another cluster's, or it cannot be made.
        """
        try:
            make_directory(path)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DirectoryError(f"{path} cannot be used: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DirectoryLocked(f"{path} is in use by another process") from error
            directory = cls(path, lock)
            directory._check(identity)
            return directory
        except BaseException:
            os.close(lock)
            raise

    def _check(self, identity: NodeIdentity) -> None:
        file = self.path / "node.json"
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            if self.log.exists() or self.db.exists():
                raise DirectoryError(
                    f"{self.path} holds a node's data but no node.json: it is not certain whose it is"
                ) from None
            self._write(file, identity)
            return
        except OSError as error:
            raise DirectoryError(f"{file} cannot be read: {error.strerror or error}") from error
        try:
            found = json.loads(text)
            version, cluster, node = found["format"], found["cluster_id"], found["node_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise DirectoryError(f"{file} is not a node's identity: {error!r}") from error
        if version != FORMAT:
            raise DirectoryError(f"{file}: directory format {version}, this software knows {FORMAT}")
        if cluster != identity.cluster_id:
            raise DirectoryError(f"{self.path} belongs to cluster {cluster}, not to {identity.cluster_id}")
        if node != identity.node_id:
            raise DirectoryError(f"{self.path} belongs to node {node}, not to node {identity.node_id}")

    def _write(self, file: Path, identity: NodeIdentity) -> None:
        content = {"format": FORMAT, "cluster_id": identity.cluster_id, "node_id": identity.node_id}
        temporary = file.with_suffix(".tmp")
        try:
            with temporary.open("wb") as out:
                out.write(json.dumps(content, indent=2).encode() + b"\n")
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(file)
            fsync_directory(self.path)
        except OSError as error:
            raise DirectoryError(f"{file} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        os.close(self._lock)


def make_directory(path: Path) -> None:
    """Makes `path` with missing parents, each name durable in the directory above it."""
    missing = []
    current = path.absolute()
    while not current.exists():
        missing.append(current)
        current = current.parent
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        fsync_directory(directory.parent)
    if not path.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(path))
