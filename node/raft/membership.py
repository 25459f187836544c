"""Who belongs to a cluster, and which changes of that make sense. Pure; imports nothing of ours.

A `Membership` is a value that is written whole into the log. What changes the set of voters goes through joint
consensus (Raft paper, section 6; thesis 4.3): `changed` returns a membership with the old voters as `outgoing`, in
which a majority of both sets decides, and `left_joint` the one that follows it.
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

FORMAT = 1
#: Node ids, versions and levels fit 64 bits on any wire.
LIMIT = 1 << 62


class MembershipError(Exception):
    """A change was refused, with the reason for a person."""


class MemberRole(enum.StrEnum):
    VOTER = "voter"
    LEARNER = "learner"  # gets the log, has no vote (thesis 4.2.1); maybe one in `outgoing`, while joint
    LEAVING = "leaving"  # a vote in `outgoing` only: gone when the joint configuration is left


@dataclass(frozen=True, slots=True)
class Member:
    """`address`: host:port where its peers reach it. `instance`: 32 hex digits that name the node's directory, ""
    when not known yet. `version`: the newest feature level that it knows."""

    node_id: int
    role: MemberRole = MemberRole.VOTER
    address: str = ""
    instance: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What to change at once. No node may be named twice.

    `add`: as LEARNER, or VOTER. `update`: of existing members; the role is kept, and what is empty or 0. `level`:
    raise the feature level to this; 0: leave it.
    """

    add: tuple[Member, ...] = ()
    promote: frozenset[int] = field(default_factory=frozenset)
    demote: frozenset[int] = field(default_factory=frozenset)
    remove: frozenset[int] = field(default_factory=frozenset)
    update: tuple[Member, ...] = ()
    level: int = 0


@dataclass(frozen=True, slots=True)
class Membership:
    """`members` in rising order of their ids. `outgoing`: voters of the configuration that is being left, not
    empty while a change is joint. `highest_id`: every id up to here was used once. `level`: the feature level that
    all members know and the log may use. Without members it is that of a node which was not told yet."""

    members: tuple[Member, ...] = ()
    outgoing: frozenset[int] = field(default_factory=frozenset)
    highest_id: int = 0
    level: int = 0

    @staticmethod
    def initial(
        voters: Mapping[int, str] | Iterable[int], learners: Mapping[int, str] | Iterable[int] = ()
    ) -> Membership:
        """That of a new cluster; mappings give addresses. ValueError for what no cluster can have."""
        voting, learning = _with_addresses(voters), _with_addresses(learners)
        if both := voting.keys() & learning.keys():
            raise ValueError(f"both voters and learners: {sorted(both)}")
        members = [Member(node, MemberRole.VOTER, address) for node, address in voting.items()]
        members += [Member(node, MemberRole.LEARNER, address) for node, address in learning.items()]
        members.sort(key=lambda member: member.node_id)
        if not voting or members[0].node_id < 1:
            raise ValueError("a cluster has voters, and node ids are 1 or more")
        return Membership(tuple(members), highest_id=members[-1].node_id)

    @property
    def voters(self) -> frozenset[int]:
        """Of the incoming configuration, while joint."""
        return self._with_role(MemberRole.VOTER)

    @property
    def learners(self) -> frozenset[int]:
        """While joint, also those that are still among the outgoing voters."""
        return self._with_role(MemberRole.LEARNER)

    def _with_role(self, role: MemberRole) -> frozenset[int]:
        return frozenset(member.node_id for member in self.members if member.role is role)

    @property
    def configurations(self) -> tuple[frozenset[int], ...]:
        """The voter sets of which each must agree by its majority: the incoming one[, the outgoing one]."""
        return (self.voters, self.outgoing) if self.outgoing else (self.voters,)

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(member.node_id for member in self.members)

    @property
    def addresses(self) -> dict[int, str]:
        return {member.node_id: member.address for member in self.members}

    def member(self, node_id: int) -> Member | None:
        return next((member for member in self.members if member.node_id == node_id), None)

    def has_vote(self, node_id: int) -> bool:
        """Is it a voter of any configuration?"""
        return any(node_id in voters for voters in self.configurations)

    # ---- bytes ---------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Canonical: equal memberships are equal bytes."""
        content = {
            "format": FORMAT,
            "highest_id": self.highest_id,
            "level": self.level,
            "members": [
                {
                    "address": member.address,
                    "id": member.node_id,
                    "instance": member.instance,
                    "role": member.role.value,
                    "version": member.version,
                }
                for member in self.members
            ],
            "outgoing": sorted(self.outgoing),
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def decode(data: bytes) -> Membership:
        """ValueError for what `encode` does not make: nothing is read over, it would be lost in the next entry."""
        try:
            content = json.loads(data.decode())
            if content["format"] != FORMAT:
                raise ValueError(f"membership of format {content['format']!r}, this version reads {FORMAT}")
            members = tuple(
                Member(each["id"], MemberRole(each["role"]), each["address"], each["instance"], each["version"])
                for each in content["members"]
            )
            found = Membership(members, frozenset(content["outgoing"]), content["highest_id"], content["level"])
            found._check()
            canonical = found.encode() == data
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"no membership: {error!r}") from error
        if not canonical:
            raise ValueError("no membership as it is written")
        return found

    def _check(self) -> None:
        numbers = [self.highest_id, self.level, *self.outgoing]
        for member in self.members:
            numbers += [member.node_id, member.version]
            if not isinstance(member.address, str) or not isinstance(member.instance, str):
                raise ValueError(f"address or instance of node {member.node_id} is no text")
        if not all(type(number) is int and 0 <= number < LIMIT for number in numbers):
            raise ValueError("a number is none or out of range")
        ids = [0, *(member.node_id for member in self.members), self.highest_id + 1]
        if any(a >= b for a, b in pairwise(ids)):
            raise ValueError("node ids do not rise, up to highest_id")
        if not self.outgoing <= self.ids or not self._with_role(MemberRole.LEAVING) <= self.outgoing:
            raise ValueError("outgoing voters and members do not fit")
        if bool(self.members) != bool(self.voters):
            raise ValueError("members, but no voter")


