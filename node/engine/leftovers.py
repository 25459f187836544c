"""Fragments that nothing has followed yet, and those that nothing ever will."""

from __future__ import annotations

from raftstorage.node.engine.blobs import Blobs
from raftstorage.node.engine.fragments import Staging, decode_staging
from raftstorage.node.engine.kv import Change
from raftstorage.node.engine.layout import (
    DROPPED_KEY,
    STAGING_KEY,
    chunk_keys,
    dropped_key,
    page_key,
    read_page,
    read_stub,
    seal,
    unseal,
)
from raftstorage.node.engine.reading import Dropped


class Leftovers(Blobs):
    """Keeps `_staging`, drops it, and removes what was dropped, a page for each entry."""

    _staging: Staging | None  # what the entry that was applied last left open
    _being_cleaned: set[bytes]  # keys of records that go with the entry that is being applied

    def _read_staging(self) -> None:
        """After a store was opened."""
        sealed = self._store.get("meta", STAGING_KEY)
        self._staging = None if sealed is None else decode_staging(unseal("meta", STAGING_KEY, sealed))
        self._dropped = {}
        self._being_cleaned = set()
        for key, value in self._store.scan("meta", DROPPED_KEY):
            if not key.startswith(DROPPED_KEY):
                break
            left = unseal("meta", key, value)
            first = int.from_bytes(key[len(DROPPED_KEY) :], "big")
            self._dropped[first] = Dropped(left[:8], int.from_bytes(left[8:], "big"))

    def _drop(self, changes: list[Change]) -> None:
        """The entry does not go on with the fragments before it."""
        if self._staging is not None:
            self._let_go(self._staging, changes)
            self._staging = None
            changes.append(("meta", STAGING_KEY, None))

    def _let_go(self, staging: Staging, changes: list[Change]) -> None:
        if staging.pages:
            dropped = self._dropped[staging.first] = Dropped(staging.tid, staging.pages)
            changes.append(_dropped_change(staging.first, dropped))

    def _clean(self) -> tuple[list[Change], tuple[int, Dropped] | None]:
        """Changes that remove a page of what was dropped first, and what is left then, for `_cleaned`.

        To be written before the entry's own changes, which may use one of the keys again.
        """
        self._being_cleaned.clear()
        if not self._dropped:
            return [], None
        first = min(self._dropped)
        dropped = self._dropped[first]
        left = dropped._replace(pages=dropped.pages - 1)
        page = page_key(first, left.pages)
        changes: list[Change] = [("pages", page, None), _dropped_change(first, left)]
        for oid in read_page(page, self._needed("pages", page)):
            key = oid + dropped.tid
            sealed = self._store.get("records", key)
            stub = None if sealed is None else read_stub(key, sealed)
            if stub is not None and stub.fragment == first:
                self._being_cleaned.add(key)
                changes.append(("records", key, None))
                changes += [("data", each, None) for each in chunk_keys(key, stub)]
                self._give_back(stub, changes)
        return changes, (first, left)

    def _cleaned(self, left: tuple[int, Dropped] | None) -> None:
        """`_clean`'s changes are written."""
        if left is not None:
            first, dropped = left
            if dropped.pages:
                self._dropped[first] = dropped
            else:
                del self._dropped[first]


def _dropped_change(first: int, dropped: Dropped) -> Change:
    value = seal(dropped.tid + dropped.pages.to_bytes(4, "big")) if dropped.pages else None
    return "meta", dropped_key(first), value
