"""One file of the log."""

from __future__ import annotations

from pathlib import Path

from raftstorage.node.raft.types import HardState
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.files import Files

SUFFIX = ".segment"
TEMPORARY = ".new"
_ZEROS = bytes(1 << 20)


class Segment:
    """An open segment. `end`: the offset behind its last record; `seed`: what its checksums start from.

    `written`: when it got its last entry, by the clock of whoever writes.
    """

    def __init__(self, files: Files, path: Path, header: fmt.Header, fd: int, end: int) -> None:
        self._files = files
        self.path = path
        self.sequence = header.sequence
        self.form = header.form
        self.size = header.size
        self.seed = fmt.seed(header.salt)
        self.fd = fd
        self.end = end
        self.written = 0.0

    @staticmethod
    def name(sequence: int) -> str:
        return f"{sequence:016d}{SUFFIX}"

    @classmethod
    def create(
        cls,
        files: Files,
        directory: Path,
        sequence: int,
        size: int,
        hard_state: HardState,
        base: tuple[int, int],
        first_index: int,
        previous_end: int,
    ) -> Segment:
        """A preallocated segment that begins with the vote and the base (index, term).

        Durable, name and all, when it returns. OSError.
        """
        path = directory / cls.name(sequence)
        temporary = path.with_suffix(TEMPORARY)
        header = fmt.Header(sequence, size, first_index, previous_end, files.salt(fmt.SALT_BYTES))
        seed = fmt.seed(header.salt)
        begin = header.pack()
        begin += fmt.state(seed, len(begin), hard_state)
        begin += fmt.base(seed, len(begin), *base)
        fd = files.create(temporary, size)
        try:
            files.write(fd, begin, 0)
            files.sync(fd)
            files.rename(temporary, path)
            files.sync_directory(directory)
        except BaseException:
            files.close(fd)
            raise
        return cls(files, path, header, fd, len(begin))

    def read(self, offset: int, length: int) -> tuple[int, bytes] | None:
        """(type, payload) of the record of `length` bytes at `offset`; None when it is not valid. OSError."""
        data = self._files.read(self.fd, length, offset)
        return fmt.read_record(data, 0, self.seed, offset)

    def append(self, data: bytes) -> None:
        """Durable when it returns; OSError leaves it unknown what the disk holds."""
        self.rewrite(data, self.end)
        self.end += len(data)

    def rewrite(self, data: bytes, offset: int) -> None:
        """Writes at `offset`, durable when it returns. OSError as `append`."""
        self._files.write(self.fd, data, offset)
        self._files.sync(self.fd)

    def rewrite_to_end(self, data: bytes, offset: int) -> None:
        """Writes at `offset`, zeros the rest of the file, durable when it returns. OSError as `append`."""
        self._files.write(self.fd, data, offset)
        for start in range(offset + len(data), self.size, len(_ZEROS)):
            self._files.write(self.fd, _ZEROS[: self.size - start], start)
        self._files.sync(self.fd)

    def close(self) -> None:
        self._files.close(self.fd)
