"""Packing: forgetting old revisions, and objects that nothing refers to any more."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from persistent.TimeStamp import TimeStamp
from raftstorage.proto import storage_pb2 as pb

from ..cache import RecordCache
from ..cluster import Call, Cluster
from .errors import as_zodb

log = logging.getLogger(__name__)

Z64 = b"\0" * 8
#: How often a leader is asked how far it is: soon at first, then seldom.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0
DONE = "done"


class Packing:
    """What DB.pack calls, for a storage with `cluster` and the methods of a ClientStorage."""

    cluster: Cluster
    cache: RecordCache
    pack_gc: bool
    _want_writable: Callable[[], None]
    _want_history: Callable[[], None]

    def pack(
        self,
        pack_time: float | None = None,
        referencesf: Any = None,
        gc: bool | None = None,
        *,
        wait: bool = True,
        days: float = 0,
        progress: Callable[[pb.PackState], object] | None = None,
    ) -> None:
        """Forgets all that was not current any more `days` before `pack_time` (seconds since 1970; None: now), on
        all nodes.

        `gc`: objects too that nothing refers to; None: as the storage was opened. The leader finds them itself,
        so `referencesf` is not called. `wait`: until it is done; otherwise until the leader has accepted it. It
        goes on behind a failover, and when this client has gone. `progress` is called with each answer about it.
        """
        self._want_writable()
        self._want_history()
        until = (time.time() if pack_time is None else pack_time) - days * 86_400
        with as_zodb():
            last = self.cluster.read_point()
        if last == Z64:
            return  # there is nothing
        call = Call(
            "pack",
            pb.Pack(
                pack_id=os.urandom(16),
                tid=min(_tid_of(until), last),  # a time to come means now
                collect=self.pack_gc if gc is None else gc,
            ),
        )
        pause = FIRST_PAUSE
        wake = threading.Event()
        while True:
            with as_zodb():
                event, _ = self.cluster.lead(call)  # the same id again asks how far it is, also another leader
            if progress is not None:
                progress(event.pack)
            if not wait:
                return
            if event.pack.phase == DONE:
                break
            wake.wait(pause)
            pause = min(LONGEST_PAUSE, pause * 1.5)
        if event.pack.problem:
            log.warning("packed, but %s", event.pack.problem)
        self.cluster.catch_up()
        self.cache.clear()  # nobody here shall see what was removed for this client

    def lastPack(self) -> bytes:  # noqa: N802
        """The tid up to which the database was packed last; zeros: never (ZODB#322)."""
        with as_zodb():
            size = self.cluster.read(Call("size", pb.Size()), self.cluster.feed.last, leader_first=True).size
        return size.packed or Z64


def _tid_of(seconds: float) -> bytes:
    raw: bytes = TimeStamp(*time.gmtime(seconds)[:5], seconds % 60).raw()
    return raw
