"""`embedded:DIR`: the database is in a directory, and its node runs inside this process, without a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from .connection import Stream
from .errors import DirectoryInUse, EmbeddedError
from .loop import shared_loop

SCHEME = "embedded:"


class Share(Protocol):
    """This storage's part in the node, which others in the process may have too."""

    def dial(self) -> AbstractAsyncContextManager[Stream]: ...
    async def close(self) -> None: ...


def embedded_directory(addresses: str | Iterable[str]) -> Path | None:
    """The directory that `addresses` names; None when they are addresses. ValueError: it names none."""
    if not isinstance(addresses, str) or not addresses.strip().startswith(SCHEME):
        return None
    directory = addresses.strip().removeprefix(SCHEME)
    if not directory:
        raise ValueError("embedded: needs a directory, as in embedded:./data")
    return Path(directory).absolute()


def _node() -> Any:
    """The one place where a client imports what a node is made of. ImportError: that is not installed."""
    try:
        from raftstorage.node import embedded
    except ModuleNotFoundError as error:
        raise ImportError(
            "an embedded: storage needs a node's packages: pip install 'raftstorage[node]'"
        ) from error
    return embedded


class Embedded:
    """One storage's use of the node in `directory`. `failed` is called in the client's loop when that ends."""

    def __init__(self, directory: Path, failed: Callable[[EmbeddedError], None]) -> None:
        self.address = f"{SCHEME}{directory}"
        self._directory = directory
        self._failed = failed
        self._share: Future[Share] | None = None
        self._module = _node()

    def open(self, *, create: bool) -> None:
        """Returns when the node has everything that was ever committed. EmbeddedError, DirectoryInUse."""
        opening = self._module.share(self._directory, lambda why: self._failed(EmbeddedError(why)), create=create)
        self._share = asyncio.run_coroutine_threadsafe(opening, shared_loop())
        try:
            self._share.result()
        except self._module.CannotOpen as error:
            raise (DirectoryInUse if error.locked else EmbeddedError)(str(error)) from error

    def close(self) -> None:
        """The process's last one stops the node: all is on disk, and others may have the directory. OSError."""
        share, self._share = self._share, None
        if share is not None and not (share.done() and share.exception() is not None):
            asyncio.run_coroutine_threadsafe(_close(share), shared_loop()).result()

    @asynccontextmanager
    async def dial(self, address: str) -> AsyncIterator[Stream]:
        """A stream in memory. EOFError when there is no node any more."""
        if self._share is None or not self._share.done():
            raise EOFError(f"{address} is closed")
        async with self._share.result().dial() as stream:
            yield stream


async def _close(share: Future[Share]) -> None:
    await (await asyncio.wrap_future(share)).close()
