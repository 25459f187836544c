"""Changes of the membership on the leader: what is asked for, and what the leader sees to by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from raftstorage.node.driver import Driver, LeadershipLost
from raftstorage.node.engine.api import Applied
from raftstorage.node.raft.membership import Change, Member, MemberRole, Membership, MembershipError
from raftstorage.node.raft.types import Entry, NotLeader, Role, RoleChange
from raftstorage.node.versions import cluster_level

log = logging.getLogger(__name__)

#: How long a change may take to be committed, in seconds; the caller may know of a shorter time.
CHANGE_SECONDS = 30.0
#: A learner that misses no more entries than this is near enough for a vote.
NEAR_ENTRIES = 1000
#: The feature level from which on the log may hold memberships.
KNOWS_MEMBERSHIP = 1


class NoSuchMember(LookupError):
    """The change names a node that is no member."""


class Members:
    """Listens to the driver from the start. Used from its loop."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: dict[int, tuple[int, asyncio.Future[None]]] = {}  # index -> term, who waits
        self._seen: dict[int, Member] = {}  # what nodes said of themselves when they shook hands
        self._changed = asyncio.Event()
        driver.on_applied.append(self._applied)
        driver.on_role.append(self._role)
        driver.on_membership.append(lambda membership: self._changed.set())

    @property
    def membership(self) -> Membership:
        return self._driver.membership

    # ---- asked for -----------------------------------------------------------------------------------

    async def change(self, change: Change, timeout: float = CHANGE_SECONDS) -> Membership:  # noqa: ASYNC109
        """Brings `change` about; returns the membership then, in which no change is under way any more.

        NotLeader; MembershipError: refused, nothing was changed. LeadershipLost, TimeoutError: it is not known
        whether it will come about.
        """
        async with asyncio.timeout(timeout):
            await self._settled()
            self._check_all_know()
            index = self._driver.propose_membership(change)
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[index] = self._driver.term, done
            try:
                await done
            finally:
                self._waiting.pop(index, None)
            while self.membership.is_joint:
                await self._next_change()
            await self._settled()
            return self.membership

    def _check_all_know(self) -> None:
        """MembershipError while a member runs software that does not know what a changed membership is."""
        old = sorted(told.node_id for told in self._seen.values() if told.version < KNOWS_MEMBERSHIP)
        old = [node_id for node_id in old if node_id in self.membership.ids]
        if old:
            nodes = ", ".join(str(node_id) for node_id in old)
            raise MembershipError(
                f"members cannot change while node {nodes} runs older software: upgrade it first"
            )

    async def _settled(self) -> None:
        """Returns when no change is under way. LeadershipLost."""
        while self._driver.role is Role.LEADER and (
            self.membership.is_joint or self._driver.membership_index > self._driver.applied_index
        ):
            await self._next_change()

    async def _certain(self) -> None:
        """When it returns, what the membership says is committed. Errors as `change`."""
        async with asyncio.timeout(CHANGE_SECONDS):
            await self._settled()
        if self._driver.role is not Role.LEADER:
            raise NotLeader("leadership was lost while a change was under way")

    async def _next_change(self) -> None:
        if self._driver.role is not Role.LEADER and self.membership.is_joint:
            raise LeadershipLost("leadership was lost while the change was under way; another leader finishes it")
        self._changed.clear()
        await self._changed.wait()

    def _applied(self, entries: Sequence[tuple[Entry, Applied]]) -> None:
        for entry, outcome in entries:
            term, done = self._waiting.get(entry.index, (0, None))
            if done is not None and not done.done():
                if entry.term == term:
                    done.set_result(None)
                else:
                    done.set_exception(LeadershipLost("another leader's entry took the place of the change"))
            if outcome.membership:
                self._changed.set()

    def _role(self, change: RoleChange) -> None:
        """Who is deposed does not know what becomes of its entries, but for those that are applied here yet."""
        if change.role is not Role.LEADER:
            for _term, done in self._waiting.values():
                if not done.done():
                    done.set_exception(LeadershipLost("leadership was lost while the change was under way"))
        self._changed.set()

    # ---- one node's wishes -----------------------------------------------------------------------------

    def admitted(self, instance: str) -> Member | None:
        """The member whose directory is named so."""
        return next((member for member in self.membership.members if member.instance == instance), None)

    def at(self, address: str) -> Member | None:
        """The newest member at `address`."""
        return next((m for m in reversed(self.membership.members) if m.address == address), None)

    async def admit(self, address: str, instance: str, version: int) -> tuple[Member, int]:
        """Lets an empty node in as a learner; the member, and the one at its address that it is to replace, or 0.

        Errors as `change`. A node is told its id only when the entry that has it is committed, also if it asks
        twice. So an id that is lost with its leader was nobody's, and may be given again.
        """
        await self._certain()
        known = self.admitted(instance)
        lost = next((m.node_id for m in self.membership.members if m.address == address and m is not known), 0)
        if known is not None:
            return known, lost
        node_id = self.membership.highest_id + 1
        member = Member(node_id, MemberRole.LEARNER, address, instance, version)
        membership = await self.change(Change(add=(member,)))
        log.info("node %d at %s is a learner now", node_id, address)
        found = membership.member(node_id)
        return (found or member), lost

    def check_near(self, node_id: int) -> None:
        """MembershipError when a learner misses too much to be given a vote."""
        status = self._driver.status()
        match = next((peer.match_index for peer in status.peers if peer.node_id == node_id), 0)
        missing = status.last_index - match
        if missing > NEAR_ENTRIES:
            raise MembershipError(f"node {node_id} has not caught up: it misses {missing} entries")

    async def promote(self, node_id: int, replaces: int = 0) -> Membership:
        """Gives a learner that has caught up a vote, in the place of the member `replaces` (0: nobody)."""
        await self._certain()
        member = self._known(node_id)
        gone = frozenset({self._known(replaces).node_id} if replaces else ())
        if member.role is MemberRole.VOTER and not gone:
            return self.membership
        self.check_near(node_id)
        promote = frozenset({node_id} if member.role is not MemberRole.VOTER else ())
        return await self.change(Change(promote=promote, remove=gone))

    async def demote(self, node_id: int) -> Membership:
        """Takes a voter's vote; it stays a learner."""
        self._known(node_id)
        return await self.change(Change(demote=frozenset({node_id})))

    async def remove(self, node_id: int) -> Membership:
        """Its id is never used again."""
        self._known(node_id)
        return await self.change(Change(remove=frozenset({node_id})))

    def _known(self, node_id: int) -> Member:
        member = self.membership.member(node_id)
        if member is None:
            raise NoSuchMember(f"node {node_id} is no member of this cluster")
        return member

    # ---- what the leader sees to -------------------------------------------------------------------------

    def introduced(self, member: Member) -> None:
        """A node said who it is when it shook hands (this one too, of itself); its role is not looked at."""
        self._seen[member.node_id] = member

    async def tend(self) -> None:
        """Writes into the membership what nodes say of themselves, and raises the feature level when all can."""
        if not self._driver.is_ready_leader:
            return
        change = self._due(self._seen.values())
        if change is None:
            return
        try:
            await self.change(change)
        except (NotLeader, MembershipError, LeadershipLost, TimeoutError) as error:
            log.info("the membership is not brought up to date yet: %s", error or "it takes too long")

    def _due(self, seen: Iterable[Member]) -> Change | None:
        membership = self.membership
        updates = []
        for told in seen:
            known = membership.member(told.node_id)
            if known is None or not told.instance or (known.instance and known.instance != told.instance):
                continue
            newer = replace(
                known, address=told.address or known.address, instance=told.instance, version=told.version
            )
            if newer != known:
                updates.append(newer)
        by_id = {member.node_id: member for member in (*membership.members, *updates)}
        level = cluster_level(member.version for member in by_id.values())
        if level < KNOWS_MEMBERSHIP:  # until each was heard once, one may be too old for such an entry
            return None
        if updates or level > membership.level:
            return Change(update=tuple(updates), level=level if level > membership.level else 0)
        return None
