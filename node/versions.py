"""What this software speaks, reads and knows, and who may work together. Pure.

Three kinds of versions. The *protocol* is a range on each side of a stream; the newest common one is used on
it. A *disk format* belongs to one file or database; one that is not known is refused before anything is
written. A *feature level* says what the replicated log may hold: a cluster's level rises, by an entry in the
log, once all members know the new one, and never falls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from typing import NamedTuple

from raftstorage.proto import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from raftstorage.proto.versions import Range, agreed, named

__all__ = ["DISK", "FEATURE_LEVEL", "PROTOCOL", "VERSIONS", "Versions", "agreed", "cluster_level", "may_join"]

PROTOCOL: Range = (MIN_PROTOCOL_VERSION, PROTOCOL_VERSION)
#: Newest level that this software knows. 1: large commits in fragments, membership in the log, snapshots. 2: undo,
#: deletes, packs, blobs.
FEATURE_LEVEL = 2
#: Oldest level of a cluster that this software can still be a member of. 0: as it was before there were levels.
OLDEST_LEVEL = 0


class DiskFormat(NamedTuple):
    """Versions of one format. What is read is written anew in the version of `writes`."""

    reads: tuple[int, ...]
    writes: int


#: By what it is the format of. The modules that read and write have the numbers, too; a test compares.
DISK = {
    "directory": DiskFormat(reads=(1, 2), writes=2),
    "log": DiskFormat(reads=(1, 2), writes=2),
    "database": DiskFormat(reads=(1, 2, 3), writes=3),
}


def _software() -> str:
    return metadata.version("raftstorage")


@dataclass(frozen=True, slots=True)
class Versions:
    """What one node says of itself. A test makes its own to be newer or older than it is.

    `protocol`: (oldest, newest). `level`, `oldest_level`: newest and oldest feature level that it can work with.
    `software`: for a person.
    """

    protocol: Range = PROTOCOL
    level: int = FEATURE_LEVEL
    oldest_level: int = OLDEST_LEVEL
    software: str = field(default_factory=_software)


#: This software's own.
VERSIONS = Versions()


def cluster_level(levels: Iterable[int]) -> int:
    """The feature level that all members know: `levels` is the newest of each, 0 where it is not known."""
    return min(levels, default=0)


def may_join(level: int, theirs: Versions, mine: Versions = VERSIONS) -> str:
    """Why a node must not become a member of a cluster with this feature level; empty: it may.

    `theirs`: the new node's versions; `mine`: those of the member that decides.
    """
    if agreed(mine.protocol, theirs.protocol) is None:
        age = "old" if theirs.protocol[1] < mine.protocol[0] else "new"
        return (
            f"its software ({theirs.software}) is too {age} for this cluster: it speaks protocol "
            f"{named(theirs.protocol)}, the cluster {named(mine.protocol)}"
        )
    if theirs.level < level:
        return (
            f"its software ({theirs.software}) is too old for this cluster: it knows feature levels up to "
            f"{theirs.level}, the cluster's is {level}"
        )
    if theirs.oldest_level > level:
        return (
            f"its software ({theirs.software}) is too new for this cluster: it knows feature levels from "
            f"{theirs.oldest_level} on, the cluster's is {level}; upgrade the members first"
        )
    return ""
