"""What is kept by transaction id on behalf of owners, with an account of it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from raftstorage.node.admission import Amount, Tally


class Owned(Protocol):
    @property
    def owner(self) -> object: ...


W = TypeVar("W", bound=Owned)


class Held(dict[bytes, W], Generic[W]):
    """A dict that counts. It changes by `held[id] = work`, `pop` and `clear` only.

    `weigh`: bytes of what is put in; asked once, for they may be fewer when it is taken out.
    """

    def __init__(self, weigh: Callable[[W], int]) -> None:
        super().__init__()
        self._weigh = weigh
        self._weights: dict[bytes, int] = {}
        self._all = Tally()
        self._by_owner: dict[object, Tally] = {}

    @property
    def amount(self) -> Amount:
        return self._all.amount()

    @property
    def owners(self) -> int:
        """How many have anything here."""
        return len(self._by_owner)

    def of(self, owner: object) -> Amount:
        tally = self._by_owner.get(owner)
        return tally.amount() if tally is not None else Amount(0, 0)

    def __setitem__(self, identity: bytes, work: W) -> None:
        self.pop(identity, None)
        super().__setitem__(identity, work)
        size = self._weights[identity] = self._weigh(work)
        self._all.add(size)
        self._by_owner.setdefault(work.owner, Tally()).add(size)

    def pop(self, identity: bytes, default: Any = None, /) -> Any:
        """What is there, or `default`."""
        work = super().pop(identity, None)
        if work is None:
            return default
        size = self._weights.pop(identity)
        self._all.remove(size)
        tally = self._by_owner[work.owner]
        tally.remove(size)
        if not tally.items:
            del self._by_owner[work.owner]
        return work

    def clear(self) -> None:
        super().clear()
        self._weights.clear()
        self._all = Tally()
        self._by_owner.clear()
