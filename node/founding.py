"""Who a starting node is: what its directory says, what it is founded as, or what a cluster lets it in as."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from dataclasses import replace

import grpc.aio
from raftstorage.node.identity import DirectoryError, Found, NodeDirectory, NodeIdentity, new_instance
from raftstorage.node.joining import (
    JoinError,
    WaitingRoom,
    begin,
    cluster_runs,
    join,
    members_near,
    pause,
)
from raftstorage.node.options import NodeOptions
from raftstorage.node.service.server import SERVER_OPTIONS, take_port
from raftstorage.node.versions import Versions
from raftstorage.node.wal import Wal
from raftstorage.proto import admin_pb2_grpc

log = logging.getLogger(__name__)


async def settle(directory: NodeDirectory, options: NodeOptions, versions: Versions) -> NodeIdentity:
    """The node's identity, durable in `directory`.

    DirectoryError: the directory is another node's, or nothing says what an empty one is to become. JoinError: no
    cluster lets it in. PortInUse.
    """
    found = directory.found
    if found is not None and found.identity.node_id:
        if not options.rejoin:
            return directory.claim(options.identity())
        if await _still_member(directory, found.identity, options):
            return directory.claim(
                replace(options.identity(), node_id=0)
            )  # it may have come in anew, as another one
        log.warning("founded node %d while nobody answered who has that place: joins", found.identity.node_id)
        directory.write(Found(NodeIdentity("", 0, {}, new_instance())))
        return await _enter(directory, options, versions)
    if options.rejoin and options.members and (found is not None or await _place_is_taken(options)):
        return await _enter(directory, options, versions)
    if options.members:
        if found is not None:
            raise DirectoryError(
                f"{directory.path} was to join a cluster; found another one in an empty directory"
            )
        return directory.claim(options.identity())
    if options.alone and found is None:
        return directory.claim(NodeIdentity(secrets.token_hex(16), 1, {1: options.advertised}))
    if options.join or options.standby:
        return await _enter(directory, options, versions)
    raise DirectoryError(
        f"{directory.path} is empty: --member or --alone founds a cluster, --join enters one, "
        "--standby waits to be added"
    )


async def _place_is_taken(options: NodeOptions) -> bool:
    """Has the cluster known another directory under this node's id, or removed it? Only its leader can tell.

    It is waited for: the one that fell may be who had this place. Nobody who knows of a cluster: no. JoinError.
    """
    deadline = asyncio.get_running_loop().time() + options.join_seconds
    runs = False
    for attempt in itertools.count():
        members = await members_near(options.others)
        if members:
            mine = next((each for each in members if each.node_id == options.node_id), None)
            return mine is None or bool(mine.instance)
        runs = runs or await cluster_runs(options.others)
        if not runs:
            return False
        wait = pause(attempt)
        if asyncio.get_running_loop().time() + wait > deadline:
            break
        await asyncio.sleep(wait)
    raise JoinError(
        f"the cluster at {', '.join(options.others)} has no leader that could say whether another directory was "
        f"node {options.node_id}'s"
    )


async def _still_member(directory: NodeDirectory, identity: NodeIdentity, options: NodeOptions) -> bool:
    """False: it was founded, and never held anything, while another directory had its place, as the leader says.
    DirectoryError: the leader says that it was removed."""
    members = await members_near(options.others)
    mine = next((each for each in members if each.node_id == identity.node_id), None)
    if members and mine is None:
        raise DirectoryError(
            f"{directory.path} is of node {identity.node_id}, which was removed from the cluster: what is in it "
            "can go, and an empty directory joins as a new member"
        )
    if mine is None or not mine.instance or mine.instance == identity.instance or not identity.members:
        return True
    wal = Wal.open(directory.log)
    try:
        return wal.last_index() > 0
    finally:
        wal.close()


async def _enter(directory: NodeDirectory, options: NodeOptions, versions: Versions) -> NodeIdentity:
    """With a port that answers, so that the cluster can see that the node is reachable before it counts on it."""
    room = WaitingRoom(begin(directory).identity.instance)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    admin_pb2_grpc.add_AdminServicer_to_server(room, server)  # type: ignore[no-untyped-call]
    port = take_port(server, options.listen_address)
    await server.start()
    try:
        addresses, learner = options.others, options.learner
        if options.standby:
            log.info("waits to be added", extra={"address": options.advertised})
            addresses, learner = await room.invited
        own = options.advertised
        if own.endswith(":0"):
            own = f"{own.rpartition(':')[0]}:{port}"
        identity = await join(
            directory, addresses, own, vote=not learner, versions=versions, patience=options.join_seconds
        )
        room.joined(identity.node_id)
        return identity
    except JoinError as error:
        room.failed(error)
        raise
    finally:
        await server.stop(1.0)  # the answer to who invited leaves before the port closes
