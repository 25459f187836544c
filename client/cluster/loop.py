"""The event loop that all storages of a process share, and how threads wait for it.

grpc.aio polls for all loops of a process through one queue, so that several loops disturb each other: there is
one loop in one daemon thread. It does not survive `os.fork()` (nor does gRPC): open storages after the fork.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from raftstorage.proto import storage_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")
C = TypeVar("C", contravariant=True)

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread_id = 0
_pid = 0


def shared_loop() -> asyncio.AbstractEventLoop:
    """The process's client loop, started at first use. RuntimeError in a child of the process that started it."""
    global _loop, _thread_id, _pid
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            started: Waiter[int] = Waiter()

            def run() -> None:
                asyncio.set_event_loop(loop)
                loop.call_soon(lambda: started.set_result(threading.get_ident()))
                loop.run_forever()

            threading.Thread(target=run, name="raftstorage-client", daemon=True).start()
            _thread_id, _pid, _loop = started.wait(None), os.getpid(), loop
        elif _pid != os.getpid():
            raise RuntimeError("a storage was opened before os.fork(); open storages in the child only")
        return _loop


def in_loop_thread() -> bool:
    """True in the loop's thread, which must never wait for itself."""
    return threading.get_ident() == _thread_id


class Result(Protocol[C]):
    """Takes the outcome of one call. What comes after the first is ignored."""

    @property
    def done(self) -> bool: ...
    def set_result(self, result: C, /) -> None: ...
    def set_error(self, error: BaseException, /) -> None: ...


class Waiter(Generic[T]):
    """The result of one call: set once in the loop, awaited by one thread. Lighter than a Future."""

    __slots__ = ("_error", "_gate", "_result", "done")

    def __init__(self) -> None:
        self._gate = _thread.allocate_lock()
        self._gate.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None
        self.done = False

    def set_result(self, result: T) -> None:
        if not self.done:
            self._result = result
            self.done = True
            self._gate.release()

    def set_error(self, error: BaseException) -> None:
        if not self.done:
            self._error = error
            self.done = True
            self._gate.release()

    def wait(self, timeout: float | None) -> T:
        """The result, or raises the error; TimeoutError after `timeout` seconds. For one thread only."""
        if not self._gate.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


class Arrival:
    """The result of a call that nobody waits for: `arrived` gets its answer; an error is told in the log."""

    def __init__(self, arrived: Callable[[pb.Event], object]) -> None:
        self._arrived = arrived
        self.done = False

    def set_result(self, result: tuple[pb.Event, str]) -> None:
        self.done = True
        event, _address = result
        if event.HasField("failure"):
            log.info("nobody waits for what was refused: %s", event.failure.message)
        else:
            self._arrived(event)

    def set_error(self, error: BaseException) -> None:
        self.done = True
        log.info("nobody waits for what had no answer: %s", error)


def run_in_loop(function: Callable[[], T]) -> T:
    """Runs a short, non-blocking function in the loop's thread and returns what it returns."""
    if in_loop_thread():
        return function()
    waiter: Waiter[T] = Waiter()

    def call() -> None:
        try:
            waiter.set_result(function())
        except BaseException as error:
            waiter.set_error(error)

    shared_loop().call_soon_threadsafe(call)
    return waiter.wait(None)
