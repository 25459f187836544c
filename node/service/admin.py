"""What operators ask a node (`admin.proto`)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import grpc
import grpc.aio
from raftstorage.node.asking import admin_at
from raftstorage.node.driver import Driver, LeadershipLost
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.joining import identify
from raftstorage.node.lag import Lag
from raftstorage.node.members import Members, NoSuchMember
from raftstorage.node.options import OptionError, split_address
from raftstorage.node.raft.membership import MembershipError
from raftstorage.node.raft.types import NotLeader, Role
from raftstorage.node.service.verify import NotNow, Verifier
from raftstorage.node.versions import Versions, may_join
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc
from raftstorage.proto.storage_pb2 import PackState

INVITE_SECONDS = 60.0


class Refused(Exception):
    """What is asked for is not done: the status code and the reason."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Insights:
    """What a status tells beside the driver's own; each a function, so that the service holds no state of others.

    `connected(node id)`: is a peer's stream up; `sessions()`: connected clients; `lag(match index)`: on a leader;
    `problems()`: what is wrong; `transfer()`: bytes of a snapshot that came, and all; `disk()`: bytes free, and
    the reserve; `packing()`: of this node's newest pack.
    """

    def __init__(
        self,
        connected: Callable[[int], bool] = lambda node: False,
        sessions: Callable[[], int] = lambda: 0,
        lag: Callable[[int], Lag] = lambda match: Lag(0, 0, 0, 0.0),
        problems: Callable[[], Sequence[str]] = lambda: (),
        transfer: Callable[[], tuple[int, int]] = lambda: (0, 0),
        disk: Callable[[], tuple[int, int]] = lambda: (0, 0),
        packing: Callable[[], PackState] = PackState,
    ) -> None:
        self.connected = connected
        self.sessions = sessions
        self.lag = lag
        self.problems = problems
        self.transfer = transfer
        self.disk = disk
        self.packing = packing


