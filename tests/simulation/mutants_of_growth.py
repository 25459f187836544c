"""Classic mistakes with membership, snapshots and the front of the log; see `mutants`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from raftstorage.node import durable
from raftstorage.node.driver import Driver
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.members import Members
from raftstorage.node.raft import election
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.types import Role, SnapshotBase
from raftstorage.node.snapshots.install import Installed, folder_name
from raftstorage.node.wal import Wal

from tests.simulation.node import SimNode
from tests.unit.raft import change_mutants as changes

# ---- membership --------------------------------------------------------------------------------------


def begins_a_second_change() -> AbstractContextManager[object]:
    """The core's mistake, and the leader's own queue of changes does not hide it."""

    async def settled(self: Members) -> None:
        return

    return changes.together(changes.begins_a_second_change(), mock.patch.object(Members, "_settled", settled))


def tells_an_id_that_may_be_lost() -> AbstractContextManager[object]:
    """Who asks to be let in for the second time is answered out of the log, committed or not."""

    async def certain(self: Members) -> None:
        return

    return mock.patch.object(Members, "_certain", certain)


def lets_removed_nodes_disturb() -> AbstractContextManager[object]:
    """Nobody asks first whether votes would be given, and who asks for them is heard though a leader is."""
    original = election.campaign

    def campaign(core: RaftCore, *, pre: bool, transfer: bool = False) -> None:
        original(core, pre=False, transfer=transfer)

    return changes.together(
        changes.lets_removed_nodes_disturb(), mock.patch.object(election, "campaign", campaign)
    )


# ---- snapshots and the log's front -------------------------------------------------------------------


def cuts_the_log_ahead_of_the_database() -> AbstractContextManager[object]:
    """What is applied counts as on disk."""
    return mock.patch.object(StateMachine, "durable_index", property(lambda self: self.applied_index))


def resets_the_log_before_the_database_switch() -> AbstractContextManager[object]:
    """`SimNode._place` as `healing.placer` with its two steps in the wrong order."""

    def place(self: SimNode, base: SnapshotBase) -> None:
        self.wal.reset(base.index, base.term)
        self.point("before database switch")
        self.installed = Installed(folder_name(base.index, base.term), base.index, base.term)
        self.point("after database switch")

    return mock.patch.object(SimNode, "_place", place)


def does_not_finish_an_installation() -> AbstractContextManager[object]:
    """A start takes the log as it is, when a crash fell between the database switch and the log's reset."""
    return mock.patch.object(durable, "_holds", lambda wal, index, term: True)


def forgets_the_snapshots_term() -> AbstractContextManager[object]:
    """The log begins behind the snapshot as if its last entry were of the first term."""
    return mock.patch.object(StateMachine, "applied_term", property(lambda self: 1))


def cuts_the_log_without_a_base() -> AbstractContextManager[object]:
    """Entries go, and nothing on disk says that a state covers them."""

    def write_base(self: Wal, index: int) -> None:
        if self._base[0] < index <= self.last_index():
            self._base = (index, self.term(index))

    return mock.patch.object(Wal, "write_base", write_base)


def cleans_more_than_was_forgotten() -> AbstractContextManager[object]:
    """The newest whole segment goes too, in which there may be entries that are needed."""
    original = Wal.forget

    def forget(self: Wal, index: int) -> None:
        original(self, index)
        self._unread = self._current.sequence

    return mock.patch.object(Wal, "forget", forget)


def installs_before_it_is_written() -> AbstractContextManager[object]:
    """The snapshot's database is the node's before its log knows."""
    original = Driver.install

    async def install(self: Driver, store: Any, base: SnapshotBase) -> Any:
        if base.index > self.commit_index and self._installing is None and self._core.role is not Role.LEADER:
            self.engine.adopt(store)
        return await original(self, store, base)

    return mock.patch.object(Driver, "install", install)
