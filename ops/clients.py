"""A client of a cluster for the time of one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raftstorage.ops.errors import require_zodb

if TYPE_CHECKING:
    from raftstorage.client import ClientStorage

Z64 = b"\0" * 8


def check_addresses(text: str) -> None:
    """ValueError unless it is what ClientStorage takes: host:port,host:port,... or embedded:DIR."""
    from raftstorage.client.cluster.addresses import parse_addresses

    if not text.startswith("embedded:"):
        parse_addresses(text)


@contextmanager
def open_client(addresses: str, wait_timeout: float, command: str, **options: Any) -> Iterator[ClientStorage]:
    """Has seen everything that was committed before it was opened. CommandError when ZODB is not installed."""
    require_zodb(f"raftstorage {command}")
    check_addresses(addresses)
    from raftstorage.client import ClientStorage

    storage = ClientStorage(addresses, consistency="linearizable", wait_timeout=wait_timeout, **options)
    try:
        storage.sync()
        yield storage
    finally:
        storage.close()
