"""What `raftstorage member` and `raftstorage transfer-leader` ask of a cluster's leader."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from raftstorage.ops.errors import CommandError
from raftstorage.ops.status import CHANNEL_OPTIONS, StatusClient, leader_of
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import admin_pb2_grpc
from rich.console import Console
from rich.table import Table

POLL_SECONDS = 0.2


def find_leader(addresses: Sequence[str], timeout: float) -> str:
    """host:port of the leader. CommandError when none is found in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    with StatusClient(addresses) as client:
        while True:
            statuses = client.ask(min(2.0, timeout))
            leader = leader_of(statuses)
            if leader is not None:
                return leader.address
            # The leader may be a member whose address was not given.
            for status in statuses:
                reply = status.reply
                known = next((p.address for p in reply.peers if p.node_id == reply.leader_id), "") if reply else ""
                if known:
                    return known
            if time.monotonic() > deadline:
                reasons = "; ".join(f"{s.address}: {s.error or 'knows no leader'}" for s in statuses)
                raise CommandError(f"no leader was found ({reasons})")
            time.sleep(POLL_SECONDS)  # nodes have no event to tell an operator of an election


def ask_leader(addresses: Sequence[str], timeout: float, call: Callable[[Any], Any]) -> Any:
    """`call(stub)` at the leader's. CommandError with its reason when it says no, or does not answer."""
    leader = find_leader(addresses, timeout)
    with grpc.insecure_channel(leader, options=CHANNEL_OPTIONS) as channel:
        try:
            return call(admin_pb2_grpc.AdminStub(channel))  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
            if code in (
                grpc.StatusCode.FAILED_PRECONDITION,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.UNIMPLEMENTED,
            ):
                raise CommandError(f"refused: {details}") from None
            raise CommandError(f"{leader}: {code.name}: {details}") from None


def members(addresses: Sequence[str], timeout: float) -> pb.MembersReply:
    """The membership as the leader knows it."""
    reply: pb.MembersReply = ask_leader(
        addresses, timeout, lambda stub: stub.Members(pb.MembersRequest(), timeout=timeout)
    )
    return reply


def change(addresses: Sequence[str], timeout: float, **wanted: Any) -> pb.MembersReply:
    """Has the leader change the membership; `wanted`: one field of ChangeMembersRequest. The membership then."""
    request = pb.ChangeMembersRequest(**wanted)
    reply: pb.MembersReply = ask_leader(
        addresses, timeout, lambda stub: stub.ChangeMembers(request, timeout=timeout)
    )
    return reply


def leave(addresses: Sequence[str], timeout: float, leaving: Sequence[str]) -> pb.MembersReply:
    """Takes the nodes at `leaving` (host:port) out of the cluster, but for who is no member; the membership then.

    A change that is refused is asked for again until `timeout` seconds are over: a leader that has just begun, or
    another change, may be in its way. CommandError.
    """
    deadline = time.monotonic() + timeout
    while True:
        left = max(POLL_SECONDS, deadline - time.monotonic())
        try:
            reply = members(addresses, left)
            node = next((each.node_id for each in reply.members if each.address in leaving), 0)
            if not node and not reply.joint:
                return reply
            if node:
                change(addresses, left, remove=node)
                continue
        except CommandError:
            if time.monotonic() + POLL_SECONDS > deadline:
                raise
        if time.monotonic() > deadline:
            raise CommandError("a change of voters is still under way")
        time.sleep(POLL_SECONDS)  # what is in the way has no event to tell an operator


def transfer(addresses: Sequence[str], timeout: float, to_node: int) -> int:
    """Hands leadership over; the new leader's id."""
    request = pb.TransferLeaderRequest(to_node=to_node)
    reply: pb.TransferLeaderReply = ask_leader(
        addresses, timeout, lambda stub: stub.TransferLeader(request, timeout=timeout)
    )
    return reply.leader_id


def as_json(reply: pb.MembersReply) -> dict[str, Any]:
    """Ready for `json.dumps`."""
    return {
        "joint": reply.joint,
        "index": reply.index,
        "leader_id": reply.leader_id,
        "level": reply.level,
        "members": [
            {
                "node_id": member.node_id,
                "address": member.address,
                "role": member.role,
                "instance": member.instance,
                "version": member.version,
            }
            for member in reply.members
        ],
    }


def show(reply: pb.MembersReply, console: Console) -> None:
    """Prints the table of `raftstorage member list`."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("node", "address", "role", "directory"):
        table.add_column(heading, no_wrap=True)
    for member in reply.members:
        role = member.role + (", leads" if member.node_id == reply.leader_id else "")
        table.add_row(str(member.node_id), member.address, role, member.instance[:8] or "not known yet")
    console.print(table)
    if reply.joint:
        console.print("a change of voters is under way", style="yellow")
