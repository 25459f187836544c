"""Drives one flow of `policy` in the loop: sends what it wants, tells it what happens, hands its result on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from raftstorage.proto import storage_pb2 as pb

from .errors import CommitOutcomeUnknown
from .loop import Result
from .policy import Answer, Broken, Call, Flow, Happened, Send, Signal

if TYPE_CHECKING:
    from .connection import Connection


class Running:
    """A flow under way. All methods are for the loop's thread."""

    __slots__ = (
        "_busy",
        "_committing",
        "_connections",
        "_done",
        "_flow",
        "_loop",
        "_timer",
        "_transferring",
        "_waiter",
        "_waiting",
        "answered_by",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Mapping[str, Connection],
        flow: Flow,
        waiter: Result[tuple[pb.Event, str]],
        done: Callable[[Running], None],
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._flow = flow
        self._waiter = waiter
        self._done = done
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._committing = False  # a commit was sent: it may happen without us
        self._waiting: list[Happened] = []
        self._transferring: tuple[Connection, Call] | None = None
        self.answered_by = ""

    def start(self) -> None:
        self._advance(None)

    def tell(self, happened: Happened) -> None:
        """Something happened. Ignored once the flow is through."""
        if self._waiter.done:
            return
        if self._busy:
            self._waiting.append(happened)
            return
        if isinstance(happened, Answer):
            self.answered_by = happened.address
        self._advance(happened)

    def fail(self, error: BaseException) -> None:
        """Ends the flow. A commit that was sent gets CommitOutcomeUnknown for it."""
        if not self._waiter.done:
            self._flow.close()
            self._finish()
            if self._committing:
                error = CommitOutcomeUnknown(f"the commit was sent, and what became of it is not known: {error}")
            self._waiter.set_error(error)

    def _advance(self, happened: Happened | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._busy = True
        try:
            step = next(self._flow) if happened is None else self._flow.send(happened)
        except StopIteration as stop:
            self._finish()
            self._waiter.set_result((stop.value, self.answered_by))
            return
        except Exception as error:
            self._finish()
            self._waiter.set_error(error)
            return
        self._timer = self._loop.call_later(step.wake, self.tell, Signal.WOKE)
        if step.send is not None:
            self._send(step.send)
        self._busy = False
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                self.tell(one)

    def _send(self, send: Send) -> None:
        address, attempt = send.address, send.attempt
        self._withdraw()
        self._committing = self._committing or send.call.kind in ("commit", "finish")

        def callback(event: pb.Event | None) -> None:
            self.tell(Broken(address, attempt) if event is None else Answer(address, event, attempt))

        connection = self._connections.get(address)
        if connection is None or not connection.send(send.call, callback):
            self._loop.call_soon(self.tell, Broken(address, attempt))
        elif send.call.parts:
            self._transferring = (connection, send.call)

    def _withdraw(self) -> None:
        """Whoever is asked next, or nobody any more: the rest of a large call to the one before is not sent."""
        if self._transferring is not None:
            connection, call = self._transferring
            self._transferring = None
            connection.withdraw(call)

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._withdraw()
        self._done(self)
