"""What must hold of memberships: majorities overlap, changes come one by one, and nodes go by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from typing import TYPE_CHECKING

from raftstorage.node.raft.membership import Membership
from raftstorage.node.raft.quorum import majority
from raftstorage.node.raft.types import Entry, EntryKind

from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.node import SimNode


class MembersWatch:
    """Is told of what is committed, in order. `founders`: who was a voter at the beginning. Raises Violation."""

    def __init__(self, founders: Sequence[int]) -> None:
        self.newest = Membership.initial(founders)  # as of what is committed
        self.before = self.newest  # as of the entry before
        self._known = [(0, self.newest)]

    def committed(self, entry: Entry) -> None:
        self.before = self.newest
        if entry.kind is not EntryKind.MEMBERSHIP:
            return
        self.newest = Membership.decode(entry.data)
        self._known.append((entry.index, self.newest))
        if not _overlap(self.before, self.newest):
            raise Violation(
                f"entry {entry.index} goes from {_names(self.before)} to {_names(self.newest)} at once: "
                "a majority of each can do without the other"
            )

    def at(self, index: int) -> Membership:
        """As of a committed entry."""
        return next(membership for known, membership in reversed(self._known) if known <= index)

    def elected(self, node: SimNode, voters: set[int]) -> None:
        """`node` leads, by the votes of `voters`."""
        for configuration in node.driver.membership.configurations:
            if len(configuration & voters) < majority(configuration):
                raise Violation(
                    f"{node.name} leads by the votes of {sorted(voters)}, which are no majority of "
                    f"{sorted(configuration)}"
                )

    def sent(self, node: SimNode, entries: Sequence[Entry], is_safe: Callable[[Entry, Membership], bool]) -> None:
        """`is_safe(entry, membership)`: it is committed, or on the disks of a majority."""
        for entry in entries:
            if entry.kind is EntryKind.MEMBERSHIP:
                earlier = newest_in(node, entry.index)
                if earlier is not None and not is_safe(earlier, Membership.decode(earlier.data)):
                    raise Violation(
                        f"{node.name} changes the members by entry {entry.index}, while entry {earlier.index}, "
                        "which does so too, is not committed"
                    )

    def check(self, node: SimNode) -> None:
        """The newest membership in a node's log is in effect there."""
        core = node.driver._core
        found = newest_in(node, core.last_index + 1)
        if found is not None:
            expected = Membership.decode(found.data)
        elif core.log.base and core.membership.members:
            expected = self.at(core.log.base)
        else:  # as it was founded, or not told yet
            return
        if core.membership.configurations != expected.configurations or core.membership.ids != expected.ids:
            raise Violation(
                f"{node.name} goes by {_names(core.membership)}; the newest in its log is {_names(expected)}"
            )


def newest_in(node: SimNode, before: int) -> Entry | None:
    """The last membership in a node's log with a lower index."""
    log = node.driver._core.log
    for index in range(min(before - 1, log.last_index), log.base, -1):
        (entry,) = log.entries(index, index + 1, 1 << 30, 1)
        if entry.kind is EntryKind.MEMBERSHIP:
            return entry
    return None


def _overlap(one: Membership, other: Membership) -> bool:
    """Does each set of nodes that decides in `one` have a node of each that decides in `other`?"""
    rest = one.ids | other.ids
    return not any(decides(some, one) and decides(rest - some, other) for some in _subsets(rest))


def decides(nodes: frozenset[int], membership: Membership) -> bool:
    """Are they a majority, of both sets while it is joint?"""
    return all(len(voters & nodes) >= majority(voters) for voters in membership.configurations)


def _subsets(nodes: frozenset[int]) -> Iterator[frozenset[int]]:
    sizes = range(len(nodes) + 1)
    return map(frozenset, chain.from_iterable(combinations(sorted(nodes), size) for size in sizes))


def _names(membership: Membership) -> str:
    joint = f" with {sorted(membership.outgoing)}" if membership.is_joint else ""
    return f"{sorted(membership.voters)}{joint}"
