"""What the streams of clients and of peers have in common: how long they wait, and how they end."""

from __future__ import annotations

import asyncio
from typing import Any

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
