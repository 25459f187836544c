"""A drill's writer: commits one unique id after another and says on standard output what was acknowledged.

`python -m raftstorage.ops.drills.writer ADDRESSES NUMBER WAIT_TIMEOUT`. One JSON line an event: `ready`; `ack`
(uid, tid, begun, acknowledged: seconds of the monotonic clock); `retry` (uid, error). It ends when its standard
input is closed. A commit that failed with an error that transaction.attempts() would try again is tried again
with the same unique id, as an application does: an outcome reported as failure that happened shows as a double.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import uuid
from typing import Any

MARK = "raftstorage-drill:"
#: After so many commits a writer leaves garbage behind.
DRAFT_EVERY = 10


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main(addresses: str, number: int, wait_timeout: float) -> None:
    import ZODB
    from raftstorage.client import ClientStorage

    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    with contextlib.closing(ZODB.DB(ClientStorage(addresses, wait_timeout=wait_timeout))) as db:
        _write(db, number, stop)


def _write(db: Any, number: int, stop: threading.Event) -> None:
    import transaction

    manager = transaction.TransactionManager(explicit=True)
    manager.begin()
    with contextlib.closing(db.open(manager)) as connection:
        _commit_marks(connection, number, stop)


def _commit_marks(connection: Any, number: int, stop: threading.Event) -> None:
    from raftstorage.client import CommitOutcomeUnknown
    from raftstorage.ops.drills.objects import Draft, Mark
    from transaction.interfaces import TransientError

    manager = connection.transaction_manager
    slot = connection.root()[f"drill-{number}"]
    slot.count  # noqa: B018 - load it: from here on only commits are timed
    manager.abort()
    say(event="ready")
    while not stop.is_set():
        uid = uuid.uuid4().hex
        begun = time.monotonic()
        while True:
            try:
                manager.begin()
                slot.latest = Mark(MARK + uid, slot.latest)
                slot.count += 1
                if slot.count % DRAFT_EVERY == 0:
                    slot.draft = Draft(uid)
                manager.commit()
                break
            except (TransientError, CommitOutcomeUnknown) as error:
                manager.abort()
                say(event="retry", uid=uid, error=f"{type(error).__name__}: {error}"[:300])
                if isinstance(error, CommitOutcomeUnknown) and _committed(connection.db().storage, error, stop):
                    manager.begin()
                    break
                if stop.is_set():
                    return
        say(event="ack", uid=uid, tid=slot._p_serial.hex(), begun=begun, acknowledged=time.monotonic())
        slot.latest._p_deactivate()


def _committed(storage: Any, unknown: Exception, stop: threading.Event) -> bool:
    """Asks until it is known what became of a commit; False also when there is no time left to."""
    from raftstorage.client import CommitOutcomeUnknown
    from transaction.interfaces import TransientError

    while not stop.is_set():
        try:
            storage.commit_outcome(unknown)
        except CommitOutcomeUnknown:
            continue  # it asked for as long as a storage does
        except TransientError:
            return False
        return True
    return False


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
