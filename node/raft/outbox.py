"""What leaves the core: messages that may go at once, and writes with the messages that wait for them."""

from __future__ import annotations

from collections import deque

from .log import RaftLog
from .types import HardState, Message, MessageType, Persist


class Outbox:
    """`durable` is the hard state that is on disk. A write covers everything that came before it was taken."""

    def __init__(self, durable: HardState) -> None:
        self.durable = durable
        self._queued = durable  # the newest that a write was made for
        self._send: list[Message] = []
        self._after_write: list[Message] = []
        self._tickets: deque[tuple[int, HardState]] = deque()
        self._last_ticket = 0
        self.silent_ticks = 0  # since a write was under way and none ended

    def tick(self) -> None:
        self.silent_ticks = self.silent_ticks + 1 if self._tickets else 0

    def put(self, message: Message) -> None:
        """Queues a message that depends on no write."""
        self._send.append(message)

    def put_after_write(self, message: Message) -> None:
        """Queues a message that may leave only when all that this node remembers now is durable."""
        self._after_write.append(message)

    def drop_acknowledgements(self) -> None:
        """Forgets to acknowledge what no write was made for: the log is about to be replaced."""
        self._after_write = [
            message
            for message in self._after_write
            if message.type is not MessageType.APPEND_REPLY or message.reject
        ]

    def has_any(self, state: HardState, log: RaftLog) -> bool:
        return bool(self._send or self._after_write or state != self._queued or log.has_unwritten)

    def take(self, state: HardState, log: RaftLog) -> tuple[tuple[Message, ...], tuple[Persist, ...]]:
        """Messages to send now, and at most one write; `state` and `log` are the core's."""
        persist: tuple[Persist, ...] = ()
        changed = state if state != self._queued else None
        if changed is not None or log.has_unwritten or (self._after_write and self._tickets):
            # Without anything to write it is a place in the queue, behind the writes that the messages wait for.
            self._last_ticket += 1
            base = log.take_base()
            entries = log.take_unwritten(self._last_ticket)
            self._tickets.append((self._last_ticket, state))
            self._queued = state
            persist = (Persist(self._last_ticket, changed, entries, tuple(self._after_write), base),)
        else:
            self._send += self._after_write
        self._after_write.clear()
        send = tuple(self._send)
        self._send.clear()
        return send, persist

    def written(self, ticket: int) -> None:
        """All writes up to `ticket` are durable."""
        self.silent_ticks = 0
        while self._tickets and self._tickets[0][0] <= ticket:
            self.durable = self._tickets.popleft()[1]
