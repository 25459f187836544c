"""Whose directory this is: `node.json`, and the lock that keeps a second process out.

A node's directory holds `node.json`, `lock`, `log/` (the transaction log) and the engine's database in the folder
that the file `database` names (`db` without one); beside them `snapshots/` and `incoming/`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Version of the directory's layout, in `node.json`. 1 had no instance and no members; it is read and rewritten.
FORMAT = 2

_HEX = re.compile(r"[0-9a-f]{32}")


class DirectoryError(Exception):
    """The directory belongs to another node or another process, or cannot be used."""


class DirectoryLocked(DirectoryError):
    """Another process has the directory."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who a node is.

    `members`: node id -> host:port of those that the cluster was founded with; empty for a node that joined later.
    `instance`: 32 hexadecimal digits that name this directory, so that an empty one is not taken for it.
    `node_id` 0: it is still asking to be let into a cluster.
    """

    cluster_id: str
    node_id: int
    members: Mapping[int, str]
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a node that joined is still to bring about: `vote`, and `replaces` a lost member (0: none)."""

    vote: bool = False
    replaces: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What `node.json` says."""

    identity: NodeIdentity
    wish: Wish = field(default_factory=Wish)


def default_cluster_id(members: Mapping[int, str]) -> str:
    """32 hexadecimal digits that every node started with the same members agrees on."""
    text = "\n".join(f"{node}={members[node]}" for node in sorted(members))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_cluster_id(text: str) -> bool:
    return _HEX.fullmatch(text) is not None


def new_instance() -> str:
    """A name for a directory that no other one has."""
    return secrets.token_hex(16)


def fsync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable. OSError propagates."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NodeDirectory:
    """An open, locked directory. `found`: what its `node.json` says, None in a fresh one. `close` unlocks it."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.log = path / "log"
        self.snapshots = path / "snapshots"
        self.incoming = path / "incoming"
        self.found: Found | None = None
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> NodeDirectory:
        """Locks `path` (made when missing) and reads its identity.

        DirectoryError: another process has it, it holds something else or a newer layout, or it cannot be made.
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
            directory.found = directory._read()
            return directory
        except BaseException:
            os.close(lock)
            raise

    def claim(self, wanted: NodeIdentity) -> NodeIdentity:
        """This directory's identity, written if it is fresh. `wanted`: empty fields (0, "", no members) take any.

        DirectoryError when it is another node's or cluster's.
        """
        if self.found is None:
            identity = NodeIdentity(wanted.cluster_id, wanted.node_id, wanted.members, new_instance())
            self.write(Found(identity))
            return identity
        has = self.found.identity
        if wanted.cluster_id and has.cluster_id != wanted.cluster_id:
            raise DirectoryError(f"{self.path} belongs to cluster {has.cluster_id}, not to {wanted.cluster_id}")
        if wanted.node_id and has.node_id != wanted.node_id:
            raise DirectoryError(f"{self.path} belongs to node {has.node_id}, not to node {wanted.node_id}")
        if not has.instance:  # of format 1
            has = NodeIdentity(has.cluster_id, has.node_id, wanted.members, new_instance())
            self.write(Found(has))
        return has

    def write(self, found: Found) -> None:
        """Makes `found` what the directory says of itself, durably. DirectoryError."""
        identity = found.identity
        content = {
            "format": FORMAT,
            "cluster_id": identity.cluster_id,
            "node_id": identity.node_id,
            "instance": identity.instance,
            "members": {str(node): address for node, address in sorted(identity.members.items())},
            "wants_vote": found.wish.vote,
            "replaces": found.wish.replaces,
        }
        file = self.path / "node.json"
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
        self.found = found

    def _read(self) -> Found | None:
        file = self.path / "node.json"
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            if self.log.exists() or (self.path / "db").exists():
                raise DirectoryError(
                    f"{self.path} holds a node's data but no node.json: it is not certain whose it is"
                ) from None
            return None
        except OSError as error:
            raise DirectoryError(f"{file} cannot be read: {error.strerror or error}") from error
        try:
            content = json.loads(text)
            version = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise DirectoryError(f"{file} is not a node's identity: {error!r}") from error
        if version not in (1, FORMAT):
            raise DirectoryError(f"{file}: directory format {version}, this software knows {FORMAT}")
        try:
            return _parse(content, version)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DirectoryError(f"{file} is not a node's identity: {error!r}") from error

    def close(self) -> None:
        os.close(self._lock)


def _parse(content: dict[str, Any], version: int) -> Found:
    cluster, node = content["cluster_id"], content["node_id"]
    if version == 1:
        return Found(NodeIdentity(str(cluster), int(node), {}))
    instance = content["instance"]
    if not isinstance(instance, str) or not _HEX.fullmatch(instance):
        raise ValueError(f"instance {instance!r}")
    members = {int(member): str(address) for member, address in content["members"].items()}
    wish = Wish(bool(content["wants_vote"]), int(content["replaces"]))
    return Found(NodeIdentity(str(cluster), int(node), members, instance), wish)


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
