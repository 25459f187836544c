"""One file of the log."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from raftstorage.node.raft.types import HardState
from raftstorage.node.wal import format as fmt

SUFFIX = ".segment"
TEMPORARY = ".new"


def sync_directory(directory: Path) -> None:
    """Makes created and renamed names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """`pwrite` until all of it is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


class Segment:
    """An open segment. `end`: the offset behind its last record; `seed`: what its checksums start from."""

    def __init__(self, path: Path, header: fmt.Header, fd: int, end: int) -> None:
        self.path = path
        self.sequence = header.sequence
        self.size = header.size
        self.seed = fmt.seed(header.salt)
        self.fd = fd
        self.end = end

    @staticmethod
    def name(sequence: int) -> str:
        return f"{sequence:016d}{SUFFIX}"

    @classmethod
    def create(
        cls, directory: Path, sequence: int, size: int, hard_state: HardState, first_index: int, previous_end: int
    ) -> Segment:
        """A preallocated segment that begins with the vote; durable, name and all, when it returns. OSError."""
        path = directory / cls.name(sequence)
        temporary = path.with_suffix(TEMPORARY)
        header = fmt.Header(sequence, size, first_index, previous_end, secrets.token_bytes(fmt.SALT_BYTES))
        begin = header.pack()
        begin += fmt.state(fmt.seed(header.salt), len(begin), hard_state)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            write_all(fd, begin, 0)
            os.fsync(fd)
            temporary.rename(path)
            sync_directory(directory)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, header, fd, len(begin))

    def read(self, offset: int, length: int) -> tuple[int, bytes] | None:
        """(type, payload) of the record of `length` bytes at `offset`; None when it is not valid. OSError."""
        data = os.pread(self.fd, length, offset)
        return fmt.read_record(data, 0, self.seed, offset)

    def append(self, data: bytes) -> None:
        """Durable when it returns; OSError leaves it unknown what the disk holds."""
        write_all(self.fd, data, self.end)
        os.fdatasync(self.fd)
        self.end += len(data)

    def close(self) -> None:
        os.close(self.fd)
