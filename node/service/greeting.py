"""What clients are told of the cluster: who leads, who the members are."""

from __future__ import annotations

from raftstorage.node.raft.membership import MemberRole
from raftstorage.node.service.validation import SessionLimits
from raftstorage.node.standing import Standing
from raftstorage.proto import storage_pb2 as pb
from raftstorage.proto.versions import Range


def leader_message(driver: Standing, level: int) -> pb.Leader:
    """As this node knows it; `level`: the feature level that the log may use."""
    membership = driver.membership
    leader = membership.member(driver.leader)
    return pb.Leader(
        term=driver.term,
        node_id=driver.leader,
        address=leader.address if leader is not None else "",
        members=[
            pb.Member(node_id=member.node_id, address=member.address, learner=member.role is MemberRole.LEARNER)
            for member in membership.members
        ],
        level=level,
    )


def welcome_message(
    driver: Standing, cluster_id: str, limits: SessionLimits, speaks: Range, level: int
) -> pb.Welcome:
    """The answer to a Hello that fits; `speaks`: oldest and newest protocol version."""
    return pb.Welcome(
        protocol_version=speaks[1],
        min_protocol_version=speaks[0],
        level=level,
        packed=driver.engine.packed,
        cluster_id=cluster_id,
        node_id=driver.node_id,
        last_tid=driver.engine.last_tid,
        leader=leader_message(driver, level),
        max_record_bytes=limits.max_record_bytes,
        max_transaction_bytes=limits.max_transaction_bytes,
        lease_ms=limits.lease_ms,
    )