def changed(membership: Membership, change: Change) -> Membership:
    """What `change` makes of it: joint if the voters are not the same then. MembershipError."""
    if membership.is_joint:
        raise MembershipError("another change of voters is under way")
    _check_names(membership, change)
    members = {member.node_id: member for member in membership.members}
    for update in change.update:
        members[update.node_id] = _updated(membership, members[update.node_id], update)
    for added in change.add:
        members[added.node_id] = added
    for role, nodes in ((MemberRole.VOTER, change.promote), (MemberRole.LEARNER, change.demote)):
        for node in nodes:
            members[node] = replace(members[node], role=role)
    outgoing = membership.voters
    for node in change.remove:
        if node in outgoing:
            members[node] = replace(members[node], role=MemberRole.LEAVING)
        else:
            del members[node]
    after = Membership(
        tuple(members[node] for node in sorted(members)),
        outgoing,
        max([membership.highest_id, *(added.node_id for added in change.add)]),
        change.level or membership.level,
    )
    if not after.voters:
        raise MembershipError("no voter would be left")
    if after.voters == outgoing:
        after = replace(after, outgoing=frozenset[int]())
    if after == membership:
        raise MembershipError("nothing would change")
    _check_uses(after, change)
    _check_level(membership, after)
    return after


def left_joint(membership: Membership) -> Membership:
    """The incoming configuration alone."""
    kept = tuple(member for member in membership.members if member.role is not MemberRole.LEAVING)
    return replace(membership, members=kept, outgoing=frozenset[int]())


def _with_addresses(nodes: Mapping[int, str] | Iterable[int]) -> dict[int, str]:
    return dict(nodes) if isinstance(nodes, Mapping) else dict.fromkeys(nodes, "")


def _check_names(membership: Membership, change: Change) -> None:
    """Each node is named once, and is what the change takes it for."""
    updated = [member.node_id for member in change.update]
    added = [member.node_id for member in change.add]
    named = [*added, *updated, *change.promote, *change.demote, *change.remove]
    for node, count in Counter(named).items():
        if count > 1:
            raise MembershipError(f"node {node} is named twice")
        if node not in added and membership.member(node) is None:
            raise MembershipError(f"node {node} is no member")
    for member in change.add:
        if member.node_id <= membership.highest_id:
            raise MembershipError(
                f"id {member.node_id} was used before; the next free one is {membership.highest_id + 1}"
            )
        if member.node_id >= LIMIT or member.role is MemberRole.LEAVING:
            raise MembershipError(
                f"node {member.node_id} cannot be added: its id is too high, or its role is leaving"
            )
    for node in change.promote & membership.voters:
        raise MembershipError(f"node {node} is a voter already")
    for node in change.demote & membership.learners:
        raise MembershipError(f"node {node} is a learner already")


def _updated(membership: Membership, old: Member, new: Member) -> Member:
    """A directory is bound to its id for good: another one does not hold what this node promised with its vote."""
    if old.instance and new.instance not in ("", old.instance):
        raise MembershipError(
            f"node {old.node_id} is bound to the directory {old.instance}; one with another directory is another "
            "node: remove this one, and add that under a new id"
        )
    if new.address and new.address != old.address:
        for other in membership.members:
            if other.node_id != old.node_id and other.address == new.address:
                raise MembershipError(f"the address {new.address} belongs to node {other.node_id}")
    return Member(
        old.node_id, old.role, new.address or old.address, new.instance or old.instance, new.version or old.version
    )


def _check_uses(after: Membership, change: Change) -> None:
    """No two members share a directory, and no two new ones an address. (A new one may come at the address of one
    that is lost, before that is removed.)"""
    instances = Counter(member.instance for member in after.members if member.instance)
    addresses = Counter(member.address for member in change.add + change.update if member.address)
    for what, counted in (("directory", instances), ("address", addresses)):
        for value, count in counted.items():
            if count > 1:
                raise MembershipError(f"the {what} {value} would belong to two members")


def _check_level(before: Membership, after: Membership) -> None:
    if after.level < before.level:
        raise MembershipError(f"the feature level is {before.level} and never falls")
    for member in after.members:
        if member.version < after.level:
            raise MembershipError(
                f"node {member.node_id} knows feature level {member.version}, {after.level} would be in use"
            )
