"""What the two sides of a snapshot's transfer agree on, and what they need of the outside."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Protocol

from raftstorage.proto import raft_pb2 as pb

#: Of SnapshotManifest.format: the files of a RocksDB folder.
FORMAT = 1
#: A snapshot's data comes in pieces of at most this many bytes.
LARGEST_CHUNK = 1 << 20
#: A manifest beyond these makes no sense: 100,000 files are some 6 TB of RocksDB's usual 64 MiB each.
MOST_FILES = 100_000
LARGEST_MEMBERSHIP = 1 << 20
LARGEST_NUMBER = (1 << 63) - 1

_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_LONGEST_NAME = 128


class SnapshotError(Exception):
    """Of this package; the message is for a person."""


class SnapshotRefused(SnapshotError):
    """What was offered is not taken: it makes no sense, or it is not wanted. Nothing was written."""


class SnapshotTooLarge(SnapshotRefused):
    """The disk has no room for it."""


class SourceFailed(SnapshotError):
    """A source's stream broke. `final`: to ask this source again is of no use."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class SnapshotUnavailable(SnapshotError):
    """The source did not give the snapshot, after all attempts or for good; the message has the last reason."""


class Checkpointed(Protocol):
    """What a checkpoint holds: the state behind entry `index` of `term`, and the membership as of it."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def membership(self) -> bytes: ...


class SnapshotSource(Protocol):
    """Where a snapshot is pulled from: a peer over gRPC, or what a test or the simulator puts there."""

    def open(self, request: pb.SnapshotRequest) -> AsyncGenerator[pb.SnapshotChunk, None]:
        """One stream, closed by whoever reads it. SourceFailed. The source adds the hello to `request`."""


class SnapshotObserver(Protocol):
    """What is measured; `service.metrics.NodeMetrics` is one. All on the loop; seconds and bytes."""

    def snapshot_sent(self, count: int) -> None: ...
    def snapshot_received(self, count: int) -> None: ...
    def snapshot_done(self, what: str, seconds: float) -> None:
        """`what`: "made", "served" (to its end), "fetched", "installed"."""

    def snapshot_failed(self, what: str) -> None:
        """`what`: "make", "serve", "fetch", "install"."""

    def snapshot_progress(self, done: int, total: int) -> None:
        """Of what is being fetched; 0, 0 when nothing is."""


class Unobserved:
    """A SnapshotObserver that nobody looks at."""

    def snapshot_sent(self, count: int) -> None: ...
    def snapshot_received(self, count: int) -> None: ...
    def snapshot_done(self, what: str, seconds: float) -> None: ...
    def snapshot_failed(self, what: str) -> None: ...
    def snapshot_progress(self, done: int, total: int) -> None: ...


def is_file_name(name: str) -> bool:
    """Whether `name` names a file within a folder and nothing else, on any system."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


def check_manifest(manifest: pb.SnapshotManifest) -> None:
    """SnapshotRefused when nothing could be made of what `manifest` announces."""
    if manifest.format != FORMAT:
        raise SnapshotRefused(f"the snapshot has format {manifest.format}; this version knows format {FORMAT}")
    if not _ID.fullmatch(manifest.snapshot_id):
        raise SnapshotRefused(f"{manifest.snapshot_id[:64]!r} is not a snapshot's id")
    for what, number in (("index", manifest.index), ("term", manifest.term)):
        if not 1 <= number <= LARGEST_NUMBER:
            raise SnapshotRefused(f"{number} is no {what} that a snapshot can have")
    if len(manifest.membership) > LARGEST_MEMBERSHIP:
        raise SnapshotRefused(f"the snapshot's membership has {len(manifest.membership)} bytes")
    if not 1 <= len(manifest.files) <= MOST_FILES:
        raise SnapshotRefused(f"a snapshot of {len(manifest.files)} files makes no sense")
    names = set()
    for file in manifest.files:
        if not is_file_name(file.name):
            raise SnapshotRefused(f"{file.name[:64]!r} is not a name that a snapshot's file can have")
        if file.size > LARGEST_NUMBER or (file.size == 0 and file.crc32c != 0):
            raise SnapshotRefused(f"{file.name} cannot have {file.size} bytes with checksum {file.crc32c:08x}")
        names.add(file.name)
    if len(names) < len(manifest.files):
        raise SnapshotRefused("the snapshot has two files of one name")


def total_bytes(manifest: pb.SnapshotManifest) -> int:
    return sum(file.size for file in manifest.files)
