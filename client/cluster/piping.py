"""Files at the ends of uploads and downloads: read and written by the thread that waits for them, not in the loop.

A pipe holds a few chunks. The flow, in the loop, takes or puts them; `work` does the rest in the waiting thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

import google_crc32c
from raftstorage.proto import BLOB_CHUNK_BYTES

from .uploads import Chunk

#: Chunks that are read ahead: 2 MiB.
AHEAD = 8


def crc32c(data: bytes, before: int = 0) -> int:
    """Of `data` behind what has the checksum `before`."""
    return int(google_crc32c.extend(before, data))


class Pipe:
    """Closed from the loop when its flow is through."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._closed = False

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify()

    def work(self, tell: Callable[[], object]) -> None:
        """Returns when the flow is through. `tell` wakes it. OSError."""
        raise NotImplementedError


class FileSource(Pipe):
    """Reads a file for an upload. `crc32c`: of all that was read, in the end of the whole file."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._size = size
        self._ready: dict[int, Chunk] = {}
        self._next = 0
        self._summed = 0
        self.crc32c = 0

    def chunk(self, offset: int) -> Chunk | None:
        """See `uploads.Source`. In the loop."""
        with self._news:
            found = self._ready.pop(offset, None)
            if found is None and offset != self._next:
                self._ready.clear()
                self._next = offset
            self._news.notify()
            return found

    def work(self, tell: Callable[[], object]) -> None:
        while (offset := self._wanted()) is not None:
            data = os.pread(self._descriptor, BLOB_CHUNK_BYTES, offset)
            if len(data) != min(BLOB_CHUNK_BYTES, self._size - offset):
                raise OSError(f"the file has become shorter than {self._size} bytes while it was uploaded")
            if offset <= self._summed < offset + len(data):
                self.crc32c = crc32c(data[self._summed - offset :], self.crc32c)
                self._summed = offset + len(data)
            with self._news:
                if self._next == offset:
                    self._ready[offset] = Chunk(data, crc32c(data))
                    self._next = offset + len(data)
            tell()

    def _wanted(self) -> int | None:
        """What to read next, as soon as there is room for it; None: nothing any more."""
        with self._news:
            self._news.wait_for(lambda: self._closed or (self._next < self._size and len(self._ready) < AHEAD))
            return None if self._closed else self._next


class FileSink(Pipe):
    """Writes a download to a file that is empty."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._crc32c = 0
        self._written = 0
        self._sum = 0
        self.from_addresses: dict[str, None] = {}  # in the order of their pieces

    @property
    def whole(self) -> bool:
        """All is written, and is what it should be."""
        return (self._written, self._sum) == (self._size, self._crc32c)

    @property
    def waiting(self) -> int:
        return len(self._pieces)

    def begin(self, size: int, crc32c: int) -> None:
        self._size, self._crc32c = size, crc32c

    def put(self, data: bytes, address: str) -> None:
        self.from_addresses[address] = None
        with self._news:
            self._pieces.append(data)
            self._news.notify()

    def work(self, tell: Callable[[], object]) -> None:
        while (data := self._take()) is not None:
            self._sum = crc32c(data, self._sum)
            rest = memoryview(data)
            while rest:
                count = os.pwrite(self._descriptor, rest, self._written)
                self._written += count
                rest = rest[count:]
            tell()

    def _take(self) -> bytes | None:
        with self._news:
            self._news.wait_for(lambda: self._closed or self._pieces)
            return self._pieces.popleft() if self._pieces else None
