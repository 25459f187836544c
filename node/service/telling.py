"""Tells sessions what transactions changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raftstorage.node.engine.api import Changed
from raftstorage.node.service.pieces import Pieces
from raftstorage.node.service.session import ClientSession
from raftstorage.proto import storage_pb2 as pb


def tell(changes: Sequence[Changed], sessions: Collection[ClientSession]) -> None:
    """Puts invalidations of `changes`, by rising tids, on every session; what they share is made once."""
    small: list[pb.Invalidation] = []

    def put_small() -> None:
        if small:
            event = pb.Event(invalidations=pb.Invalidations(transactions=small))
            size = event.ByteSize()
            for session in sessions:
                session.put(event, size)
            small.clear()

    for tid, oids in changes:
        if isinstance(oids, tuple):
            small.append(pb.Invalidation(tid=tid, oids=oids))
            continue
        put_small()
        pieces = Pieces(tid, oids)
        for session in sessions:
            session.put_pieces(pieces)
    put_small()
