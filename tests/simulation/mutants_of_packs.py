"""Classic mistakes with packs and garbage; see `mutants`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from raftstorage.node.engine.api import Applied, Pack
from raftstorage.node.engine.kv import Change
from raftstorage.node.engine.layout import Stub, read_stub
from raftstorage.node.engine.packing import Packing, Removal
from raftstorage.node.engine.references import references
from raftstorage.node.garbage import Collector
from raftstorage.node.packing import Packer
from raftstorage.proto import storage_pb2 as pb

from tests.unit.raft.change_mutants import together


def removes_a_revision_that_is_still_seen() -> AbstractContextManager[object]:
    """Whatever is followed by a newer one goes, also by one that is newer than the pack."""

    def remove(self: Packing, key: bytes, stub: Stub, *rest: Any) -> None:
        if stub.no_data or self.current_serial(key[:8]) != key[8:]:
            self._remove(key, stub, *rest)

    return mock.patch.object(Packing, "_remove_deletion", remove)


def collects_by_its_own_marks() -> AbstractContextManager[object]:
    """Each node keeps what some record of its own refers to, be it one that it has yet to remove."""
    original = Packing._apply_collect

    def collect(self: Packing, index: int, command: pb.CollectCommand, changes: list[Change]) -> Applied:
        marked: set[bytes] = set()
        for key, sealed in self._store.scan("records", b""):
            data = self._data(key, read_stub(key, sealed))
            marked.update(references(data) if data else ())
        oids = [command.oids[at : at + 8] for at in range(0, len(command.oids), 8)]
        mine = b"".join(oid for oid in oids if oid not in marked)
        return original(
            self, index, pb.CollectCommand(pack_id=command.pack_id, oids=mine, last=command.last), changes
        )

    return mock.patch.object(Packing, "_apply_collect", collect)


def forgets_the_pack_when_it_starts() -> AbstractContextManager[object]:
    """After a restart, or with a snapshot, all is seen again that is not removed yet."""

    def read(self: Packing) -> None:
        self._pack, self._removal = Pack(), Removal()

    return mock.patch.object(Packing, "_read_packing", read)


def collects_what_later_commits_refer_to() -> AbstractContextManager[object]:
    """Only what could be reached as of the pack is marked."""

    def nothing(self: Collector) -> Iterator[bool]:
        self._behind = False
        yield True

    def proposed(self: Collector, index: int, data: Sequence[bytes]) -> None:
        return

    return together(
        mock.patch.object(Collector, "_catch_up", nothing), mock.patch.object(Collector, "proposed", proposed)
    )


def collects_what_is_reached_from_newer_objects_alone() -> AbstractContextManager[object]:
    """What the root does not lead to as of the pack is garbage, unless a commit under way names it."""

    def nothing(self: Collector) -> Iterator[bool]:
        self._behind = False
        yield True

    return mock.patch.object(Collector, "_catch_up", nothing)


def a_new_leader_does_not_go_on_with_a_pack() -> AbstractContextManager[object]:
    def ready(self: Packer) -> None:
        self._leads = True

    return mock.patch.object(Packer, "became_ready", ready)


def removes_before_the_garbage_is_known() -> AbstractContextManager[object]:
    """And does not come back for it."""
    return mock.patch.object(Packing, "removes", property(lambda self: self._removal.phase != 2))


def counts_a_removal_before_it_is_written() -> AbstractContextManager[object]:
    """The cursor goes on disk in a batch of its own, ahead of what was removed."""
    original = Packing.pack_step

    def step(self: Packing, budget: int) -> bool:
        real = self._store.write

        def write(changes: Sequence[Change]) -> None:
            real([change for change in changes if change[0] == "packing"])
            real([change for change in changes if change[0] != "packing"])

        with mock.patch.object(self._store, "write", write):
            return original(self, budget)

    return mock.patch.object(Packing, "pack_step", step)


PACK_MUTANTS = [
    removes_a_revision_that_is_still_seen,
    collects_by_its_own_marks,
    forgets_the_pack_when_it_starts,
    collects_what_later_commits_refer_to,
    a_new_leader_does_not_go_on_with_a_pack,
    counts_a_removal_before_it_is_written,
]
