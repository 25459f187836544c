"""Read barriers under way: a task for each, bounded."""

from __future__ import annotations

import asyncio
import logging

from raftstorage.node.admission import Amount
from raftstorage.node.driver import Driver, LeadershipLost
from raftstorage.node.failures import failed
from raftstorage.node.service.replies import Answer
from raftstorage.node.service.session import ClientSession
from raftstorage.proto import storage_pb2 as pb

log = logging.getLogger(__name__)

#: Of all sessions, and of one.
MAX_BARRIERS = 10_000
MAX_OF_SESSION = 512
#: About what one takes, in bytes.
SIZE = 4096


class Barriers:
    """Used from the loop."""

    bound = Amount(MAX_BARRIERS, MAX_BARRIERS * SIZE)

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._count = 0

    @property
    def amount(self) -> Amount:
        return Amount(self._count, self._count * SIZE)

    def ask(self, session: ClientSession, answer: Answer) -> None:
        if self._count >= MAX_BARRIERS or len(session.tasks) >= MAX_OF_SESSION:
            answer(
                failed(pb.BUSY, f"{len(session.tasks)} barriers of this session, {self._count} in all are waiting")
            )
            return
        self._count += 1
        task = asyncio.create_task(self._wait(answer))
        session.tasks.add(task)
        task.add_done_callback(session.tasks.discard)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._count -= 1

    async def _wait(self, answer: Answer) -> None:
        try:
            await self._driver.read_barrier()
        except LeadershipLost as error:
            answer(failed(pb.NOT_LEADER, str(error)))
        except TimeoutError:
            answer(failed(pb.BUSY, "no answer from the leader in time; try again"))
        except Exception:
            log.exception("a read barrier failed")
            answer(failed(pb.INTERNAL, "the node failed at this request; its log says why"))
        else:
            answer(pb.Event(read_point=pb.ReadPoint(last_tid=self._driver.engine.last_tid)))
