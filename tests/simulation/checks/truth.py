"""The committed transactions against what the clients were answered.

ZODB's storage interface: `tpc_finish` returns the tid of a transaction that is stored whole and once; a store over
another serial than the current one is a ConflictError (first committer wins); `checkCurrentSerialInTransaction`
fails when the object changed. Adya and Elle call what this forbids G1a (a refused transaction shows), lost update
and write skew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.simulation.checks.errors import Broken
from tests.simulation.checks.index import Z64, difference, name
from tests.simulation.history import Commit, Committed, History


def check(history: History, truth: Sequence[Committed], others: frozenset[bytes] = frozenset()) -> None:
    """`others`: tids of transactions that no client of the history made."""
    check_tids(truth)
    made = check_identities(truth, others)
    commits = by_identity(history)
    check_explained(made, commits)
    for commit in commits.values():
        check_outcome(commit, made.get(commit.identity))
    check_serials(truth, commits, others)


def check_tids(truth: Sequence[Committed]) -> None:
    """`lastTransaction` and `iterator` of ZODB's interface: tids rise strictly, so none is there twice."""
    last = None
    for each in truth:
        if last is not None and each.tid <= last:
            raise Broken(f"the truth has tid {each.tid.hex()} after {last.hex()}: tids must rise strictly")
        last = each.tid


def check_identities(truth: Sequence[Committed], others: frozenset[bytes]) -> dict[bytes, Committed]:
    """A commit that is repeated after a lost answer takes effect once."""
    made: dict[bytes, Committed] = {}
    for each in truth:
        if each.tid in others:
            continue
        first = made.setdefault(each.identity, each)
        if first is not each:
            raise Broken(
                f"commit {each.identity.hex()} is in the truth twice, "
                f"with tids {first.tid.hex()} and {each.tid.hex()}"
            )
    return made


def by_identity(history: History) -> dict[bytes, Commit]:
    """The clients' commits; the history itself must make sense."""
    commits: dict[bytes, Commit] = {}
    for commit in history.commits():
        if commit.identity in commits:
            raise Broken(f"the history is not sound: it has two outcomes of commit {commit.identity.hex()}")
        commits[commit.identity] = commit
        if (commit.tid is not None) != (commit.outcome == "acknowledged"):
            raise Broken(f"the history is not sound: {name(commit)} is {commit.outcome} with tid {commit.tid!r}")
        if commit.writes.keys() != commit.bases.keys():
            raise Broken(f"the history is not sound: {name(commit)} writes other oids than it has bases for")
    return commits


def check_explained(made: Mapping[bytes, Committed], commits: Mapping[bytes, Commit]) -> None:
    """Nothing comes from nowhere."""
    for identity, each in made.items():
        if identity not in commits:
            raise Broken(f"tid {each.tid.hex()} is in the truth, but no client made its commit {identity.hex()}")


def check_outcome(commit: Commit, found: Committed | None) -> None:
    """Acknowledged: there, whole, with its tid. Refused: not there. Unknown: whole or not at all."""
    if found is None:
        if commit.outcome == "acknowledged":
            raise Broken(f"{name(commit)} is not in the truth: an acknowledged commit is lost")
        return
    if commit.outcome == "refused":
        raise Broken(f"{name(commit)} was refused, but the truth has it with tid {found.tid.hex()}")
    if commit.tid is not None and commit.tid != found.tid:
        raise Broken(f"{name(commit)} is in the truth with another tid: {found.tid.hex()}")
    if dict(commit.writes) != dict(found.records):
        raise Broken(
            f"{name(commit)} is not whole in the truth at tid {found.tid.hex()}: "
            f"{difference(commit.writes, found.records)}"
        )


def check_serials(truth: Sequence[Committed], commits: Mapping[bytes, Commit], others: frozenset[bytes]) -> None:
    """First committer wins: what a transaction wrote over, and what it relied on, was current at its place."""
    current: dict[bytes, bytes] = {}
    for each in truth:
        if each.tid not in others:
            commit = commits[each.identity]
            for oid, serial in commit.bases.items():
                check_current(commit, each.tid, oid, serial, current.get(oid, Z64), "wrote over")
            for oid, serial in commit.checks.items():
                check_current(commit, each.tid, oid, serial, current.get(oid, Z64), "relied on")
        for oid in each.records:
            current[oid] = each.tid


def check_current(commit: Commit, tid: bytes, oid: bytes, serial: bytes, current: bytes, how: str) -> None:
    if serial != current:
        kind = "a lost update" if how == "wrote over" else "write skew"
        raise Broken(
            f"{kind}: {name(commit)}, committed at tid {tid.hex()}, {how} oid {oid.hex()} "
            f"at serial {serial.hex()}, but serial {current.hex()} was current"
        )
