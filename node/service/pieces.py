"""What a transaction of very many objects changed, told in pieces that are made when a session sends them."""

from __future__ import annotations

from collections import deque
from itertools import chain, islice

from raftstorage.node.engine.api import Oids
from raftstorage.proto import storage_pb2 as pb

#: Pages of oids in a piece: about a millisecond's worth of making and sending.
PIECE_PAGES = 8
#: Pieces that are kept: sessions that send about at the same time share them.
KEPT = 4


class Pieces:
    """The Invalidations of one transaction; one object for all sessions. Nothing of it is in memory but what is
    being sent, and a session that is slow holds up nobody."""

    def __init__(self, tid: bytes, oids: Oids) -> None:
        self._tid = tid
        self._oids = oids
        self._kept: deque[tuple[int, pb.Event]] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return -(-self._oids.page_count // PIECE_PAGES)

    def __getitem__(self, number: int) -> pb.Event:
        """The piece of that number, to be left as it is. EngineError."""
        for kept, event in self._kept:
            if kept == number:
                return event
        event = pb.Event()
        told = event.invalidations.transactions.add(tid=self._tid, more=number < len(self) - 1)
        told.oids.extend(self._of(number))
        self._kept.append((number, event))
        return event

    def _of(self, number: int) -> chain[bytes]:
        return chain.from_iterable(islice(self._oids.pages(number * PIECE_PAGES), PIECE_PAGES))


class Sending:
    """How far one session has sent `pieces`. `whole`: its client knows pages only as one event."""

    def __init__(self, pieces: Pieces, whole: bool) -> None:
        self._pieces = pieces
        self._next = 0
        self._whole = pb.Event() if whole else None

    @property
    def done(self) -> bool:
        return self._next == len(self._pieces)

    def take(self) -> pb.Event | None:
        """What is to be sent next; None: not made yet, ask again in another turn of the loop. EngineError."""
        piece = self._pieces[self._next]
        self._next += 1
        if self._whole is None:
            return piece
        (part,) = piece.invalidations.transactions
        if not self._whole.invalidations.transactions:
            self._whole.invalidations.transactions.add(tid=part.tid)
        self._whole.invalidations.transactions[0].oids.extend(part.oids)
        return self._whole if self.done else None
