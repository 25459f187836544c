"""Classic mistakes, each as a patch to production code: the simulator must notice every one.

Those of the consensus core are shared with its unit tests. `SEEDS` is how many seeds a mutant may live through,
under the faults of its `FOCUS`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from raftstorage.node import transactions
from raftstorage.node.driver import Driver
from raftstorage.node.engine.api import Applied
from raftstorage.node.engine.state import StateMachine
from raftstorage.node.oids import OidBlocks
from raftstorage.node.raft.types import Entry, HardState
from raftstorage.node.service.reads import Reads
from raftstorage.node.service.session import ClientSession
from raftstorage.node.service.sessions import StorageService
from raftstorage.node.tids import timestamp_tid
from raftstorage.node.transactions import Coordinator
from raftstorage.node.wal import Wal, recovery
from raftstorage.node.wal import format as wal_format
from raftstorage.node.wal.segment import Segment
from raftstorage.proto import storage_pb2 as pb

from tests.simulation import mutants_of_blobs as blobs
from tests.simulation import mutants_of_clients as clients
from tests.simulation import mutants_of_growth as growth
from tests.simulation import mutants_of_packs as packs
from tests.simulation import mutants_of_parts as parts
from tests.simulation import mutants_of_scarcity as scarcity
from tests.simulation.disk import SimFiles
from tests.simulation.focus import FOCUS
from tests.unit.raft import change_mutants as changes
from tests.unit.raft import mutants as core

__all__ = ["BY_NAME", "CAUGHT", "FOCUS", "MUTANTS", "OPEN", "SEEDS", "likely_first"]

Mutant = Callable[[], AbstractContextManager[object]]

#: Every mutant is caught within so many seeds.
SEEDS = 150
#: Name -> the first seed that caught it when `python -m tests.simulation --mutants --remember` was last run.
CAUGHT_FILE = Path(__file__).with_name("caught.json")
CAUGHT: dict[str, int] = json.loads(CAUGHT_FILE.read_text())


def likely_first(name: str) -> list[int]:
    """The seeds to try a mutant with; what it lived through only if it lives now through what caught it then."""
    remembered = CAUGHT.get(name, SEEDS)
    return sorted(range(SEEDS), key=lambda seed: seed != remembered)


def patched(owner: object, name: str, replacement: object) -> AbstractContextManager[object]:
    return mock.patch.object(owner, name, replacement)


# ---- the log -----------------------------------------------------------------------------------------


def forgets_its_vote() -> AbstractContextManager[object]:
    original = Wal.write_many

    def write_many(self: Wal, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> None:
        original(self, [(state and HardState(state.term, 0), entries) for state, entries in writes])

    return patched(Wal, "write_many", write_many)


def does_not_sync_votes() -> AbstractContextManager[object]:
    original = Wal.write_many

    def write_many(self: Wal, writes: Sequence[tuple[HardState | None, Sequence[Entry]]]) -> None:
        if any(entries for _, entries in writes):
            original(self, writes)
        else:
            with patched(SimFiles, "sync", lambda self, descriptor: None):
                original(self, writes)

    return patched(Wal, "write_many", write_many)


def never_syncs() -> AbstractContextManager[object]:
    return patched(Segment, "rewrite", lambda self, data, offset: self._files.write(self.fd, data, offset))


def tries_a_failed_sync_again() -> AbstractContextManager[object]:
    def rewrite(self: Segment, data: bytes, offset: int) -> None:
        self._files.write(self.fd, data, offset)
        try:
            self._files.sync(self.fd)
        except OSError:
            self._files.sync(self.fd)

    return patched(Segment, "rewrite", rewrite)


def does_not_sync_directories() -> AbstractContextManager[object]:
    return patched(SimFiles, "sync_directory", lambda self, directory: None)


def cuts_damage_like_a_torn_tail() -> AbstractContextManager[object]:
    return patched(wal_format, "mark_behind", lambda data, start, seed: None)


def trusts_what_it_reads_back() -> AbstractContextManager[object]:
    return patched(recovery.Recovery, "_secure", lambda self, segment, data: None)


# ---- the state machine -------------------------------------------------------------------------------


def commits_again_on_retry() -> AbstractContextManager[object]:
    return patched(StateMachine, "transaction_tid", lambda self, identity: None)


def applies_without_looking_for_conflicts() -> AbstractContextManager[object]:
    return patched(StateMachine, "_conflicts", lambda self, transaction, current: [])


def does_not_check_what_was_read() -> AbstractContextManager[object]:
    original = StateMachine._conflicts

    def conflicts(self: StateMachine, transaction: pb.Transaction, current: Any) -> Any:
        return [one for one in original(self, transaction, current) if not one.reading]

    return patched(StateMachine, "_conflicts", conflicts)


def applies_by_the_order_of_a_hash() -> AbstractContextManager[object]:
    original = StateMachine._commit
    dice = random.Random(1)

    def commit(self: StateMachine, index: int, command: pb.CommitCommand, changes: list[Any]) -> Applied:
        self._next_oid += dice.randrange(2)
        return original(self, index, command, changes)

    return patched(StateMachine, "_commit", commit)


def writes_the_applied_index_apart() -> AbstractContextManager[object]:
    original = StateMachine.apply

    def apply(self: StateMachine, entry: Entry) -> Applied:
        store = self._store
        write = store.write

        def in_two(changes: Sequence[Any]) -> None:
            write(changes[-1:])
            write(changes[:-1])

        with patched(store, "write", in_two):
            return original(self, entry)

    return patched(StateMachine, "apply", apply)


def forgets_which_oids_it_gave_out() -> AbstractContextManager[object]:
    original = OidBlocks.applied

    def applied(self: OidBlocks, entry: Entry, outcome: Applied) -> None:
        original(self, entry, outcome)
        if outcome.first_oid is not None and self._end:
            self._next = min(self._next, 1 + random.Random(entry.index).randrange(40))

    return patched(OidBlocks, "applied", applied)


# ---- the leader and its sessions ---------------------------------------------------------------------


def applies_tids_in_any_order() -> AbstractContextManager[object]:
    stack = ExitStack()
    stack.enter_context(patched(StateMachine, "_check_tid", lambda self, tid: None))
    stack.enter_context(patched(transactions, "after", lambda tid: bytes(8)))
    return stack


def answers_reads_without_the_leader() -> AbstractContextManager[object]:
    async def read_barrier(self: Driver, timeout: float = 10.0) -> None:  # noqa: ASYNC109
        return

    return patched(Driver, "read_barrier", read_barrier)


def answers_reads_that_it_cannot_know() -> AbstractContextManager[object]:
    return patched(Reads, "read", lambda self, request, call, now, reply: self._serve(request, call, reply))


def answers_before_it_invalidates() -> AbstractContextManager[object]:
    original = StorageService._applied

    def applied(self: StorageService, entries: Any) -> None:
        later: list[tuple[ClientSession, Any]] = []
        put = ClientSession.put

        def hold(session: ClientSession, event: pb.Event, size: int | None = None) -> None:
            if event.HasField("invalidations"):
                later.append((session, event))
            else:
                put(session, event, size)

        with patched(ClientSession, "put", hold):
            original(self, entries)
        for session, event in later:
            put(session, event)

    return patched(StorageService, "_applied", applied)


def forgets_who_was_away() -> AbstractContextManager[object]:
    """A client that comes back is not told what it missed."""
    return patched(StateMachine, "changed_since", lambda self, tid, limit: [])


def counts_a_vote_as_a_commit() -> AbstractContextManager[object]:
    def finish(self: Coordinator, identity: bytes, now: float, reply: Any) -> None:
        work = self._voted.get(identity)
        tid = timestamp_tid(self._wall_clock())
        if work is not None and self._send(work, lambda event: None):
            reply(pb.Event(committed=pb.Committed(tid=max(tid, self._last_assigned))))
        else:
            reply(pb.Event(failure=pb.Failure(reason=pb.UNKNOWN_VOTE)))

    return patched(Coordinator, "finish", finish)


MUTANTS: list[Mutant] = [
    *core.MUTANTS,
    core.commits_older_terms,
    growth.begins_a_second_change,
    changes.counts_one_majority_while_joint,
    changes.takes_effect_when_committed,
    changes.forgets_the_membership_behind_applied,
    changes.counts_learners,
    changes.counts_a_leader_that_is_no_voter,
    growth.cuts_the_log_ahead_of_the_database,
    growth.resets_the_log_before_the_database_switch,
    growth.forgets_the_snapshots_term,
    growth.lets_removed_nodes_disturb,
    growth.tells_an_id_that_may_be_lost,
    changes.changes_voters_in_one_step,
    changes.elects_with_one_majority_while_joint,
    changes.leaves_joint_before_it_is_committed,
    changes.keeps_a_membership_that_is_cut_off,
    changes.acknowledges_a_snapshot_before_it_is_written,
    changes.installs_a_stale_snapshot,
    changes.keeps_a_log_that_the_snapshot_contradicts,
    changes.forgets_a_snapshots_membership,
    changes.applies_behind_a_snapshot_that_is_not_written,
    growth.does_not_finish_an_installation,
    growth.cuts_the_log_without_a_base,
    growth.cleans_more_than_was_forgotten,
    growth.installs_before_it_is_written,
    parts.mixes_the_parts_of_two_attempts,
    parts.goes_on_with_another_attempts_fragments,
    parts.shows_fragments_that_nothing_followed,
    scarcity.keeps_leadership_without_room,
    scarcity.takes_writes_without_room,
    scarcity.never_finds_room_again,
    forgets_its_vote,
    does_not_sync_votes,
    never_syncs,
    tries_a_failed_sync_again,
    does_not_sync_directories,
    cuts_damage_like_a_torn_tail,
    trusts_what_it_reads_back,
    commits_again_on_retry,
    applies_without_looking_for_conflicts,
    does_not_check_what_was_read,
    applies_by_the_order_of_a_hash,
    writes_the_applied_index_apart,
    forgets_which_oids_it_gave_out,
    applies_tids_in_any_order,
    answers_reads_without_the_leader,
    answers_reads_that_it_cannot_know,
    answers_before_it_invalidates,
    forgets_who_was_away,
    counts_a_vote_as_a_commit,
    clients.takes_a_lost_answer_for_a_no,
    clients.gives_up_and_says_no,
    clients.retries_under_another_name,
    clients.reads_anywhere,
    clients.believes_every_stream,
    clients.caches_what_a_change_has_overtaken,
    clients.moves_on_before_the_cache_is_told,
    *blobs.BLOB_MUTANTS,
    *packs.PACK_MUTANTS,
]

#: Nobody has seen the simulator catch these yet.
OPEN: list[Mutant] = [
    packs.collects_what_is_reached_from_newer_objects_alone,
    packs.removes_before_the_garbage_is_known,  # garbage stays on disk; nothing that can be seen is wrong
]

BY_NAME = {mutant.__name__: mutant for mutant in [*MUTANTS, *OPEN]}
