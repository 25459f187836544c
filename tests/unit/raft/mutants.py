"""Classic mistakes, each as a patch to the core: whoever tests it must notice every one.

`MUTANTS` are found by random runs, `RARE` only when their story is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from unittest import mock

from raftstorage.node.raft import core as core_module
from raftstorage.node.raft import election, following, leading
from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.log import RaftLog
from raftstorage.node.raft.outbox import Outbox
from raftstorage.node.raft.quorum import committed_index
from raftstorage.node.raft.types import Entry, HardState, Message, MessageType, Role, SnapshotBase

from tests.unit.raft.memory_log import MemoryLog

Mutant = Callable[[], AbstractContextManager[object]]


def commits_older_terms() -> AbstractContextManager[object]:
    def advance_commit(core: RaftCore) -> None:
        index = committed_index(
            core.voters, lambda node: core.log.stable if node == core.node_id else core.peers[node].match
        )
        core.commit_to(index)

    return mock.patch.object(leading, "advance_commit", advance_commit)


def counts_own_unwritten_entries() -> AbstractContextManager[object]:
    def advance_commit(core: RaftCore) -> None:
        index = committed_index(
            core.voters, lambda node: core.log.last_index if node == core.node_id else core.peers[node].match
        )
        if index > core.commit_index and core.log.term(index) == core.term:
            core.commit_to(index)

    return mock.patch.object(leading, "advance_commit", advance_commit)


def acknowledges_before_the_write() -> AbstractContextManager[object]:
    return mock.patch.object(Outbox, "put_after_write", Outbox.put)


def forgets_its_vote() -> AbstractContextManager[object]:
    original = MemoryLog.write

    def write(
        self: MemoryLog,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        snapshot: SnapshotBase | None = None,
    ) -> None:
        original(self, hard_state and HardState(hard_state.term, 0), entries, snapshot)

    return mock.patch.object(MemoryLog, "write", write)


def votes_twice_in_a_term() -> AbstractContextManager[object]:
    original = election.on_request

    def on_request(core: RaftCore, message: Message) -> None:
        if message.type is MessageType.VOTE and core.role is not Role.LEADER:
            core.vote = core.leader = 0
        original(core, message)

    return mock.patch.object(election, "on_request", on_request)


def votes_for_any_log() -> AbstractContextManager[object]:
    original = election.on_request

    def on_request(core: RaftCore, message: Message) -> None:
        with mock.patch.object(RaftLog, "last_term", 0), mock.patch.object(RaftLog, "last_index", 0):
            original(core, message)

    return mock.patch.object(election, "on_request", on_request)


def majority_is_half() -> AbstractContextManager[object]:
    return mock.patch("raftstorage.node.raft.quorum.majority", lambda voters: max(1, len(voters) // 2))


def cuts_without_conflict() -> AbstractContextManager[object]:
    original = following.on_append

    def on_append(core: RaftCore, message: Message) -> None:
        last = message.log_index + len(message.entries)
        if core.commit_index <= last < core.last_index and core.log.matches(message.log_index, message.log_term):
            core.log.truncate(max(message.log_index, core.commit_index) + 1, core.commit_index)
        original(core, message)

    return mock.patch.object(following, "on_append", on_append)


def ignores_the_entry_before() -> AbstractContextManager[object]:
    original = following.on_append

    def on_append(core: RaftCore, message: Message) -> None:
        with mock.patch.object(RaftLog, "matches", _matches_blindly):
            original(core, message)

    return mock.patch.object(following, "on_append", on_append)


def _matches_blindly(self: RaftLog, index: int, term: int) -> bool:
    return index < self.last_index or (index == self.last_index and self.term(index) == term)


def reads_without_a_round() -> AbstractContextManager[object]:
    def start_read_round(core: RaftCore) -> None:
        if core.reads.wants_round and core.has_own_term_commit:
            reads, core.reads.waiting = core.reads.waiting, []
            for read in reads:
                core.answer_read(read, core.commit_index)

    return mock.patch.object(leading, "start_read_round", start_read_round)


def reads_before_the_noop() -> AbstractContextManager[object]:
    return mock.patch.object(RaftCore, "has_own_term_commit", property(lambda core: core.role is Role.LEADER))


def takes_an_old_write_for_new_entries() -> AbstractContextManager[object]:
    original = RaftLog.truncate

    def truncate(self: RaftLog, index: int, commit: int) -> None:
        reach = [write.last for write in self._writes]
        original(self, index, commit)
        for write, last in zip(self._writes, reach, strict=True):
            write.last = last

    return mock.patch.object(RaftLog, "truncate", truncate)


def applies_what_is_not_durable() -> AbstractContextManager[object]:
    def take(core: RaftCore) -> tuple[Entry, ...]:
        low = core._given_to_apply + 1
        entries = core.log.entries(low, core.commit_index + 1, 1 << 20, 1 << 20)
        core._given_to_apply = entries[-1].index if entries else core._given_to_apply
        return entries

    return mock.patch.object(core_module.RaftCore, "_take_applicable", take)


MUTANTS: list[Mutant] = [
    counts_own_unwritten_entries,
    acknowledges_before_the_write,
    votes_twice_in_a_term,
    votes_for_any_log,
    majority_is_half,
    cuts_without_conflict,
    ignores_the_entry_before,
    reads_without_a_round,
    reads_before_the_noop,
    takes_an_old_write_for_new_entries,
    applies_what_is_not_durable,
]

RARE: list[Mutant] = [commits_older_terms, forgets_its_vote]
