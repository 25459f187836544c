"""Very many objects and their serials, held so that nothing takes long: not to grow, and not to be let go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

#: The names of more objects than this are freed a piece at a time.
MANY = 65_536
_SHARDS = 16


def _uneven() -> bytes:
    """The shard for each last byte of an oid. The largest takes twice as much as the smallest, the others what is
    between: so no two of them, which double at certain sizes, grow at the same time."""
    shares = [2 ** (number / _SHARDS) for number in range(_SHARDS)]
    ends = [256 * sum(shares[: number + 1]) / sum(shares) for number in range(_SHARDS)]
    return bytes(next(number for number, end in enumerate(ends) if byte < end) for byte in range(256))


_SHARD = _uneven()


class Leaving:
    """What transactions of very many objects have left: freeing a million names at once takes 80 ms."""

    def __init__(self) -> None:
        self._pieces: list[dict[bytes, bytes]] = []

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def take(self, pieces: Iterable[dict[bytes, bytes]]) -> None:
        self._pieces += pieces

    def free_some(self) -> None:
        """A few milliseconds' worth."""
        if self._pieces:
            self._pieces.pop()


class Serials(Mapping[bytes, bytes]):
    """Objects and serials, in no promised order. In several dictionaries: one takes 50 ms to grow at a million.

    `leaving`: gets them at the end, however that comes about, when they are large.
    """

    __slots__ = ("_leaving", "_shards")

    def __init__(self, leaving: Leaving | None = None) -> None:
        self._leaving = leaving
        self._shards: tuple[dict[bytes, bytes], ...] = tuple({} for _ in range(_SHARDS))

    def __del__(self) -> None:
        if self._leaving is not None and len(self) > MANY:
            self._leaving.take(self._shards)

    def add(self, oid: bytes, serial: bytes) -> bool:
        """False when the object is there already."""
        shard = self._shards[_SHARD[oid[-1]]]
        if oid in shard:
            return False
        shard[oid] = serial
        return True

    def __getitem__(self, oid: bytes) -> bytes:
        return self._shards[_SHARD[oid[-1]]][oid]

    def __contains__(self, oid: object) -> bool:
        return isinstance(oid, bytes) and oid in self._shards[_SHARD[oid[-1]]]

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self._shards)

    def __len__(self) -> int:
        return sum(map(len, self._shards))
