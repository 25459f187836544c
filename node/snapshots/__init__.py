"""Snapshots: a copy of a node's database for another node that the log alone cannot bring up to date.

`store` makes copies (RocksDB checkpoints: hard links) and streams them, `fetch` pulls one from a peer into
`incoming/`, and `install` switches a node to it. In a node's directory:

    database         JSON {name, index, term}: which folder is the database; absent: `db`
    db-<index>-<term>  a database that came as a snapshot of the state behind entry `index` of `term`
    snapshots/<id>/  what is being served; empty after every start
    incoming/        what is being fetched: `manifest`, `positions`, `files/`; survives a crash

Nothing that came over the wire is in a `db-` folder before all of its files were checked against the manifest and
are durable; no `db-` folder is the database before `install.point_to` has put its name into `database`.
"""

from raftstorage.node.snapshots.api import (
    Checkpointed,
    SnapshotError,
    SnapshotObserver,
    SnapshotRefused,
    SnapshotSource,
    SnapshotTooLarge,
    SnapshotUnavailable,
    SourceFailed,
)
from raftstorage.node.snapshots.fetch import Fetched, FetchOptions, Progress, SnapshotFetcher
from raftstorage.node.snapshots.install import Installed, clean, current, point_to
from raftstorage.node.snapshots.serve import stream
from raftstorage.node.snapshots.store import ServeOptions, SnapshotStore

__all__ = [
    "Checkpointed",
    "FetchOptions",
    "Fetched",
    "Installed",
    "Progress",
    "ServeOptions",
    "SnapshotError",
    "SnapshotFetcher",
    "SnapshotObserver",
    "SnapshotRefused",
    "SnapshotSource",
    "SnapshotStore",
    "SnapshotTooLarge",
    "SnapshotUnavailable",
    "SourceFailed",
    "clean",
    "current",
    "point_to",
    "stream",
]
