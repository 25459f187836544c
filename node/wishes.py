"""What a node that joined still wants of its cluster: a vote, maybe in the place of the member it was before."""

from __future__ import annotations

import asyncio
import logging

import grpc.aio
from raftstorage.node.asking import admin_at
from raftstorage.node.driver import Driver
from raftstorage.node.identity import Found, NodeDirectory, Wish
from raftstorage.node.raft.membership import MemberRole
from raftstorage.proto import admin_pb2 as pb

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0
CALL_SECONDS = 30.0


class Wishes:
    """`run` until all are fulfilled. A crash forgets none: they are in `node.json`."""

    def __init__(self, driver: Driver, directory: NodeDirectory) -> None:
        self._driver = driver
        self._directory = directory
        self._told = ""

    async def run(self) -> None:
        found = self._directory.found
        wish = found.wish if found is not None else Wish()
        while found is not None and wish != Wish():
            if self._fulfilled(wish):
                self._directory.write(Found(found.identity, Wish()))
                log.info("has a vote now")
                return
            await self._ask(wish)
            await asyncio.sleep(ASK_SECONDS)

    def _fulfilled(self, wish: Wish) -> bool:
        """By what is committed: what is only in the log may still be taken back."""
        driver = self._driver
        member = driver.membership.member(driver.node_id)
        if driver.membership_index > driver.applied_index or driver.membership.is_joint:
            return False
        voting = member is not None and member.role is MemberRole.VOTER
        return (voting or not wish.vote) and wish.replaces not in driver.membership.ids

    async def _ask(self, wish: Wish) -> None:
        """The leader says no until this node has caught up."""
        driver = self._driver
        leader = driver.membership.member(driver.leader)
        if leader is None or not leader.address:
            return
        request = pb.ChangeMembersRequest(promote=driver.node_id)
        if wish.replaces in driver.membership.ids:
            request = pb.ChangeMembersRequest(replace=pb.Replacement(old=wish.replaces, by=driver.node_id))
        try:
            async with admin_at(leader.address) as admin:
                await admin.ChangeMembers(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if self._told != error.details():
                self._told = error.details() or ""
                log.info("no vote yet: %s", self._told)
