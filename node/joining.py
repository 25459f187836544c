"""How an empty node becomes a member: it asks the leader of a running cluster, and waits for an invitation if it
knows none. Until then its port answers Identify and Invite only."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from raftstorage.node.asking import admin_at
from raftstorage.node.identity import Found, NodeDirectory, NodeIdentity, Wish, new_instance
from raftstorage.node.versions import Versions
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc

log = logging.getLogger(__name__)

CALL_SECONDS = 5.0
BACKOFF_SECONDS = (0.1, 2.0)
#: Answers that another try will not change.
FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


class JoinError(Exception):
    """The node was not let in; the message says by whom and why, in one line."""


def begin(directory: NodeDirectory) -> Found:
    """Names the directory, durably, before anyone is asked: who dies in between asks again by the same name."""
    if directory.found is not None:
        return directory.found
    found = Found(NodeIdentity("", 0, {}, new_instance()))
    directory.write(found)
    return found


async def join(
    directory: NodeDirectory,
    addresses: Sequence[str],
    own_address: str,
    *,
    vote: bool,
    versions: Versions,
    patience: float,
) -> NodeIdentity:
    """Asks the cluster that `addresses` are of until it lets this node in; writes and returns what it is then.

    `own_address`: where the others can dial it, answering Identify. JoinError: refused, or nobody who could let it
    in answered for `patience` seconds.
    """
    found = begin(directory)
    request = pb.JoinRequest(
        address=own_address,
        instance=found.identity.instance,
        version=versions.level,
        oldest_version=versions.oldest_level,
        protocol_version=versions.protocol[1],
        min_protocol_version=versions.protocol[0],
        software=versions.software,
    )
    deadline = asyncio.get_running_loop().time() + patience
    attempt, problem = 0, ""
    while True:
        reply, problem = await _ask_all(addresses, request)
        if reply is not None:
            break
        wait = pause(attempt)
        attempt += 1
        if asyncio.get_running_loop().time() + wait > deadline:
            raise JoinError(f"no cluster at {', '.join(addresses)} lets this node in: {problem}")
        await asyncio.sleep(wait)
    identity = NodeIdentity(reply.cluster_id, reply.node_id, {}, found.identity.instance)
    directory.write(Found(identity, Wish(vote, reply.replaces if vote else 0)))
    log.info("joined as node %d", identity.node_id, extra={"cluster_id": identity.cluster_id})
    return identity


def pause(attempt: int) -> float:
    """Seconds to wait after that many tries before this one: longer each time, and never the same for all."""
    low, high = BACKOFF_SECONDS
    return random.uniform(low, min(high, 2 * low * 2**attempt))


async def _ask_all(addresses: Sequence[str], request: pb.JoinRequest) -> tuple[pb.JoinReply | None, str]:
    """The leader's answer; else the most telling reason why there is none. JoinError for a final refusal."""
    problem = ""
    for address in list(addresses):
        leader, reason = await _leader_near(address)
        if not leader:
            problem = problem or reason
            continue
        try:
            async with admin_at(leader) as admin:
                return await admin.Join(request, timeout=CALL_SECONDS * 3), ""
        except grpc.aio.AioRpcError as error:
            problem = f"{leader}: {error.code().name}: {error.details()}"
            if error.code() in FINAL:
                raise JoinError(problem) from error
    return None, problem


async def _members_at(address: str) -> pb.MembersReply:
    """What the node at `address` knows of its cluster. grpc.aio.AioRpcError."""
    async with admin_at(address) as admin:
        return await admin.Members(pb.MembersRequest(), timeout=CALL_SECONDS)  # type: ignore[no-any-return]


async def _leader_near(address: str) -> tuple[str, str]:
    """The address of the leader that the node at `address` knows; empty with the reason when there is none."""
    try:
        members = await _members_at(address)
    except grpc.aio.AioRpcError as error:
        return "", f"{address}: {error.code().name}: {error.details()}"
    leader = next((member.address for member in members.members if member.node_id == members.leader_id), "")
    return leader, f"{address}: no leader is known there"


async def members_near(addresses: Sequence[str]) -> Sequence[pb.MemberStatus]:
    """The members, as the leader that one of `addresses` knows sees them; none when nobody knows one."""
    for leader, _reason in await asyncio.gather(*map(_leader_near, addresses)):
        if leader:
            try:
                reply = await _members_at(leader)
            except grpc.aio.AioRpcError as error:
                log.info("%s, which leads, does not say who is a member: %s", leader, error.details())
                continue
            if any(each.node_id == reply.leader_id and each.address == leader for each in reply.members):
                return tuple(reply.members)
    return ()


async def cluster_runs(addresses: Sequence[str]) -> bool:
    """Does one of `addresses` answer that has had a leader? It need not know one now."""
    return any(await asyncio.gather(*map(_has_had_a_leader, addresses)))


async def _has_had_a_leader(address: str) -> bool:
    try:
        async with admin_at(address) as admin:
            status = await admin.Status(pb.StatusRequest(), timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError:
        return False
    return bool(status.last_index)


async def identify(address: str) -> pb.IdentifyReply:
    """Who listens at `address`. grpc.aio.AioRpcError when nobody answers."""
    async with admin_at(address, afresh=True) as admin:
        return await admin.Identify(  # type: ignore[no-any-return]
            pb.IdentifyRequest(), timeout=CALL_SECONDS, wait_for_ready=True
        )


class WaitingRoom(admin_pb2_grpc.AdminServicer):
    """The port of a node that is no member yet. `invited` resolves with the cluster's addresses and learner."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._joined: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.invited: asyncio.Future[tuple[tuple[str, ...], bool]] = asyncio.get_running_loop().create_future()

    async def Identify(self, request: pb.IdentifyRequest, context: Any) -> pb.IdentifyReply:  # noqa: N802
        return pb.IdentifyReply(instance=self._instance)

    async def Invite(self, request: pb.InviteRequest, context: Any) -> pb.InviteReply:  # noqa: N802
        if not request.addresses:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an invitation names addresses of the cluster")
        if not self.invited.done():
            self.invited.set_result((tuple(request.addresses), request.learner))
        try:
            return pb.InviteReply(node_id=await asyncio.shield(self._joined))
        except JoinError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        raise AssertionError("abort returned")

    def joined(self, node_id: int) -> None:
        """Answers who invited."""
        if not self._joined.done():
            self._joined.set_result(node_id)

    def failed(self, error: JoinError) -> None:
        """Answers who invited; without one nobody hears it here."""
        if not self._joined.done() and self.invited.done():
            self._joined.set_exception(error)
            self._joined.exception()
