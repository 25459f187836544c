"""How a node asks another one what operators ask (`admin.proto`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from raftstorage.node.service.peer_dialer import CHANNEL_OPTIONS
from raftstorage.proto import admin_pb2_grpc


@asynccontextmanager
async def admin_at(address: str, *, afresh: bool = False) -> AsyncIterator[Any]:
    """An AdminStub for the node at `address` (host:port); its calls raise grpc.aio.AioRpcError.

    `afresh`: over a connection of its own. That others failed a moment ago says nothing of now then.
    """
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)] if afresh else CHANNEL_OPTIONS
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
