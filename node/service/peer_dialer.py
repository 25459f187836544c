"""Dialling one peer again and again, as long as there should be a link and is none."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
from raftstorage.node.service.streams import HELLO_SECONDS, give_up
from raftstorage.proto import raft_pb2_grpc

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.05, 0.5)
#: After a hello was refused, which only a person can mend.
REFUSED_SECONDS = (1.0, 2.0)
#: One entry can be a whole transaction, which the options bound below this.
MAX_MESSAGE_BYTES = 512 << 20

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # How long one attempt to connect may take, too: two round trips, and the other side's turn on a busy machine.
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
    # A peer whose machine vanished says nothing: two followers have nothing else to find out with.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class Dialer:
    """Dials `peer` at `address`: an eager one whenever there is no link, another one when it was asked to as well.

    `attempt` dials once: it shakes hands, says so by `linked`, and returns when the link is over; False: a
    hello was refused. It sees to all errors that streams have by nature.
    """

    def __init__(
        self,
        peer: int,
        address: str,
        attempt: Callable[[Dialer, raft_pb2_grpc.PeersStub], Coroutine[Any, Any, bool]],
        *,
        eager: bool,
    ) -> None:
        self.peer = peer
        self.address = address
        self._attempt = attempt
        self._eager = eager
        self._due = asyncio.Event()
        self._carries = False  # a link of its own
        self._retired = False
        self._trial: asyncio.Task[bool] | None = None
        self._task: asyncio.Task[None] | None = None
        if eager:
            self._due.set()

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(), name=f"raftstorage-dial-{self.peer}")
        return self._task

    @property
    def trying(self) -> bool:
        """An attempt is under way, and nobody knows yet what comes of it."""
        return self._trial is not None and not self._carries

    def want(self) -> None:
        """There is something to send, and no link."""
        self._due.set()

    def linked(self, *, own: bool) -> None:
        """There is a link: by an attempt of this dialer (`own`), or because the peer dialled."""
        self._due.clear()
        if own:
            self._carries = True
        elif not self._eager and self._trial is not None and not self._carries:
            # An eager one's link would be the better of the two, and may stand on the other side already.
            self._trial.cancel()

    def unlinked(self) -> None:
        """The link is gone."""
        if self._eager:
            self._due.set()

    def retire(self) -> None:
        """Dials no more. A link that it carries goes on until it is over."""
        self._retired = True
        if self._task is not None and not self._carries:
            self._task.cancel()

    async def _run(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        async with grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS) as channel:
            stub = raft_pb2_grpc.PeersStub(channel)  # type: ignore[no-untyped-call]
            while True:
                await self._due.wait()
                if not self._eager:
                    self._due.clear()
                begin = loop.time()
                fits = await self._try(stub)
                if self._retired:
                    return
                if loop.time() - begin > HELLO_SECONDS:
                    failures = 0
                low, high = BACKOFF_SECONDS if fits else REFUSED_SECONDS
                await asyncio.sleep(random.uniform(low, min(high, 2 * low * 2**failures)))
                failures = min(failures + 1, 8)

    async def _try(self, stub: raft_pb2_grpc.PeersStub) -> bool:
        trial = self._trial = asyncio.create_task(self._attempt(self, stub))
        try:
            await asyncio.wait({trial})
        except asyncio.CancelledError:
            await give_up(trial)
            raise
        finally:
            self._trial = None
            self._carries = False
        if trial.cancelled():
            return True
        if (error := trial.exception()) is not None:
            # A dialer that ended would cut two nodes off from each other for good.
            log.error("the stream to peer %d ended by an error; dialling again", self.peer, exc_info=error)
            return True
        return trial.result()


def report(task: asyncio.Task[None]) -> None:
    """A done callback for a dialer's task."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a dialer ended: this is a bug", exc_info=error)
