"""A Data.fs read without a FileStorage: no lock, no index, and past what is damaged, as ZODB.fsrecover does it.

A transaction comes whole or not at all. Where one cannot be read, its length (it stands at both ends) may still
say where the next one begins; where not, the next place is looked for at which everything fits that must.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ZODB.FileStorage.FileStorage import TransactionRecord, packed_version
from ZODB.FileStorage.format import (
    DATA_HDR_LEN,
    TRANS_HDR_LEN,
    CorruptedDataError,
    CorruptedError,
    FileStorageFormatter,
)
from ZODB.POSException import POSError
from ZODB.utils import maxtid

Z64 = b"\0" * 8
_BEGIN = len(packed_version)
_CHUNK = 1 << 20
#: What 17 bytes of a transaction's header look like: any tid, a length below 2**40, a status.
_HEADER = re.compile(rb"(?=.{8}\0{3}.{5}[ pu].{6})", re.DOTALL)
_UNREADABLE = (CorruptedError, POSError, ValueError, struct.error, UnicodeDecodeError)


class NotADataFile(Exception):
    """The file does not begin as a Data.fs does."""


@dataclass(frozen=True, slots=True)
class Damage:
    """`size` bytes from `offset` on that nothing came out of. `harmless`: an unfinished transaction at the end,
    which any FileStorage cuts when it opens the file."""

    offset: int
    size: int
    reason: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"at {self.offset}: {self.reason}; {self.size} bytes left out"


class PackBound:
    """`tid`: up to which transactions may have been packed away, as those say that are left, in order: a pack goes
    behind the last one that it marked, but not to the next one. Eight zero bytes: none was packed.
    """

    def __init__(self) -> None:
        self.tid = Z64
        self._last_marked = False

    def add(self, tid: bytes, status: str | bytes) -> None:
        marked = status in ("p", b"p")
        if marked:
            self.tid = maxtid
        elif self._last_marked:
            self.tid = (int.from_bytes(tid) - 1).to_bytes(8)
        self._last_marked = marked


class _Unsound(Exception):
    """`end`: where the next transaction begins, when that is certain; else 0."""

    def __init__(self, reason: str, end: int = 0) -> None:
        super().__init__(reason)
        self.end = end


class _Unfinished(Exception):
    pass


class DataFile(FileStorageFormatter):  # type: ignore[misc]
    """The transactions of a Data.fs, as it was when this was opened. NotADataFile; OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        self._file_name = str(path)
        if self._file.read(_BEGIN) != packed_version:
            self._file.close()
            raise NotADataFile(f"{path} is no Data.fs")
        self.size = self._file.seek(0, 2)
        self.damage: list[Damage] = []

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def iterator(self, start: bytes | None = None, stop: bytes | None = None) -> Iterator[Any]:
        """Readable transactions with tids from `start` to `stop`, both inclusive. `damage` is then what was met,
        in the whole file as far as lengths go, in records from `start` on."""
        self.damage = []
        last = Z64
        position = _BEGIN
        while position < self.size:
            try:
                header = self._sound_header(position, last)
                end = position + header.tlen + 8
                if stop is not None and header.tid > stop:
                    return
                wanted = header.status != "u" and (start is None or header.tid >= start)
                if wanted:
                    self._check_records(header, position)
            except _Unfinished as error:
                self._leave_out(position, self.size, error)
                return
            except _Unsound as error:
                end = error.end or self._find_next(position + 1, last)
                self._leave_out(position, end, error)
                position = end
                continue
            last = header.tid
            if wanted:
                yield TransactionRecord(
                    header.tid, header.status, header.user, header.descr, header.ext,
                    position + header.headerlen(), position + header.tlen, self._file, position,
                )  # fmt: skip
            position = end

    def heads(self) -> tuple[bytes, bytes]:
        """Tid of the last readable transaction, and up to which one there may have been more before a pack; eight
        zero bytes: none. Only lengths are looked at, and `damage` is then what was found in these."""
        self.damage = []
        last = Z64
        packed = PackBound()
        position = _BEGIN
        while position < self.size:
            try:
                header = self._sound_header(position, last)
            except _Unfinished as error:
                self._leave_out(position, self.size, error)
                break
            except _Unsound as error:
                end = error.end or self._find_next(position + 1, last)
                self._leave_out(position, end, error)
                position = end
                continue
            if header.status != "u":
                last = header.tid
                packed.add(header.tid, header.status)
            position += header.tlen + 8
        return last, packed.tid

    def _leave_out(self, start: int, end: int, why: Exception) -> None:
        self.damage.append(Damage(start, end - start, str(why), harmless=isinstance(why, _Unfinished)))

    # ---- what must fit ---------------------------------------------------------------------------------

    def _sound_header(self, position: int, last: bytes) -> Any:
        try:
            header = self._read_txn_header(position)
        except _UNREADABLE:
            raise _Unsound("no header of a transaction") from None
        end = position + header.tlen + 8
        fits = header.headerlen() <= header.tlen and end <= self.size
        whole = fits and self._read_num(end - 8) == header.tlen
        if header.status == "c" and not (whole and end < self.size):
            raise _Unfinished("a transaction that was not finished")
        if not whole:
            raise _Unsound("the lengths at a transaction's two ends differ" if fits else "a length that cannot be")
        if header.status not in " pu":
            raise _Unsound(f"a transaction with the status {header.status!r}", end)
        if header.tid <= last:
            raise _Unsound(f"transaction {header.tid.hex()} is not above the one before it", end)
        return header

    def _read_data_header(self, position: int, oid: bytes | None = None, _file: Any = None) -> Any:
        """As the formatter does, for whom any length will do: it would make room for so much before it reads; and
        any pointer to another record: it would follow a circle for ever."""
        header = super()._read_data_header(position, oid, _file)
        if position + header.recordlen() > self.size or (not header.plen and header.back >= position):
            raise CorruptedDataError(oid, None, position)
        return header

    def _check_records(self, header: Any, position: int) -> None:
        end = position + header.tlen
        at = position + header.headerlen()
        while at < end:
            try:
                record = self._read_data_header(at)
                if record.tid != header.tid or record.tloc != position or at + record.recordlen() > end:
                    raise _Unsound("it does not belong to its transaction")
                if not record.plen and record.back:
                    if not _BEGIN + TRANS_HDR_LEN <= record.back < at - DATA_HDR_LEN:
                        raise _Unsound("it points to no record before it")
                    self._loadBackTxn(record.oid, record.back, False)
                    self.getTxnFromData(record.oid, record.back)
            except (_Unsound, *_UNREADABLE) as error:
                raise _Unsound(
                    f"transaction {header.tid.hex()} has an unreadable record at {at} ({error})", end + 8
                ) from None
            at += record.recordlen()

    def _find_next(self, position: int, last: bytes) -> int:
        """Where the next transaction begins that fits in every way; the file's end when there is none."""
        while position < self.size:
            self._file.seek(position)
            chunk = self._file.read(_CHUNK + TRANS_HDR_LEN)
            for match in _HEADER.finditer(chunk):
                if self._fits(position + match.start(), last):
                    return position + match.start()
            position += max(1, len(chunk) - TRANS_HDR_LEN + 1)
        return self.size

    def _fits(self, position: int, last: bytes) -> bool:
        try:
            header = self._sound_header(position, last)
            if header.tlen > header.headerlen():
                record = self._read_data_header(position + header.headerlen())
                return bool(record.tid == header.tid and record.tloc == position)
            end = position + header.tlen + 8
            return end == self.size or self._sound_header(end, header.tid) is not None
        except (_Unsound, _Unfinished, *_UNREADABLE):
            return False
