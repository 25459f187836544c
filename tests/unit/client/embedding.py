"""What the tests of `embedded:` storages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raftstorage.node.identity import DirectoryLocked, NodeDirectory
from ZODB.Connection import TransactionMetaData
from ZODB.utils import z64


def directory(place: str) -> Path:
    return Path(place.removeprefix("embedded:"))


def locked(place: str) -> bool:
    """Whether a node has the directory, in whatever process."""
    try:
        NodeDirectory.open(directory(place)).close()
    except DirectoryLocked:
        return True
    return False


def commit(storage: Any, data: bytes) -> bytes:
    """The new object's oid."""
    meta = TransactionMetaData()
    oid: bytes = storage.new_oid()
    storage.tpc_begin(meta)
    storage.store(oid, z64, data, "", meta)
    storage.tpc_vote(meta)
    storage.tpc_finish(meta)
    return oid
