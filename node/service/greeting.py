"""What clients are told of the cluster: who leads, who the members are."""

from __future__ import annotations

from raftstorage.node.raft.membership import MemberRole
from raftstorage.node.standing import Standing
from raftstorage.proto import storage_pb2 as pb


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
