"""How a cache of blobs is laid out: as ZEO's, so that a directory of its is taken over as it is."""

from __future__ import annotations

from pathlib import PurePath

import ZODB.blob
from ZODB.blob import BLOB_SUFFIX

#: What the marker file says.
NAME = "zeocache"


class CacheLayout:
    """Few directories, flat: oid modulo 997, and in each the rest of the oid with the tid."""

    directories = 997

    def oid_to_path(self, oid: bytes) -> str:
        return str(int.from_bytes(oid) % self.directories)

    def path_to_oid(self, path: str) -> bytes:
        raise ValueError(f"{path!r} is not one object's directory: a cache has none")

    def getBlobFilePath(self, oid: bytes, tid: bytes) -> str:  # noqa: N802
        rest, directory = divmod(int.from_bytes(oid), self.directories)
        return str(PurePath(str(directory), f"{rest}.{tid.hex()}{BLOB_SUFFIX}"))


ZODB.blob.LAYOUTS.setdefault(NAME, CacheLayout())
