"""New object ids, taken from the cluster in ranges that nobody else gets."""

from __future__ import annotations

import threading

from raftstorage.proto import storage_pb2 as pb

from ..cluster import Call, Cluster

FIRST_RANGE = 64
LARGEST_RANGE = 4096


class Oids:
    """Ranges grow with use: a small client wastes few oids, a large import asks seldom."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._next = 0
        self._end = 0
        self._size = FIRST_RANGE

    def new(self) -> bytes:
        """An oid that was never given out before. Raises the cluster layer's errors."""
        with self._lock:
            if self._next == self._end:
                event, _ = self._cluster.lead(Call("allocate_oids", pb.AllocateOids(count=self._size)))
                self._next = int.from_bytes(event.oids.first)
                self._end = self._next + event.oids.count
                self._size = min(LARGEST_RANGE, self._size * 2)
            oid = self._next
            self._next += 1
        return oid.to_bytes(8)
