"""Reads: answered from the engine at once, or when it has applied the tid that the client asks for."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Callable

from raftstorage.node.admission import Amount, Tally
from raftstorage.node.engine.api import Engine, EngineError, Packed
from raftstorage.node.failures import failed
from raftstorage.node.service import long_reads
from raftstorage.node.service.long_reads import Steps, missing, packed_away
from raftstorage.proto import storage_pb2 as pb

log = logging.getLogger(__name__)

Reply = Callable[[pb.Event], None]

#: Calls that this module answers.
CALLS = frozenset(
    {
        "load_before", "load_serial", "load_many", "load_blob", "history", "read_transactions", "transaction_log",
        "current_records", "size",
    }
)  # fmt: skip
#: How long a replica may take to catch up with a read, in seconds.
PATIENCE = 0.2
#: Reads that may wait for that at once, and the bytes of their requests.
MAX_PARKED = Amount(50_000, 32 << 20)
BLOB_BYTES = 256 << 10


class _Parked:
    __slots__ = ("at_least", "call", "deadline", "order", "reply", "request", "size")

    def __init__(
        self, at_least: bytes, order: int, deadline: float, request: pb.Request, call: str, reply: Reply
    ) -> None:
        self.at_least = at_least
        self.order = order
        self.deadline = deadline
        self.request: pb.Request | None = request  # None: answered
        self.call = call
        self.reply = reply
        self.size = request.ByteSize()

    def __lt__(self, other: _Parked) -> bool:
        return (self.at_least, self.order) < (other.at_least, other.order)


class Reads:
    """Used from the loop. Every read gets one reply; an unexpected error is logged and answered INTERNAL.

    `read` and `applied` raise EngineError: what the engine cannot read is damaged. `fail` gets one that comes
    later.
    """

    def __init__(self, engine: Engine, fail: Callable[[BaseException], object]) -> None:
        self._engine = engine
        self._fail = fail
        self._order = itertools.count()
        self._heap: list[_Parked] = []
        self._by_deadline: deque[_Parked] = deque()
        self._parked = Tally()  # all in _by_deadline, answered or not

    @property
    def parked(self) -> Amount:
        return self._parked.amount()

    def read(self, request: pb.Request, call: str, now: float, reply: Reply) -> asyncio.Future[None] | None:
        """`call`: the request's oneof, one of CALLS; `now`: the loop's time in seconds.

        For one that takes several turns of the loop, returns what is done once it is answered.
        """
        at_least = b"" if call == "size" else getattr(request, call).at_least
        if at_least <= self._engine.last_tid:
            return self._serve(request, call, reply)
        if self._parked.amount().reaches(MAX_PARKED):
            reply(failed(pb.BUSY, "too many reads wait for this replica to catch up"))
        else:
            parked = _Parked(at_least, next(self._order), now + PATIENCE, request, call, reply)
            heapq.heappush(self._heap, parked)
            self._by_deadline.append(parked)
            self._parked.add(parked.size)
        return None

    def applied(self) -> None:
        """Answers what the engine has caught up with."""
        last = self._engine.last_tid
        while self._heap and self._heap[0].at_least <= last:
            parked = heapq.heappop(self._heap)
            if parked.request is not None:
                request, parked.request = parked.request, None
                self._serve(request, parked.call, parked.reply)

    def tick(self, now: float) -> None:
        """Gives up what waited too long."""
        given_up = False
        while self._by_deadline and (self._by_deadline[0].request is None or self._by_deadline[0].deadline <= now):
            parked = self._by_deadline.popleft()
            self._parked.remove(parked.size)
            if parked.request is not None:
                parked.request = None
                given_up = True
                parked.reply(self._lagging())
        if given_up:
            self._heap = [parked for parked in self._heap if parked.request is not None]
            heapq.heapify(self._heap)

    def _lagging(self) -> pb.Event:
        return failed(
            pb.LAGGING, f"this replica has applied {self._engine.last_tid.hex()} and not yet the tid asked for"
        )

    def _serve(self, request: pb.Request, call: str, reply: Reply) -> asyncio.Future[None] | None:
        try:
            answer = self._answer(request, call)
        except EngineError:
            raise
        except Exception:
            answer = _internal(call)
        if isinstance(answer, pb.Event):
            reply(answer)
            return None
        if self._is_over(answer, call, reply):
            return None
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        loop.call_soon(self._go_on, answer, call, reply, over)
        return over

    def _is_over(self, steps: Steps, call: str, reply: Reply) -> bool:
        """One more step; True when it was the last and the read is answered."""
        try:
            next(steps)
        except StopIteration as end:
            reply(end.value)
        except EngineError:
            raise
        except Exception:
            reply(_internal(call))
        else:
            return False
        return True

    def _go_on(self, steps: Steps, call: str, reply: Reply, over: asyncio.Future[None]) -> None:
        try:
            if not self._is_over(steps, call, reply):
                over.get_loop().call_soon(self._go_on, steps, call, reply, over)
            elif not over.done():  # who waits for it may be gone
                over.set_result(None)
        except EngineError as error:
            self._fail(error)

    def _answer(self, request: pb.Request, call: str) -> pb.Event | Steps:
        engine = self._engine
        match call:
            case "load_before":
                oid = request.load_before.oid
                try:
                    revision = engine.load_before(oid, request.load_before.before)
                except KeyError:
                    return missing(oid)
                except Packed as error:
                    return packed_away(error, oid)
                if revision is None:
                    return pb.Event(record=pb.Record())
                if revision.data is None:
                    return failed(pb.NO_SUCH_OBJECT, "the object was deleted", oid)
                return pb.Event(
                    record=pb.Record(
                        data=revision.data, serial=revision.serial, next_serial=revision.next_serial or b""
                    )
                )
            case "load_serial":
                wanted = request.load_serial
                try:
                    data = engine.load_serial(wanted.oid, wanted.serial)
                except KeyError:
                    return missing(wanted.oid)
                return pb.Event(record=pb.Record(data=data, serial=wanted.serial))
            case "load_blob":
                return self._blob(request.load_blob)
            case "history":
                return long_reads.history(engine, request.history)
            case "read_transactions":
                return long_reads.transactions(engine, request.read_transactions)
            case "transaction_log":
                return long_reads.transaction_log(engine, request.transaction_log)
            case "current_records":
                return long_reads.current_records(engine, request.current_records)
            case "load_many":
                return long_reads.load_many(engine, request.load_many)
        size, objects = engine.approximate_size()
        return pb.Event(size=pb.SizeReply(bytes=size, objects=objects, packed=engine.packed))

    def _blob(self, asked: pb.LoadBlob) -> pb.Event:
        try:
            data, size, crc32c = self._engine.load_blob(
                asked.oid, asked.serial, asked.offset, asked.max_bytes or BLOB_BYTES
            )
        except KeyError:
            return missing(asked.oid)
        return pb.Event(blob_data=pb.BlobData(data=data, size=size, crc32c=crc32c))


def _internal(call: str) -> pb.Event:
    """Where an exception is being handled."""
    log.exception("a read failed", extra={"call": call})
    return failed(pb.INTERNAL, "the node could not read; its log says why")
