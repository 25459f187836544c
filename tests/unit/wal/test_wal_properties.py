"""The log against a list: random writes, cuts and resets, crashes at every point, failing disks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal, WalError
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal import index as entry_index

from tests.simulation.disk import LOG, SimFiles
from tests.unit.service.fuzzing import explore
from tests.unit.wal.log_model import SEGMENT, Gone, State, batches, observed, outcomes, writes_of

faults = st.sampled_from(["", "", "", "", "kill", "power", "write", "sync", "full"])
afters = st.integers(1, 9)


class WalMachine(RuleBasedStateMachine):
    """`state` is what readers see; `base` is durable, and a start cuts what is up to it.

    `possible`: what a start may find; more than one when nobody was told how the last step ended.
    """

    @initialize(seed=st.integers(0, 1 << 16), cache=st.sampled_from([0, 900, 1 << 20]))
    def begin(self, seed: int, cache: int) -> None:
        self.points = 0
        self.files = SimFiles(random.Random(seed), self.point)
        self.cache = cache
        self.term = 0
        self.state = State()
        self.base = 0
        self.possible = [self.state]
        self.wal: Wal | None = self.open()
        self.broken = False

    def point(self, name: str) -> None:
        self.points -= 1
        if self.points == 0:
            event(f"gone {name}")
            raise Gone(name)

    def open(self, files: SimFiles | None = None) -> Wal:
        return Wal.open(LOG, segment_bytes=SEGMENT, cache_bytes=self.cache, files=files or self.files)

    def arm(self, fault: str, after: int) -> None:
        files = self.files
        self.points = after if fault in ("kill", "power") else 0
        files.full, files.fail_writes, files.fail_syncs = fault == "full", fault == "write", fault == "sync"

    def end(self, how: str) -> None:
        """The process ends; with "power", the machine does."""
        self.arm("", 0)
        self.files.lose_power() if how == "power" else self.files.kill()
        self.wal = None

    def step(self, fault: str, after: int, action: Callable[[Wal], object], possible: list[State]) -> bool:
        """Whether it came to its end; if not, a start finds one of `possible`."""
        assert self.wal is not None
        self.arm(fault, after)
        try:
            action(self.wal)
        except Gone:
            self.end(fault)
        except OSError:
            event(f"failed: {fault}")
            self.broken = True
        else:
            self.arm("", 0)
            return True
        self.possible = possible
        self.arm("", 0)
        return False

    @property
    def durable(self) -> State:
        return self.state.cut(self.base)

    def done(self, state: State, base: int) -> None:
        self.state, self.base = state, base
        self.possible = [self.durable]

    writable = precondition(lambda self: self.wal is not None and not self.broken)
    running = precondition(lambda self: self.wal is not None)

    # ---- writing -------------------------------------------------------------------------------------

    @writable
    @rule(batch=batches, fault=faults, after=afters)
    def write(self, batch: Any, fault: str, after: int) -> None:
        self.term += 1
        writes = writes_of(batch, self.base, self.state.last, self.term)
        if self.step(fault, after, lambda wal: wal.write_many(writes), list(outcomes(self.durable, writes))):
            *_, state = outcomes(self.state, writes)
            self.done(state, self.base)

    @writable
    @rule(back=st.integers(0, 12), fault=faults, after=afters)
    def write_base(self, back: int, fault: str, after: int) -> None:
        index = max(0, self.state.last - back)
        if self.step(fault, after, lambda wal: wal.write_base(index), [self.durable, self.durable.cut(index)]):
            self.done(self.state, max(self.base, index))

    @running
    @rule(back=st.integers(0, 6))
    def forget(self, back: int) -> None:
        assert self.wal is not None
        index = max(0, self.base - back)
        self.wal.forget(index)
        self.state = self.state.cut(index)

    @writable
    @rule(fault=faults, after=afters)
    def clean(self, fault: str, after: int) -> None:
        """Cut as far as it may be: what is on disk is what holds entries, and the current segment."""
        assert self.wal is not None
        self.forget(0)
        if self.step(fault, after, lambda wal: wal.clean(), [self.durable]):
            event("cleaned")
            wal = self.wal
            first = wal._index.first_sequence() or wal._current.sequence
            assert min(wal._segments) >= first, "a segment of forgotten entries is still there"
            assert self.files.names(LOG) == [segment.path.name for segment in wal._segments.values()]

    @writable
    @rule(ahead=st.integers(-6, 6), held=st.booleans(), vote=st.booleans(), fault=faults, after=afters)
    def reset(self, ahead: int, held: bool, vote: bool, fault: str, after: int) -> None:
        """To an entry that the log holds, or to one that it does not, in front of its end or behind."""
        self.term += 1
        index = max(self.base, self.state.last + ahead)
        if held or index == self.base:
            index = min(index, self.state.last)
            term = self.state.term(index)
        else:
            term = self.term
        new = HardState(self.term, 1) if vote else None
        before = self.durable
        voted = replace(before, vote=new or before.vote)
        possible = [before, voted.reset(index, term)]
        if term != self.term:
            possible.append(voted)
        if self.step(fault, after, lambda wal: wal.reset(index, term, new), possible):
            event("reset: replaced" if term == self.term else "reset: kept")
            visible = replace(self.state, vote=voted.vote)
            self.done(visible.reset(index, term) if term == self.term else visible, index)

    # ---- what is refused -----------------------------------------------------------------------------

    @running
    @rule(beyond=st.integers(2, 5))
    def leave_a_gap(self, beyond: int) -> None:
        assert self.wal is not None
        entry = Entry(self.term + 1, self.state.last + beyond, EntryKind.NOOP)
        with pytest.raises(WalError):
            self.wal.write(None, [entry])

    @running
    @rule(back=st.integers(0, 3))
    def go_behind_the_base(self, back: int) -> None:
        assert self.wal is not None
        with pytest.raises(WalError):
            self.wal.write(None, [Entry(self.term + 1, self.base - back, EntryKind.NOOP)])
        with pytest.raises(WalError):
            self.wal.reset(self.base - back, self.term + 1)
        with pytest.raises(WalError):
            self.wal.forget(self.base + 1 + back)
        with pytest.raises(WalError):
            self.wal.write_base(self.state.last + 1 + back)

    @precondition(lambda self: self.broken)
    @rule()
    def write_after_a_failure(self) -> None:
        wal = self.wal
        assert wal is not None
        actions: list[Callable[[], object]] = [
            lambda: wal.write(HardState(self.term, 9), []),
            lambda: wal.reset(self.state.last + 1, self.term + 1),
            lambda: wal.reset(self.base, self.state.term(self.base), HardState(self.term, 9)),
        ]
        if self.base < self.state.last:
            actions.append(lambda: wal.write_base(self.state.last))
        self.forget(0)
        if min(wal._segments) < wal._unread:
            actions.append(wal.clean)
        for action in actions:
            with pytest.raises(WalError, match="an earlier write failed"):
                action()

    # ---- lives ---------------------------------------------------------------------------------------

    @running
    @rule(how=st.sampled_from(["close", "kill", "power"]), fault=faults, after=afters)
    def stop(self, how: str, fault: str, after: int) -> None:
        """A stop that closes the log can be cut short, or meet a disk that fails, as well."""
        assert self.wal is not None
        if how == "close":
            self.arm(fault, after)
            try:
                self.wal.close()
            except Gone:
                how = fault
            except OSError:
                assert not self.files._open
        self.end(how)
        self.broken = False

    @precondition(lambda self: self.wal is None)
    @rule(fault=faults, after=afters)
    def start(self, fault: str, after: int) -> None:
        self.broken = False
        self.arm(fault, after)
        try:
            wal = self.open()
        except Gone:
            self.end(fault)
        except OSError:
            assert not self.files._open, "a start that failed left a file open"
        else:
            found = observed(wal)
            assert found in self.possible
            # A later batch could end where a record begins that was cut off, and bring it back.
            behind = self.files._files[wal._current.path].content[wal._current.end :]
            assert not any(behind), "what was cut off is still there"
            self.wal = wal
            self.done(found, found.base[0])
        self.arm("", 0)

    # ---- what holds ----------------------------------------------------------------------------------

    @rule()
    def look_at_what_is_durable(self) -> None:
        """At any time: the machine loses power, and with it all that is not certain to be on disk."""
        wal = self.open(self.files.after_power_cut())
        assert observed(wal) in self.possible
        wal.close()

    @running
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        assert self.wal is not None
        base, last = self.state.base[0], self.state.last
        low = data.draw(st.integers(max(0, base - 1), last + 1))
        high = data.draw(st.integers(low, last + 2))
        limit = data.draw(st.integers(0, 2000))
        if low < high and (high > last + 1 or low <= base):
            with pytest.raises(IndexError):
                self.wal.entries(low, high, limit)
            return
        expected: list[Entry] = []
        for entry in self.state.entries[max(0, low - base - 1) : max(0, high - base - 1)]:
            if expected and sum(len(each.data) for each in [*expected, entry]) > limit:
                break
            expected.append(entry)
        assert self.wal.entries(low, high, limit) == expected

    @running
    @rule(limit=st.integers(0, 5 * SEGMENT))
    def ask_for_a_cut(self, limit: int) -> None:
        """The least one after which so many bytes are enough for what stays."""
        assert self.wal is not None
        cut = self.wal.cut_point(max_bytes=limit)
        assert self.state.base[0] <= cut <= self.state.last
        assert self.bytes_behind(cut) <= limit
        assert cut == self.state.base[0] or self.bytes_behind(cut - 1) > limit

    def bytes_behind(self, index: int) -> int:
        """From the first record of an entry behind `index` to the end of the log."""
        assert self.wal is not None
        if index == self.state.last:
            return 0
        place = self.wal._index._place(index + 1)
        sequence, offset = place >> 40, place & (1 << 40) - 1
        segments = self.wal._segments
        later = sum(each.end - fmt.BEGIN_BYTES for each in segments.values() if each.sequence > sequence)
        return segments[sequence].end - offset + later

    @invariant()
    def readers_see_what_was_acknowledged(self) -> None:
        if getattr(self, "wal", None) is None:
            return
        wal, state = self.wal, self.state
        assert wal is not None
        assert observed(wal) == state
        base = state.base[0]
        for index in range(base, state.last + 1):
            assert wal.term(index) == state.term(index)
        assert wal.term(0) == 0
        assert wal._index._recent_bytes <= self.cache
        for outside in {state.last + 1, max(1, base) - 1} - {0}:
            with pytest.raises(IndexError):
                wal.term(outside)


def test_the_log_against_a_list_through_crashes_and_failing_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_index, "_PAGE_BITS", 2)
    monkeypatch.setattr(entry_index, "_PAGE_MASK", 3)
    explore(WalMachine, 400, steps=40)
