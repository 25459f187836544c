"""Append-only lists: each token says by whom, where and after what it was appended. After Elle's list-append.

Names as in Elle: G1a (a refused commit is seen), G1b (half of what a commit appended is seen), incompatible order
(two versions, neither of which begins the other), G0, G1c, G-single, G2 (cycles; see `cycles`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from tests.simulation.checks.cycles import Edge, cycle
from tests.simulation.checks.errors import Broken
from tests.simulation.checks.index import Z64, name
from tests.simulation.history import Commit, Committed, History, Read

Known: TypeAlias = Mapping[tuple[bytes, bytes], bytes]  # (oid, serial) -> data
Owners: TypeAlias = Mapping[tuple[bytes, bytes], Commit]  # (oid, token)


@dataclass(frozen=True)
class Version:
    """Somebody saw, or the truth has, `data` as the list `oid`."""

    oid: bytes
    data: bytes
    where: str | Read

    def __str__(self) -> str:
        where = self.where if isinstance(self.where, str) else name(self.where)
        return f"list {self.oid.hex()} was [{text(self.data)}] in {where}"


def text(data: bytes) -> str:
    return data.decode("ascii", "backslashreplace")


class Order:
    """The longest version of a list, token by token. `writers`: None where no client of the history appended."""

    def __init__(self, version: Version, owners: Owners) -> None:
        self.version = version
        self.tokens = version.data.split()
        self.writers = [owners.get((version.oid, token)) for token in self.tokens]
        self._lengths = {0: 0}
        offset = -1
        for count, token in enumerate(self.tokens, 1):
            offset += len(token) + 1
            self._lengths[offset] = count

    def length(self, data: bytes) -> int | None:
        """How many tokens `data` has, if it begins this list."""
        return self._lengths.get(len(data)) if self.version.data.startswith(data) else None


def check(
    history: History, truth: Sequence[Committed], lists: Sequence[bytes], others: frozenset[bytes] = frozenset()
) -> None:
    oids = frozenset(lists)
    known = known_versions(history, truth, oids)
    owners = find_owners(history, known, oids)
    orders = {version.oid: Order(version, owners) for version in longest_versions(history, truth, oids)}
    given = given_tokens(truth, oids, others)
    for order in orders.values():
        check_tokens(order.version, owners, given)
    for version in versions(history, truth, oids):
        check_beginning(version, orders[version.oid], owners, given)
    check_cycles(history, known, orders)
    check_growth(truth, oids)
    check_final(truth, orders, owners)


def versions(history: History, truth: Iterable[Committed], oids: frozenset[bytes]) -> Iterator[Version]:
    for each in truth:
        for oid in sorted(oids & each.records.keys()):
            yield Version(oid, each.records[oid] or b"", f"the truth at tid {each.tid.hex()}")
    for read in history.reads():
        for oid in sorted(oids & read.values.keys()):
            value = read.values[oid]
            yield Version(oid, value[0] if value else b"", read)


def longest_versions(history: History, truth: Iterable[Committed], oids: frozenset[bytes]) -> Iterable[Version]:
    longest: dict[bytes, Version] = {}
    for version in versions(history, truth, oids):
        if len(version.data) > len(longest.setdefault(version.oid, version).data):
            longest[version.oid] = version
    return longest.values()


def known_versions(history: History, truth: Iterable[Committed], oids: frozenset[bytes]) -> Known:
    """By serial; what the truth lost, from those who wrote or saw it."""
    known: dict[tuple[bytes, bytes], bytes] = {(oid, Z64): b"" for oid in oids}
    for each in truth:
        known.update({(oid, each.tid): each.records[oid] or b"" for oid in oids & each.records.keys()})
    for event in history.events:
        if isinstance(event, Read):
            for oid in oids & event.values.keys():
                value = event.values[oid]
                if value is not None:
                    known.setdefault((oid, value[1]), value[0])
        elif isinstance(event, Commit) and event.tid is not None:
            for oid in oids & event.writes.keys():
                known.setdefault((oid, event.tid), event.writes[oid] or b"")
    return known


def find_owners(history: History, known: Known, oids: frozenset[bytes]) -> Owners:
    """Who appended, or tried to: what a commit wrote without what was there in the revision that it wrote over."""
    owners: dict[tuple[bytes, bytes], Commit] = {}
    for commit in history.commits():
        for oid in sorted(oids & commit.writes.keys()):
            for token in appended(commit, oid, known):
                first = owners.setdefault((oid, token), commit)
                if first is not commit:
                    raise Broken(
                        f"the history is not sound: {name(first)} and {name(commit)} both append {token!r} "
                        f"to list {oid.hex()}"
                    )
    return owners


def appended(commit: Commit, oid: bytes, known: Known) -> list[bytes]:
    data, serial = commit.writes[oid] or b"", commit.bases[oid]  # one that is deleted has no tokens any more
    base = known.get((oid, serial))
    if base is None:
        raise Broken(f"{name(commit)} wrote list {oid.hex()} over serial {serial.hex()}, of which nobody knows")
    if data.startswith(base):
        return data[len(base) :].split()
    before = frozenset(base.split())
    return [token for token in data.split() if token not in before]


def given_tokens(truth: Iterable[Committed], oids: frozenset[bytes], others: frozenset[bytes]) -> frozenset[bytes]:
    """What transactions `others` wrote."""
    return frozenset(
        token
        for each in truth
        if each.tid in others
        for oid in oids & each.records.keys()
        for token in (each.records[oid] or b"").split()
    )


def check_tokens(version: Version, owners: Owners, given: frozenset[bytes]) -> None:
    """Each was appended by a commit that was not refused, and is there once."""
    seen = set()
    for token in version.data.split():
        owner = owners.get((version.oid, token))
        if owner is None and token not in given:
            raise Broken(f"{version}, but nobody appended {token!r}")
        if owner is not None and owner.outcome == "refused":
            raise Broken(f"G1a: {version}, but {name(owner)}, which appended {token!r}, was refused")
        if token in seen:
            raise Broken(f"a doubled append: {version}, which has {token!r} twice")
        seen.add(token)


def check_beginning(version: Version, order: Order, owners: Owners, given: frozenset[bytes]) -> None:
    """Every version is a beginning of the longest, and ends between two commits."""
    length = order.length(version.data)
    if length is None:
        check_tokens(version, owners, given)
        raise Broken(f"incompatible order: {version}, which does not begin what {order.version}")
    if 0 < length < len(order.tokens) and order.writers[length] is not None:
        writer = order.writers[length]
        if writer is order.writers[length - 1] and writer is not None:
            raise Broken(f"G1b: {version}, which is half of what {name(writer)} appended")


def check_cycles(history: History, known: Known, orders: Mapping[bytes, Order]) -> None:
    """Each read and each commit sees the lists in one state, that of its place in the one order of all."""
    found = cycle(list(dependencies(history, known, orders)))
    if found is not None:
        anomaly, edges = found
        steps = "; ".join(f"{name(history.events[edge.source])} {edge.why}" for edge in edges)
        raise Broken(f"{anomaly}, a cycle: {steps}; which is where it began")


def dependencies(history: History, known: Known, orders: Mapping[bytes, Order]) -> Iterator[Edge[int]]:
    """Between events of the history, by their place in it. A commit that left no token has no part."""
    nodes = {id(event): node for node, event in enumerate(history.events)}
    writers = {
        oid: [None if writer is None else nodes[id(writer)] for writer in order.writers]
        for oid, order in orders.items()
    }
    for oid, chain in writers.items():
        for one, other in pairwise(chain):
            if one is not None and other is not None:
                yield Edge(one, other, "ww", f"appended to list {oid.hex()} before")
    committed = {node for chain in writers.values() for node in chain}
    for node, event in enumerate(history.events):
        if isinstance(event, Read) or node in committed:
            for oid, data in looked_at(event, known, orders):
                yield from around(node, oid, orders[oid].length(data), writers[oid])


def looked_at(event: object, known: Known, orders: Mapping[bytes, Order]) -> Iterator[tuple[bytes, bytes]]:
    """The versions that it depends on."""
    if isinstance(event, Read):
        for oid in orders.keys() & event.values.keys():
            value = event.values[oid]
            yield oid, value[0] if value else b""
    elif isinstance(event, Commit):
        for oid, serial in (*event.bases.items(), *event.checks.items()):
            if oid in orders and (oid, serial) in known:
                yield oid, known[oid, serial]


def around(node: int, oid: bytes, length: int | None, writers: Sequence[int | None]) -> Iterator[Edge[int]]:
    """A version lies behind the commit that wrote its last token, and before the one that wrote the next."""
    if length is None:
        return
    last = writers[length - 1] if length else None
    if last is not None:
        yield Edge(last, node, "wr", f"appended to list {oid.hex()} what is seen (wr) by")
    following = writers[length] if length < len(writers) else None
    if following is not None:
        yield Edge(node, following, "rw", f"did not see (rw) in list {oid.hex()} what was appended by")


def check_growth(truth: Iterable[Committed], oids: frozenset[bytes]) -> None:
    """Every revision is the one before with tokens appended."""
    current: dict[bytes, bytes] = {}
    for each in truth:
        for oid in sorted(oids & each.records.keys()):
            before, data = current.get(oid, b""), each.records[oid] or b""
            if before and data != before and not data.startswith(before + b" "):
                raise Broken(
                    f"a lost append: list {oid.hex()} was [{text(before)}] before tid {each.tid.hex()}, "
                    f"and is [{text(data)}] then"
                )
            current[oid] = data


def check_final(truth: Iterable[Committed], orders: Mapping[bytes, Order], owners: Owners) -> None:
    """In the end everything is there that anybody saw, or was told to be there."""
    final: dict[bytes, bytes] = {}
    for each in truth:
        final.update({oid: each.records[oid] or b"" for oid in orders.keys() & each.records.keys()})
    for oid, order in orders.items():
        if final.get(oid, b"") != order.version.data:
            raise Broken(f"a lost append: {order.version}, but is [{text(final.get(oid, b''))}] in the end")
    kept = {(oid, token) for oid, data in final.items() for token in data.split()}
    for (oid, token), commit in owners.items():
        if commit.outcome == "acknowledged" and (oid, token) not in kept:
            raise Broken(f"a lost append: {name(commit)} appended {token!r} to list {oid.hex()}; it is not there")
