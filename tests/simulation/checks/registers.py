"""Each oid as a register: compare-and-set on the serial, and read. Knows nothing of the truth.

What clients were answered is all there is: the tid of an acknowledged commit, none of an unknown one. So a state
may have data whose serial nobody knows yet; whoever sees it first settles it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.index import Z64, name
from tests.simulation.checks.wgl import Operation, search
from tests.simulation.history import Commit, History, Read, Value

#: (data, serial). (None, Z64): no such object. Serial None: not known yet; and data too: what was before all.
State: TypeAlias = tuple[bytes | None, bytes | None]

#: Data (None: nobody read it) by serials that no commit of a known tid made.
Foreign: TypeAlias = Mapping[bytes, bytes | None]

ABSENT: State = (None, Z64)
ANYTHING: State = (None, None)


@dataclass
class Register:
    """What has a place in real time: linearizable reads, and commits that were not refused.

    `seen`: data by serial, from all reads: which revision is which does not depend on when it was read.
    """

    reads: list[Read] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    seen: dict[bytes, bytes] = field(default_factory=dict)


def check(history: History) -> None:
    """Herlihy & Wing: linearizability is local, so oid by oid."""
    for oid, register in sorted(by_oid(history).items()):
        check_register(oid, register)


def by_oid(history: History) -> Mapping[bytes, Register]:
    found: dict[bytes, Register] = defaultdict(Register)
    for event in history.events:
        if isinstance(event, Read):
            for oid, value in event.values.items():
                if event.linearizable:
                    found[oid].reads.append(event)
                if value is not None:
                    found[oid].seen.setdefault(value[1], value[0])
        elif isinstance(event, Commit) and event.outcome != "refused":
            for oid in {**event.writes, **event.checks}:
                found[oid].commits.append(event)
    return found


def check_register(oid: bytes, register: Register) -> None:
    foreign = foreign_serials(oid, register)
    seen = frozenset(foreign.values())
    operations = [read_operation(oid, read, foreign) for read in register.reads]
    operations += [
        commit_operation(oid, commit, foreign)
        for commit in register.commits
        if commit.outcome == "acknowledged" or (oid in commit.writes and shows(commit.writes[oid] or b"", seen))
    ]
    created = any(commit.bases.get(oid) == Z64 for commit in register.commits)
    stuck = search(operations, ABSENT if created else ANYTHING)
    if stuck is not None:
        pending = "; ".join(operation.text() for operation in stuck.pending)
        raise Broken(
            f"oid {oid.hex()} is not linearizable: of its {len(operations)} operations no more than "
            f"{stuck.ordered} can be put in an order; then it is {show(stuck.state)}, "
            f"and none of these can come next: {pending}"
        )


def foreign_serials(oid: bytes, register: Register) -> Foreign:
    """Those that clients saw, but were not given for a write of theirs: of unknown commits, or from before."""
    serials, given = set(register.seen), {Z64}
    for commit in register.commits:
        serials |= {known[oid] for known in (commit.bases, commit.checks) if oid in known}
        if commit.tid is not None and oid in commit.writes:
            given.add(commit.tid)
    return {serial: register.seen.get(serial) for serial in sorted(serials - given)}


def shows(data: bytes, seen: frozenset[bytes | None]) -> bool:
    """Somebody may have seen what a commit of unknown outcome wrote; else it is as good as never committed."""
    return None in seen or data in seen


def read_operation(oid: bytes, read: Read, foreign: Foreign) -> Operation[State]:
    value = read.values[oid]

    def text() -> str:
        return f"{name(read)} saw {show(ABSENT if value is None else value)}"

    return Operation(read.begun, read.ended, partial(look, foreign, value), text, reads=True)


def commit_operation(oid: bytes, commit: Commit, foreign: Foreign) -> Operation[State]:
    """An unknown commit that only relies on `oid` leaves nothing to see, and is not asked for."""
    if oid not in commit.writes:
        serial = commit.checks[oid]

        def relied() -> str:
            return f"{name(commit)} relied on serial {serial.hex()}"

        return Operation(commit.begun, commit.ended, partial(settle, foreign, serial), relied, reads=True)
    base, data = commit.bases[oid], commit.writes[oid]

    def wrote() -> str:
        return f"{name(commit)} wrote {data!r} over serial {base.hex()}"

    ended = commit.ended if commit.outcome == "acknowledged" else None
    return Operation(commit.begun, ended, partial(replace, foreign, base, (data, commit.tid)), wrote)


def settle(foreign: Foreign, serial: bytes, state: State) -> State | None:
    """The state, if its serial can be `serial`."""
    if state[1] == serial:
        return state
    if state == ANYTHING and serial == Z64:
        return ABSENT
    if state[1] is not None or serial not in foreign:
        return None
    data = foreign[serial]
    if state[0] is None or data is None:
        return data if state[0] is None else state[0], serial
    return (data, serial) if data == state[0] else None


def look(foreign: Foreign, value: Value, state: State) -> State | None:
    data, serial = ABSENT if value is None else value
    settled = settle(foreign, serial or Z64, state)
    if settled is None or settled[0] == data:
        return settled
    return (data, serial) if settled[0] is None and serial != Z64 else None


def replace(foreign: Foreign, base: bytes, after: State, state: State) -> State | None:
    return None if settle(foreign, base, state) is None else after


def show(state: State) -> str:
    if state == ABSENT:
        return "no object"
    data = "unknown data" if state[0] is None else repr(state[0])
    return f"{data} of {'an unknown tid' if state[1] is None else 'tid ' + state[1].hex()}"
