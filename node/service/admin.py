"""What operators ask a node (`admin.proto`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import grpc
from raftstorage.node.disk_space import DiskWatcher
from raftstorage.node.driver import Driver, LeadershipLost
from raftstorage.node.identity import NodeIdentity
from raftstorage.node.raft.types import NotLeader
from raftstorage.proto import PROTOCOL_VERSION, admin_pb2_grpc
from raftstorage.proto import admin_pb2 as pb


class AdminService(admin_pb2_grpc.AdminServicer):
    """`connected(node id)`: is a peer's stream up; `sessions()`: connected clients."""

    def __init__(
        self,
        driver: Driver,
        identity: NodeIdentity,
        connected: Callable[[int], bool],
        sessions: Callable[[], int],
        disk: DiskWatcher | None = None,
    ) -> None:
        self._driver = driver
        self._identity = identity
        self._connected = connected
        self._sessions = sessions
        self._disk = disk
        #: What an operator should see to; each is asked for a sentence, empty when there is nothing.
        self.problems: list[Callable[[], str]] = [] if disk is None else [disk.problem]
        self._started = time.monotonic()
        self._version = metadata.version("raftstorage")

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802 - generated name
        status = self._driver.status()
        engine = self._driver.engine
        size, objects = engine.approximate_size()
        return pb.StatusReply(
            version=self._version,
            protocol_version=PROTOCOL_VERSION,
            cluster_id=self._identity.cluster_id,
            node_id=status.node_id,
            role=status.role.value,
            term=status.term,
            leader_id=status.leader,
            last_index=status.last_index,
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            last_tid=engine.last_tid,
            log_bytes=status.log_bytes,
            database_bytes=size,
            objects=objects,
            uptime_seconds=time.monotonic() - self._started,
            sessions=self._sessions(),
            problems=[found for problem in self.problems if (found := problem())],
            disk_free_bytes=self._disk.gauge.space.free if self._disk is not None else 0,
            disk_reserve_bytes=self._disk.gauge.reserve if self._disk is not None else 0,
            peers=[
                pb.PeerStatus(
                    node_id=peer.node_id,
                    address=self._identity.members[peer.node_id],
                    connected=self._connected(peer.node_id),
                    match_index=peer.match_index,
                    state=peer.state,
                )
                for peer in status.peers
            ],
        )

    async def TransferLeader(  # noqa: N802 - generated name
        self, request: pb.TransferLeaderRequest, context: Any
    ) -> pb.TransferLeaderReply:
        try:
            return pb.TransferLeaderReply(leader_id=await self._driver.transfer_leader(request.to_node))
        except NotLeader as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except LookupError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error.args[0]))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no other node took over")
        except LeadershipLost as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        raise AssertionError("abort returned")
