"""Which version of the protocol is spoken with a client, and what it hears of the cluster's."""

from __future__ import annotations

import grpc
from raftstorage.node.versions import Versions
from raftstorage.proto import storage_pb2 as pb

from tests.unit.service.session_world import run, world


@run
async def test_the_newest_common_version_is_spoken() -> None:
    async with world(versions=Versions((2, 4)), level=lambda: 7) as it:
        for newest, oldest, common in ((2, 0, 2), (3, 1, 3), (9, 4, 4), (9, 1, 4)):
            client = it.connect()
            welcome = (await client.hello(protocol_version=newest, min_protocol_version=oldest)).welcome
            assert (welcome.min_protocol_version, welcome.protocol_version, welcome.level) == (2, 4, 7)
            assert [session.protocol for session in it.service._sessions][-1] == common


@run
async def test_a_client_without_a_common_version_is_refused_by_both_ranges() -> None:
    async with world(versions=Versions((2, 4))) as it:
        for newest, oldest, theirs in ((1, 0, "1"), (9, 5, "5 to 9"), (0, 0, "0"), (3, 9, "9 to 3")):
            client = it.connect()
            failure = (await client.hello(protocol_version=newest, min_protocol_version=oldest)).failure
            assert failure.reason == pb.PROTOCOL_MISMATCH
            assert failure.message == f"this node speaks protocol 2 to 4, not {theirs}"
            assert await client.code() is grpc.StatusCode.UNIMPLEMENTED