class AdminService(admin_pb2_grpc.AdminServicer):
    """The whole service of a node that is a member."""

    def __init__(
        self, driver: Driver, identity: NodeIdentity, members: Members, versions: Versions, insights: Insights
    ) -> None:
        self._driver = driver
        self._identity = identity
        self._members = members
        self._versions = versions
        self._insights = insights
        self._verifier = Verifier(lambda: driver.engine)
        self._started = time.monotonic()
        self._software = metadata.version("raftstorage")

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802 - generated name
        status = self._driver.status()
        engine = self._driver.engine
        size, objects = engine.approximate_size()
        came, of = self._insights.transfer()
        free, reserve = self._insights.disk()
        packing = self._insights.packing()
        reply = pb.StatusReply(
            version=self._software,
            protocol_version=self._versions.protocol[1],
            cluster_id=self._identity.cluster_id,
            node_id=status.node_id,
            role=status.role.value,
            term=status.term,
            leader_id=status.leader,
            first_index=status.first_index,
            last_index=status.last_index,
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            last_tid=engine.last_tid,
            log_bytes=status.log_bytes,
            database_bytes=size,
            objects=objects,
            uptime_seconds=time.monotonic() - self._started,
            sessions=self._insights.sessions(),
            level=status.membership.level,
            joint=status.membership.is_joint,
            problems=self._insights.problems(),
            disk_free_bytes=free,
            disk_reserve_bytes=reserve,
            snapshot=pb.Transfer(bytes=came, total_bytes=of),
            packed=packing.tid,
            pack_phase=packing.phase,
        )
        for peer in status.peers:
            member = status.membership.member(peer.node_id)
            told = reply.peers.add(
                node_id=peer.node_id,
                address=member.address if member is not None else "",
                connected=self._insights.connected(peer.node_id),
                match_index=peer.match_index,
                state=peer.state,
                member_role=member.role.value if member is not None else "",
            )
            if status.role.value == "leader":
                lag = self._insights.lag(peer.match_index)
                told.lag_entries, told.lag_transactions, told.lag_bytes, told.lag_seconds = lag
        return reply

    async def TransferLeader(  # noqa: N802 - generated name
        self, request: pb.TransferLeaderRequest, context: Any
    ) -> pb.TransferLeaderReply:
        with _statuses() as refusal:
            leader = await self._driver.transfer_leader(request.to_node)
            if not leader:
                raise LeadershipLost("this node was removed and does not lead any more; who does it is not told")
            return pb.TransferLeaderReply(leader_id=leader)
        await refusal.abort(context)
        raise AssertionError("abort returned")

    async def Members(self, request: pb.MembersRequest, context: Any) -> pb.MembersReply:  # noqa: N802
        return self._reply()

    async def ChangeMembers(  # noqa: N802 - generated name
        self, request: pb.ChangeMembersRequest, context: Any
    ) -> pb.MembersReply:
        with _statuses() as refusal:
            await self._change(request)
            return self._reply()
        await refusal.abort(context)
        raise AssertionError("abort returned")

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinReply:  # noqa: N802 - generated name
        with _statuses() as refusal:
            return await self._join(request)
        await refusal.abort(context)
        raise AssertionError("abort returned")

    async def Invite(self, request: pb.InviteRequest, context: Any) -> pb.InviteReply:  # noqa: N802
        me = self._identity
        reason = f"this is node {me.node_id} of cluster {me.cluster_id} already"
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        raise AssertionError("abort returned")

    async def Identify(self, request: pb.IdentifyRequest, context: Any) -> pb.IdentifyReply:  # noqa: N802
        me = self._identity
        return pb.IdentifyReply(cluster_id=me.cluster_id, node_id=me.node_id, instance=me.instance)

    async def Verify(  # noqa: N802 - generated name
        self, request: pb.VerifyRequest, context: Any
    ) -> AsyncIterator[pb.VerifyReport]:
        try:
            async for report in self._verifier.reports(request):
                yield report
        except NotNow as error:
            await context.abort(error.code, str(error))

    # ---- what they do --------------------------------------------------------------------------------

    def _reply(self) -> pb.MembersReply:
        membership = self._driver.membership
        return pb.MembersReply(
            members=[
                pb.MemberStatus(
                    node_id=member.node_id,
                    address=member.address,
                    role=member.role.value,
                    instance=member.instance,
                    version=member.version,
                )
                for member in membership.members
            ],
            joint=membership.is_joint,
            index=self._driver.membership_index,
            leader_id=self._driver.leader,
            level=membership.level,
        )

    async def _change(self, request: pb.ChangeMembersRequest) -> None:
        self._check_leads()  # others may not know yet who is a member
        members = self._members
        match request.WhichOneof("change"):
            case "add":
                await self._invite(request.add, learner=False)
            case "add_learner":
                await self._invite(request.add_learner, learner=True)
            case "promote":
                await members.promote(request.promote)
            case "demote":
                await members.demote(request.demote)
            case "remove":
                await members.remove(request.remove)
            case "replace":
                if request.replace.old == request.replace.by:
                    raise MembershipError(f"node {request.replace.old} is named twice")
                await members.promote(request.replace.by, request.replace.old)
            case _:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no change is asked for")

    async def _invite(self, address: str, *, learner: bool) -> None:
        """Has the waiting node at `address` join: it asks this leader itself, and names its directory."""
        _check_address(address)
        members = [member.address for member in self._driver.membership.members if member.address]
        try:
            async with admin_at(address) as admin:
                invitation = pb.InviteRequest(addresses=members, learner=learner)
                await admin.Invite(invitation, timeout=INVITE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise MembershipError(f"{address} does not join: {error.details()}") from error
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, f"{address} does not answer, so it was not added: {error.details()}"
            ) from error

    async def _join(self, request: pb.JoinRequest) -> pb.JoinReply:
        self._check_leads()
        _check_address(request.address)
        oldest, newest = request.min_protocol_version or request.protocol_version, request.protocol_version
        theirs = Versions((oldest, newest), request.version, request.oldest_version, request.software[:64])
        reason = may_join(self._driver.membership.level, theirs, self._versions)
        if reason:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, reason)
        known = self._members.admitted(request.instance)
        if known is None:
            await self._check_answers(request)
        member, replaces = await self._members.admit(request.address, request.instance, request.version)
        return pb.JoinReply(cluster_id=self._identity.cluster_id, node_id=member.node_id, replaces=replaces)

    async def _check_answers(self, request: pb.JoinRequest) -> None:
        """A member that nobody can dial would be a learner for ever."""
        try:
            found = await identify(request.address)
        except grpc.aio.AioRpcError as error:
            reason = f"{request.address} does not answer, so that no member could reach it: {error.details()}"
            raise Refused(grpc.StatusCode.UNAVAILABLE, reason) from error
        if found.instance != request.instance:
            who = f"node {found.node_id} of cluster {found.cluster_id}" if found.node_id else "another empty node"
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"{request.address} is answered by {who}")

    def _check_leads(self) -> None:
        driver = self._driver
        if driver.is_ready_leader:
            return
        if driver.role is Role.LEADER:
            raise MembershipError("the leader is new and has not committed anything yet; try again")
        raise NotLeader(f"node {driver.node_id} does not lead; node {driver.leader or '?'} does")


def _check_address(address: str) -> None:
    try:
        port = split_address(address)[1]
    except OptionError as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    if port == 0:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"{address}: port 0 cannot be dialled")


class _Refusal:
    """The status that an error became."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.UNKNOWN
        self.reason = ""

    async def abort(self, context: Any) -> None:
        await context.abort(self.code, self.reason)


@contextmanager
def _statuses() -> Iterator[_Refusal]:
    """Swallows what an operator can meet, for `abort` behind the block to tell."""
    refusal = _Refusal()
    code = grpc.StatusCode
    try:
        yield refusal
    except Refused as error:
        refusal.code, refusal.reason = error.code, str(error)
    except NoSuchMember as error:
        refusal.code, refusal.reason = code.NOT_FOUND, str(error)
    except LookupError as error:
        refusal.code, refusal.reason = code.NOT_FOUND, str(error.args[0])
    except (NotLeader, MembershipError) as error:
        refusal.code, refusal.reason = code.FAILED_PRECONDITION, str(error)
    except LeadershipLost as error:
        refusal.code, refusal.reason = code.UNAVAILABLE, str(error)
    except TimeoutError:
        refusal.code, refusal.reason = code.DEADLINE_EXCEEDED, "not done in time; it may still come about"
