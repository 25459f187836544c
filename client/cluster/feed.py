"""Invalidations on their way from the replicas' streams to the storage's user, in tid order.

The loop accepts, other threads deliver: `sink(tid, oids)` is called and only then does `last` move, both under
`lock`, so that whoever reads `last` under the lock sees every invalidation up to it delivered. A thread that
finishes a transaction of its own holds that transaction's invalidation back until it has called its own callback.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from .errors import ClientDisconnected, ClusterError

log = logging.getLogger(__name__)

Z64 = b"\0" * 8
Sink = Callable[[bytes, Sequence[bytes]], None]


class DeliveryFailed(ClusterError):
    """The storage's user raised when it was told of a change: what it caches cannot be trusted any more."""


class Feed:
    """All public methods but `accept` are for any thread but the loop's; `accept` is for the loop's only."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.accepted = Z64
        self.last = Z64
        self.sink: Sink | None = None
        #: Called for every change, before the sink, and for those of a transaction that is being finished here.
        self.on_change: Sink = lambda tid, oids: None
        #: Called where some changes were left out, between those before and behind: any object may be another one.
        self.on_missed: Callable[[], object] = lambda: None
        self._queue: deque[tuple[bytes, Sequence[bytes] | None]] = deque()  # None: some behind it are left out
        self._moved = threading.Condition(self.lock)
        self._wake = threading.Event()
        self._held_oids: frozenset[bytes] | None = None
        self._held_tid: bytes | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, tid: bytes, name: str) -> None:
        """Begins at `tid`: everything up to it is taken as delivered."""
        self.last = tid
        self._thread = threading.Thread(target=self._run, name=f"{name}-invalidations", daemon=True)
        self._thread.start()

    def accept(self, tid: bytes, oids: Sequence[bytes]) -> None:
        """Takes the next change from any stream; those that another stream brought already are passed over."""
        if tid > self.accepted:
            self._queue.append((tid, oids))
            self.accepted = tid
            if not self._held(tid, oids):
                self._wake.set()

    def miss(self) -> None:
        """Of the changes that come now, some are left out: a pack took them. In the loop, as `accept`."""
        self._queue.append((self.accepted, None))
        self._wake.set()

    def last_transaction(self) -> bytes:
        """The newest tid whose invalidations are delivered, after delivering what has come so far."""
        with self.lock:
            self._pump()
            return self.last

    def wait_for(self, tid: bytes, timeout: float) -> None:
        """Returns once everything up to `tid` is delivered. ClientDisconnected after `timeout` seconds."""
        with self.lock:
            self._pump()
            if not self._moved.wait_for(lambda: self.last >= tid or self._closed, timeout) or self.last < tid:
                raise ClientDisconnected("the changes up to a known transaction did not arrive in time")

    def hold(self, oids: Sequence[bytes]) -> None:
        """A transaction that changes exactly `oids` is being finished: its own invalidation, recognized by its
        oids as its tid is not known yet, waits for `finish`. Everything else goes on."""
        with self.lock:
            self._held_oids = frozenset(oids)

    def release(self) -> None:
        """The transaction that was held was not committed (or nobody knows): nothing is held back any more."""
        with self.lock:
            self._held_oids = self._held_tid = None
            if self._queue:  # what is accepted from here on sees that nothing is held, and wakes the thread itself
                self._wake.set()

    def finish(self, tid: bytes, callback: Callable[[bytes], object], timeout: float) -> None:
        """The held transaction has `tid`: delivers all earlier ones, calls `callback(tid)`, moves `last`.

        Nobody sees `tid` before the callback is through. ClientDisconnected when the changes before it did not
        arrive in `timeout` seconds (the callback is called nonetheless: the transaction is committed).
        """
        try:
            with self.lock:
                self._held_tid = tid
                self._pump()
                arrived = self.accepted >= tid
                if not arrived:
                    self._held_oids = None
                    arrived = self._moved.wait_for(lambda: self.accepted >= tid or self._closed, timeout)
                    self._pump()
                callback(tid)
                if not arrived:
                    raise ClientDisconnected("committed, but the changes before it did not arrive in time")
                while self._queue and self._queue[0][0] <= tid:
                    changed, oids = self._queue.popleft()
                    if oids is None:
                        self.on_missed()
                    else:
                        self.on_change(changed, oids)
                if not self._closed:
                    self.last = max(self.last, tid)
                self._moved.notify_all()
        finally:
            self.release()

    def close(self) -> None:
        """Delivers nothing more; whoever waits is woken."""
        with self.lock:
            self._closed = True
            self.sink = None
            self._queue.clear()
            self._moved.notify_all()
        self._wake.set()

    def _held(self, tid: bytes, oids: Sequence[bytes]) -> bool:
        own_tid, own_oids = self._held_tid, self._held_oids  # the loop looks without the lock
        if own_tid is not None:
            return tid >= own_tid
        return own_oids is not None and len(own_oids) == len(oids) and own_oids == frozenset(oids)

    def _pump(self) -> None:
        if self._error is not None:
            raise DeliveryFailed("an invalidation could not be delivered; reopen the storage") from self._error
        moved = False
        while self._queue and not self._closed:
            tid, oids = self._queue[0]
            if oids is not None and self._held(tid, oids):
                break
            try:
                if oids is None:
                    self.on_missed()
                elif tid > self.last:
                    self.on_change(tid, oids)
                    if self.sink is not None:
                        self.sink(tid, oids)
            except BaseException as error:
                self._error = error
                raise
            self._queue.popleft()
            self.last = max(self.last, tid)
            moved = True
        if moved or self._held_tid is not None:
            self._moved.notify_all()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            try:
                with self.lock:
                    self._pump()
            except BaseException:  # kept: every later call raises it to whoever depends on this
                log.exception("an invalidation could not be delivered")
                return
