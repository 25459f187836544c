"""A node's one gRPC port: peers, storage, admin, health and reflection."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from raftstorage.node.driver import Driver
from raftstorage.node.options import split_address
from raftstorage.node.service.parsing import RefuseMalformed
from raftstorage.node.service.peer_dialer import MAX_MESSAGE_BYTES
from raftstorage.proto import admin_pb2, admin_pb2_grpc, raft_pb2, raft_pb2_grpc, storage_pb2, storage_pb2_grpc

log = logging.getLogger(__name__)

STORAGE = storage_pb2.DESCRIPTOR.services_by_name["Storage"].full_name
#: Health of this service name: SERVING on the leader alone, once it can take commits.
LEADER = "raftstorage.leader"

SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # two nodes on one port would share its connections
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Peers and clients ping a silent connection every 10 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


class PortInUse(Exception):
    """An address cannot be listened on; the message names it."""


def take_port(server: grpc.aio.Server, address: str) -> int:
    """Makes `server` listen on host:port and returns the port (a free one for port 0). PortInUse."""
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise PortInUse(f"cannot listen on {address}: {why_not(address)}") from error


class GrpcServer:
    """Serves on one port. `bind` takes the port, `start` opens it."""

    def __init__(self, driver: Driver, peers: Any, storage: Any, admin: Any) -> None:
        self._driver = driver
        self._server = grpc.aio.server(interceptors=[RefuseMalformed()], options=SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stubs lack it
        self._changed = asyncio.Event()
        self._stopping = False
        self._health_task: asyncio.Task[None] | None = None
        raft_pb2_grpc.add_PeersServicer_to_server(peers, self._server)  # type: ignore[no-untyped-call]
        storage_pb2_grpc.add_StorageServicer_to_server(storage, self._server)  # type: ignore[no-untyped-call]
        admin_pb2_grpc.add_AdminServicer_to_server(admin, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (
                raft_pb2.DESCRIPTOR.services_by_name["Peers"].full_name,
                STORAGE,
                admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ),
            self._server,
        )
        driver.on_role.append(lambda change: self._changed.set())
        driver.on_ready.append(self._changed.set)

    def bind(self, address: str) -> int:
        """Takes host:port and returns the port (a free one for port 0). PortInUse."""
        return take_port(self._server, address)

    async def start(self) -> None:
        await self._set_health()
        await self._server.start()
        self._health_task = asyncio.create_task(self._keep_health(), name="raftstorage-health")

    async def announce_stop(self) -> None:
        """From here on health says NOT_SERVING, so that no new client comes."""
        self._stopping = True
        await self._set_health()

    async def stop(self, grace: float) -> None:
        """Ends all calls, those still running after `grace` seconds by force."""
        if self._health_task is not None:
            self._health_task.cancel()
            await asyncio.gather(self._health_task, return_exceptions=True)
        await self._server.stop(grace)

    async def _keep_health(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._set_health()

    async def _set_health(self) -> None:
        up = self._driver.running and self._driver.leader != 0 and not self._stopping
        leads = self._driver.is_ready_leader and not self._stopping
        for service, serving in (("", up), (STORAGE, up), (LEADER, leads)):
            status = health_pb2.HealthCheckResponse
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)


def why_not(address: str) -> str:
    """The system's reason why an address cannot be listened on, which gRPC does not tell."""
    host, port = split_address(address)
    try:
        family, kind, protocol, _name, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "the port was in use just now"
