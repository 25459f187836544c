"""Two rules that random clusters seldom put to the test: durable votes, and figure 8 of the paper."""

from __future__ import annotations

import random
from collections.abc import Sequence

from raftstorage.node.raft.core import RaftCore
from raftstorage.node.raft.types import Config, Entry, EntryKind, HardState, Message, MessageType, Output, Role

VOTERS = frozenset({1, 2, 3})


class Log:
    """A LogReader over a list that the test writes itself."""

    def __init__(self, terms: Sequence[int] = ()) -> None:
        self.written = [Entry(term, index, EntryKind.COMMAND, b"x") for index, term in enumerate(terms, 1)]

    def first_index(self) -> int:
        return 1

    def last_index(self) -> int:
        return len(self.written)

    def term(self, index: int) -> int:
        return self.written[index - 1].term if index else 0

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        return self.written[low - 1 : high - 1]


def core(log: Log, state: HardState) -> RaftCore:
    config = Config(1, VOTERS, max_message_entries=1)
    return RaftCore(config, log, state, 0, random.Random(1))


def make_durable(each: RaftCore, log: Log, output: Output) -> list[Message]:
    """Writes all that `output` wants written; returns what may be said now."""
    said: list[Message] = []
    for persist in output.persist:
        if persist.entries:
            del log.written[persist.entries[0].index - 1 :]
            log.written.extend(persist.entries)
        each.persisted(persist.ticket)
        said.extend(persist.then_send)
    return said


def vote(term: int, candidate: int, log_index: int = 0, log_term: int = 0) -> Message:
    return Message(MessageType.VOTE, candidate, 1, term, log_index, log_term)


def lead(each: RaftCore, log: Log) -> Output:
    """Has node 1 elected by node 2; returns its first output as leader."""
    while each.role is Role.FOLLOWER:
        each.tick()
    each.take_output()
    each.step(Message(MessageType.PRE_VOTE_REPLY, 2, 1, each.term + 1))
    make_durable(each, log, each.take_output())
    each.step(Message(MessageType.VOTE_REPLY, 2, 1, each.term))
    assert each.role is Role.LEADER
    return each.take_output()


def test_a_vote_is_said_only_after_it_is_durable() -> None:
    each = core(Log(), HardState())
    each.step(vote(1, 2))
    output = each.take_output()
    assert output.send == ()
    (persist,) = output.persist
    assert persist.hard_state == HardState(1, 2)
    assert [(m.type, m.reject) for m in persist.then_send] == [(MessageType.VOTE_REPLY, False)]


def test_after_a_restart_the_vote_still_binds() -> None:
    each = core(Log(), HardState(1, 2))
    each.step(vote(1, 3))
    each.step(vote(1, 2))
    assert [(m.to_node, m.reject) for m in each.take_output().send] == [(3, True), (2, False)]


def test_a_candidate_asks_for_votes_only_when_its_own_is_durable() -> None:
    each = core(Log(), HardState())
    while each.role is Role.FOLLOWER:
        each.tick()
    assert {m.type for m in each.take_output().send} == {MessageType.PRE_VOTE}
    assert each.term == 0, "a pre-vote changes nothing"
    each.step(Message(MessageType.PRE_VOTE_REPLY, 2, 1, 1))
    output = each.take_output()
    assert output.send == ()
    assert output.persist[0].hard_state == HardState(1, 1)
    assert {m.type for m in output.persist[0].then_send} == {MessageType.VOTE}
    each.step(Message(MessageType.VOTE_REPLY, 2, 1, 1, reject=True))
    each.step(Message(MessageType.VOTE_REPLY, 3, 1, 1))
    assert each.role is Role.CANDIDATE, "its own vote counts only when it is durable"
    each.persisted(output.persist[0].ticket)
    assert each.role.value == "leader"


def test_an_entry_of_an_older_term_is_not_committed_by_counting() -> None:
    # Figure 8 (c): node 1 leads again in term 4 and brings its entry of term 2 to a majority.
    log = Log([1, 2])
    each = core(log, HardState(3, 0))
    make_durable(each, log, lead(each, log))
    assert log.term(3) == each.term == 4
    each.step(Message(MessageType.APPEND_REPLY, 2, 1, 4, log_index=2))
    assert each.commit_index == 0
    assert each.take_output().apply == ()
    # (e): an entry of its own term on a majority commits all before it.
    each.step(Message(MessageType.APPEND_REPLY, 2, 1, 4, log_index=3))
    assert each.commit_index == 3
    applied = [entry.index for _ in range(3) for entry in each.take_output().apply]
    assert applied == [1, 2, 3]


def test_the_leaders_own_disk_counts_only_after_its_sync() -> None:
    log = Log()
    each = core(log, HardState())
    output = lead(each, log)
    each.step(Message(MessageType.APPEND_REPLY, 2, 1, 1, reject=True, log_index=0))
    assert {m.type for m in output.send} == {MessageType.APPEND}, "sent beside the sync"
    assert each.commit_index == 0
    make_durable(each, log, output)
    assert each.commit_index == 0, "one of three"
    each.step(Message(MessageType.APPEND_REPLY, 3, 1, 1, log_index=1))
    assert each.commit_index == 1


def test_an_append_is_acknowledged_only_after_the_sync() -> None:
    log = Log()
    each = core(log, HardState(1, 0))
    entry = Entry(1, 1, EntryKind.COMMAND, b"x")
    each.step(Message(MessageType.APPEND, 2, 1, 1, entries=(entry,)))
    output = each.take_output()
    assert output.send == ()
    # Again, while the first write is under way: nothing new to write, but not durable either.
    each.step(Message(MessageType.APPEND, 2, 1, 1, entries=(entry,)))
    again = each.take_output()
    assert again.send == ()
    assert again.persist[0].entries == ()
    assert [m.log_index for m in make_durable(each, log, output)] == [1]
    assert [m.log_index for m in make_durable(each, log, again)] == [1]


def test_an_old_append_does_not_cut_the_log() -> None:
    log = Log([1, 1, 1])
    each = core(log, HardState(1, 0))
    first = Entry(1, 1, EntryKind.COMMAND, b"x")
    each.step(Message(MessageType.APPEND, 2, 1, 1, entries=(first,), commit=1))
    assert each.last_index == 3
    assert each.take_output().persist == ()


def test_a_conflicting_suffix_is_replaced() -> None:
    log = Log([1, 2, 2])
    each = core(log, HardState(3, 0))
    newer = Entry(3, 2, EntryKind.COMMAND, b"y")
    each.step(Message(MessageType.APPEND, 2, 1, 3, log_index=1, log_term=1, entries=(newer,)))
    make_durable(each, log, each.take_output())
    assert [entry.term for entry in log.written] == [1, 3]
