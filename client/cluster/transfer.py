"""A call with parts on its way over one stream."""

from __future__ import annotations

from collections.abc import Callable

from raftstorage.proto import storage_pb2 as pb

from .policy import Call

#: A request has one answer; None: the stream ended before it.
Callback = Callable[[pb.Event | None], None]


class Transfer:
    """Makes one request after the other: the parts, then the call itself. Whatever answers one of them first is
    the answer to all: parts are answered only when they are refused.

    `expect`: a new request id whose answer a callback gets; `forget`: nobody waits for that id any more.
    """

    def __init__(
        self,
        call: Call,
        callback: Callback | None,
        expect: Callable[[Callback | None], int],
        forget: Callable[[int], None],
    ) -> None:
        self.call = call
        self._callback = callback
        self._expect = expect
        self._forget = forget
        self._ids: list[int] = []
        self._sent = 0
        self._answered = False

    @property
    def done(self) -> bool:
        """There is nothing more to send."""
        return self._answered or self._sent > len(self.call.parts)

    def next(self) -> pb.RequestBatch:
        """The next request, of those that are left."""
        batch = pb.RequestBatch()
        number = self._sent
        self._sent += 1
        request_id = self._expect(self._answer)
        self._ids.append(request_id)
        if number == len(self.call.parts):
            batch.requests.add(id=request_id, **{self.call.kind: self.call.message})
        else:
            request = batch.requests.add(id=request_id)
            request.part.transaction_id = self.call.message.transaction_id
            request.part.number = number
            request.part.transaction = self.call.parts[number]
        return batch

    def give_up(self) -> None:
        """Nothing more is sent, and no answer heard."""
        self._answered = True
        for request_id in self._ids:
            self._forget(request_id)
        self._ids.clear()

    def lost(self) -> None:
        """The stream ended, perhaps before anything was sent."""
        self._answer(None)

    def _answer(self, event: pb.Event | None) -> None:
        if not self._answered:
            self.give_up()
            if self._callback is not None:
                self._callback(event)
