"""A soak's reader: reads what the writers store, at a steady pace, and says what it saw that cannot be.

`python -m raftstorage.ops.drills.reader ADDRESSES NUMBER WAIT_TIMEOUT`. One JSON line an event: `ready`; `read`
(transactions since the last one, each second); `retry` (error); `wrong` (what). It ends when its standard input is
closed. In one transaction a writer's count and its newest commits must belong together, and from one transaction
to the next nothing may go back.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any

from raftstorage.ops.drills.writer import say

PAUSE_SECONDS = 0.02
#: How many of a writer's commits are followed back.
DEPTH = 5


def main(addresses: str, number: int, wait_timeout: float) -> None:
    import ZODB
    from raftstorage.client import ClientStorage

    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    storage = ClientStorage(addresses, wait_timeout=wait_timeout, read_only=True)
    with contextlib.closing(ZODB.DB(storage)) as db:
        say(event="ready")
        _read(db, stop)


def _read(db: Any, stop: threading.Event) -> None:
    from transaction.interfaces import TransientError

    newest: dict[str, int] = {}
    done, told = 0, time.monotonic()
    while not stop.wait(PAUSE_SECONDS):
        try:
            with db.transaction() as connection:
                _look(connection, newest)
            done += 1
        except TransientError as error:
            say(event="retry", error=f"{type(error).__name__}: {error}"[:300])
        if time.monotonic() - told >= 1:
            say(event="read", count=done)
            done, told = 0, time.monotonic()
    say(event="read", count=done)


def _look(connection: Any, newest: dict[str, int]) -> None:
    root = connection.root()
    for name in [name for name in root if name.startswith("drill-")]:
        slot = root[name]
        if slot.count < newest.get(name, 0):
            say(event="wrong", what=f"{name} went back from {newest[name]} commits to {slot.count}")
        newest[name] = slot.count
        mark, length = slot.latest, 0
        while mark is not None and length < DEPTH:
            mark.uid  # noqa: B018 - load it
            mark, length = mark.previous, length + 1
        if length < min(slot.count, DEPTH):
            say(event="wrong", what=f"{name} has {slot.count} commits, but a chain of {length}")
    connection.cacheMinimize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
