"""What the streams of clients and of peers have in common: how long they wait, and how they end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger(__name__)

#: A stream that has not said hello by then is ended.
HELLO_SECONDS = 5.0
#: How long a stream that ends waits for the message that is being sent.
WRITE_SECONDS = 1.0


async def let_finish(writer: asyncio.Task[Any]) -> None:
    """Waits for a writer that was told to stop and may be sending still, up to WRITE_SECONDS.

    gRPC refuses to end a stream while a message is being written to it, and a cancelled write still is: the other
    side would never hear of the end.
    """
    await asyncio.wait({writer}, timeout=WRITE_SECONDS)


async def give_up(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks that are inside gRPC, and waits for their ends up to WRITE_SECONDS.

    grpc.aio may lose a cancellation (a read that comes before the call is prepared awaits a task that takes it for
    itself): what has not ended by then is cancelled once more and left alone. What they raise is not looked at.
    """
    for task in tasks:
        task.cancel()
    _done, stuck = await asyncio.wait(tasks, timeout=WRITE_SECONDS)
    for task in stuck:
        log.warning("a stream does not end when it is cancelled: %s", task.get_name())
        task.cancel()
