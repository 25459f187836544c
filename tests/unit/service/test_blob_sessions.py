"""Blobs over a real gRPC stream: chunks, the transaction that takes them, and reading them back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import google_crc32c
from raftstorage.node.disk_space import Room
from raftstorage.node.raft.types import Role
from raftstorage.node.service.session import ClientSession
from raftstorage.node.service.sessions import SessionLimits
from raftstorage.node.uploads import IDLE_MS, OWN, WINDOW_BYTES, Uploads
from raftstorage.proto import BLOB_CHUNK_BYTES, HISTORY_LEVEL, PARTS_LEVEL
from raftstorage.proto import storage_pb2 as pb

from tests.unit.pieces import pieces
from tests.unit.service.session_world import Client, oid, run, world

UPLOAD = b"U" * 16
#: Chunks that may be in the log and not applied.
IN_LOG = WINDOW_BYTES // BLOB_CHUNK_BYTES
NEW = {"level": lambda: HISTORY_LEVEL}


def crc(data: bytes) -> int:
    return int(google_crc32c.value(data))


def chunk(offset: int, data: bytes, upload_id: bytes = UPLOAD) -> pb.BlobChunk:
    return pb.BlobChunk(upload_id=upload_id, offset=offset, data=data, crc32c=crc(data))


def chunks(data: bytes, upload_id: bytes = UPLOAD, size: int = BLOB_CHUNK_BYTES) -> list[dict[str, Any]]:
    return [{"blob_chunk": chunk(at, data[at : at + size], upload_id)} for at in range(0, len(data), size)]


async def send(client: Client, calls: list[dict[str, Any]]) -> list[pb.Event]:
    numbers = [await client.send(**call) for call in calls]
    return [await client.answer(number) for number in numbers]


async def until(met: Callable[[], object]) -> None:
    """What is waited for is not told to anybody outside of the service."""
    while not met():  # noqa: ASYNC110
        await asyncio.sleep(0)


def body(data: bytes, number: int = 1, base: bytes = bytes(8), upload_id: bytes = UPLOAD) -> bytes:
    blob = pb.Blob(upload_id=upload_id, size=len(data), crc32c=crc(data))
    record = pb.NewRecord(oid=oid(number), base_serial=base, data=b"record", blob=blob)
    return pb.Transaction(records=[record]).SerializeToString()


async def commit(client: Client, data: bytes, identity: bytes = b"T" * 16, **fields: Any) -> pb.Event:
    return await client.ask(commit=pb.Commit(transaction_id=identity, transaction=body(data, **fields)))


async def read(client: Client, number: int, serial: bytes, max_bytes: int = 0) -> bytes:
    found = b""
    while True:
        asked = pb.LoadBlob(
            oid=oid(number), serial=serial, offset=len(found), max_bytes=max_bytes, at_least=serial
        )
        answer = (await client.ask(load_blob=asked)).blob_data
        found += answer.data
        if len(found) == answer.size:
            assert answer.crc32c == crc(found)
            return found
        assert len(answer.data) == (max_bytes or BLOB_CHUNK_BYTES)


@run
async def test_a_blob_goes_in_and_comes_out() -> None:
    data = os.urandom(3 * BLOB_CHUNK_BYTES + 12345)
    async with world(**NEW) as it:
        client = it.connect()
        await client.hello()
        answers = await send(client, chunks(data))
        assert [each.blob_stored.size for each in answers] == [
            min((n + 1) * BLOB_CHUNK_BYTES, len(data)) for n in range(4)
        ]
        assert (await client.ask(blob_chunk=pb.BlobChunk(upload_id=UPLOAD))).blob_stored.size == len(data)
        tid = (await commit(client, data)).committed.tid
        assert await read(client, 1, tid) == data
        assert await read(client, 1, tid, 1 << 20) == data
        assert await read(client, 1, tid, 99_999) == data
        assert it.metric("blob_bytes_total", direction="received") == len(data)
        assert it.metric("blob_bytes_total", direction="sent") == 3 * len(data)
        page = await client.ask(read_transactions=pb.ReadTransactions())
        blob = page.transactions.transactions[0].records[0].blob
        assert (blob.size, blob.crc32c, blob.upload_id) == (len(data), crc(data), b"")
        for number, serial in ((1, oid(7)), (2, tid)):
            refused = (await client.ask(load_blob=pb.LoadBlob(oid=oid(number), serial=serial))).failure
            assert refused.reason == pb.NO_SUCH_OBJECT


@run
async def test_a_gap_and_what_is_there_already_are_answered_with_what_is_there() -> None:
    async with world(**NEW) as it:
        client = it.connect()
        await client.hello()
        first, gap = await send(client, [{"blob_chunk": chunk(0, b"abc")}, {"blob_chunk": chunk(4, b"e")}])
        assert (first.blob_stored.size, gap.blob_stored.upload_id) == (3, UPLOAD)
        assert gap.blob_stored.size in (0, 3)
        proposed = it.metric("queue_items", queue="uploads")
        again, over = await send(client, [{"blob_chunk": chunk(0, b"abc")}, {"blob_chunk": chunk(2, b"cde")}])
        assert (again.blob_stored.size, over.blob_stored.size, proposed) == (3, 5, 0)
        tid = (await commit(client, b"abcde")).committed.tid
        assert await read(client, 1, tid) == b"abcde"


@run
async def test_the_same_chunk_twice_while_it_is_on_its_way() -> None:
    async with world(**NEW) as it:
        client, other = it.connect(), it.connect()
        await client.hello()
        await other.hello()
        it.driver.held = True
        one = await client.send(blob_chunk=chunk(0, b"abcdef"))
        await until(lambda: it.driver.backlog.items)
        two = await other.send(blob_chunk=chunk(0, b"abc"))
        assert (await other.ask(blob_chunk=pb.BlobChunk(upload_id=UPLOAD))).blob_stored.size == 0
        assert it.driver.backlog.items == 1
        it.driver.apply()
        assert (await client.answer(one)).blob_stored.size == (await other.answer(two)).blob_stored.size == 6


@run
async def test_a_transaction_whose_blob_is_not_whole_is_refused() -> None:
    data = b"some bytes"
    async with world(**NEW) as it:
        client = it.connect()
        await client.hello()
        await send(client, chunks(data[:-1]))
        vote = pb.Vote(transaction_id=b"V" * 16, transaction=body(data))
        for refused in ((await client.ask(vote=vote)).failure, (await commit(client, data)).failure):
            assert (refused.reason, refused.oid, refused.code) == (pb.NO_UPLOAD, oid(1), 9)
        # The size alone is not enough:
        blob = pb.Blob(upload_id=UPLOAD, size=len(data) - 1, crc32c=crc(b"others"))
        record = pb.NewRecord(oid=oid(1), data=b"record", blob=blob)
        other = pb.Transaction(records=[record]).SerializeToString()
        refused = (await client.ask(vote=pb.Vote(transaction_id=b"V" * 16, transaction=other))).failure
        assert refused.reason == pb.NO_UPLOAD
        await send(client, chunks(data))
        assert (await client.ask(vote=vote)).vote == pb.VoteReply()
        tid = (await client.ask(finish=pb.Finish(transaction_id=b"V" * 16))).committed.tid
        assert await read(client, 1, tid) == data
        # It is taken: nobody has it a second time.
        assert (await commit(client, data, number=2)).failure.reason == pb.NO_UPLOAD
        assert (await client.ask(blob_chunk=pb.BlobChunk(upload_id=UPLOAD))).blob_stored.size == 0


@run
async def test_what_is_malformed_is_refused_and_changes_nothing() -> None:
    async with world(SessionLimits(max_blob_bytes=10), **NEW) as it:
        client = it.connect()
        await client.hello()
        damaged = chunk(0, b"abc")
        damaged.crc32c ^= 1
        large = chunk(0, bytes(BLOB_CHUNK_BYTES + 1))
        for bad, reason in (
            (damaged, pb.INVALID),
            (large, pb.INVALID),
            (chunk(0, b"abc", b"short"), pb.INVALID),
            (chunk((1 << 63) - 1, b"a"), pb.INVALID),
            (chunk(8, b"abc"), pb.TOO_LARGE),
        ):
            assert (await client.ask(blob_chunk=bad)).failure.reason == reason
        asked = pb.LoadBlob(oid=oid(1), serial=oid(1), max_bytes=(1 << 20) + 1)
        assert (await client.ask(load_blob=asked)).failure.reason == pb.INVALID
        for blob in (pb.Blob(upload_id=b"x"), pb.Blob(), pb.Blob(upload_id=UPLOAD, same_as=oid(1))):
            record = pb.NewRecord(oid=oid(1), data=b"record", blob=blob)
            bad_body = pb.Transaction(records=[record]).SerializeToString()
            answer = await client.ask(commit=pb.Commit(transaction_id=b"T" * 16, transaction=bad_body))
            assert answer.failure.reason == pb.INVALID
        assert it.driver.engine.applied_index == 0


@run
async def test_who_does_not_lead_takes_no_chunks_and_an_old_cluster_none_either() -> None:
    level = [PARTS_LEVEL]
    async with world(level=lambda: level[0]) as it:
        client = it.connect()
        await client.hello()
        assert (await client.ask(blob_chunk=chunk(0, b"abc"))).failure.reason == pb.UNSUPPORTED
        assert (await commit(client, b"")).failure.reason == pb.UNSUPPORTED
        level[0] = HISTORY_LEVEL
        it.driver.held = True
        number = await client.send(blob_chunk=chunk(0, b"abc"))
        await until(lambda: it.driver.backlog.items)
        it.driver.become(Role.FOLLOWER, 2)
        assert (await client.answer(number)).failure.reason == pb.LEADERSHIP_LOST
        assert (await client.ask(blob_chunk=chunk(0, b"abc"))).failure.reason == pb.NOT_LEADER
        reader = it.connect()
        await reader.hello(read_only=True)
        assert (await reader.ask(blob_chunk=chunk(0, b"abc"))).failure.reason == pb.READ_ONLY


@run
async def test_an_upload_fills_no_queue_but_its_own_and_a_commit_passes_it() -> None:
    async with world(**NEW) as it:
        client, other = it.connect(), it.connect()
        await client.hello()
        await other.hello()
        it.driver.held = True
        data = os.urandom(OWN.bytes + BLOB_CHUNK_BYTES)
        calls = chunks(data)
        numbers = [await client.send(**call) for call in calls]
        refused = (await client.answer(numbers[-1])).failure
        assert refused.reason == pb.BUSY and refused.retry_after_ms > 0
        assert it.driver.backlog.items == IN_LOG
        assert it.metric("queue_items", queue="uploads") == len(calls) - 1 - IN_LOG
        done = asyncio.create_task(other.commit(1, 5))
        await until(lambda: it.driver.backlog.items > IN_LOG)
        it.driver.apply(IN_LOG + 1)
        assert (await done).committed.tid
        it.driver.held = False
        it.driver.apply()
        sizes = [(await client.answer(number)).blob_stored.size for number in numbers[:-1]]
        assert sizes == [(n + 1) * BLOB_CHUNK_BYTES for n in range(len(sizes))]
        it.room = Room.LOW
        refused = (await client.ask(**calls[-1])).failure
        assert refused.reason == pb.STORAGE_FULL and refused.retry_after_ms > 0


@run
async def test_a_session_that_ends_leaves_nothing_behind() -> None:
    async with world(**NEW) as it:
        client = it.connect()
        await client.hello()
        it.driver.held = True
        for call in chunks(bytes(8 * BLOB_CHUNK_BYTES)):
            await client.send(**call)
        await until(lambda: it.metric("queue_items", queue="uploads") == 8 - IN_LOG)
        client._call.cancel()
        await until(lambda: not it.metric("queue_items", queue="uploads"))
        it.driver.apply()
        assert it.driver.engine.upload_size(UPLOAD) == IN_LOG * BLOB_CHUNK_BYTES
        uploads = it.service._transacting.uploads
        assert not any(uploads.owned(session).items for session in list(it.service._sessions))


def test_idle_uploads_end_and_others_do_not() -> None:
    """With a log that applies when it is told to, and clocks that are handed in."""

    async def story() -> None:
        async with world(**NEW) as it:
            clock = [10_000.0]
            proposed: list[bytes] = []
            engine = it.driver.engine
            uploads = Uploads(engine, it.driver.propose, lambda: it.driver.term, lambda: clock[0])
            it.driver.on_applied.append(uploads.applied)
            stored: list[pb.Event] = []
            for number in range(150):
                uploads.chunk(None, chunk(0, b"abc", b"%016d" % number), stored.append)
                clock[0] += 0.001
            it.driver.apply()
            await asyncio.sleep(0)
            assert len(stored) == 150
            clock[0] += IDLE_MS / 1000 - 0.05  # the first hundred
            uploads.chunk(None, chunk(3, b"d", b"%016d" % 0), stored.append)
            await asyncio.sleep(0)
            for now in range(10):
                uploads.tick(1000.0 + now)
                await asyncio.sleep(0)
            left = [number for number in range(150) if engine.upload_size(b"%016d" % number) is not None]
            assert left == [0, *range(100, 150)] and not proposed
            clock[0] += 2 * IDLE_MS / 1000
            uploads.tick(1001.0)  # it has just been looked
            assert engine.upload_size(b"%016d" % 0) == 4
            uploads.tick(1100.0)
            await asyncio.sleep(0)
            assert engine.upload_size(b"%016d" % 0) is None

    asyncio.run(story())


def test_owners_take_turns() -> None:
    async def story() -> None:
        async with world(**NEW) as it:
            it.driver.held = True
            uploads = Uploads(it.driver.engine, it.driver.propose, lambda: 1, lambda: 1.0, window_bytes=1)
            it.driver.on_applied.append(uploads.applied)
            order: list[bytes] = []
            for owner in (b"A", b"B", b"C"):
                for at in range(3):
                    name = owner
                    uploads.chunk(owner, chunk(at, b"x", owner * 16), lambda event, name=name: order.append(name))
            while it.driver.backlog.items:
                it.driver.apply()
            assert b"".join(order) == b"AABCABCBC"  # the first one was alone yet

    asyncio.run(story())


def test_an_answer_of_a_large_blob_waits_for_the_client_to_read() -> None:
    """What waits to leave is bounded as for every other call: a blob's bytes count."""

    async def story() -> None:
        session = ClientSession(SessionLimits())
        for _ in range(9):
            session.put(pb.Event(blob_data=pb.BlobData(data=bytes(1 << 20))))
        with_room = asyncio.create_task(session.room())
        await asyncio.sleep(0)
        assert not with_room.done()
        session.take()
        await with_room

    asyncio.run(story())


@run
async def test_a_vote_in_parts_looks_for_its_blobs() -> None:
    data = os.urandom(100)
    whole = pb.Transaction.FromString(body(data, 1))
    whole.records.add(oid=oid(2), data=b"no blob")
    whole.records.add().CopyFrom(pb.Transaction.FromString(body(data, 3, upload_id=b"V" * 16)).records[0])
    bodies, rest = pieces(whole, [1, 1])
    async with world(**NEW) as it:
        client = it.connect()
        await client.hello()
        for name, missing in ((UPLOAD, 1), (b"V" * 16, 3)):
            await client.send_parts(b"T" * 16, bodies)
            refused = (await client.ask(vote=pb.Vote(transaction_id=b"T" * 16, transaction=rest, parts=2))).failure
            assert (refused.reason, refused.oid) == (pb.NO_UPLOAD, oid(missing))
            await client.send_parts(b"T" * 16, bodies)
            commit = pb.Commit(transaction_id=b"T" * 16, transaction=rest, parts=2)
            refused = (await client.ask(commit=commit)).failure
            assert (refused.reason, refused.oid) == (pb.NO_UPLOAD, oid(missing))
            await send(client, chunks(data, name))
        await client.send_parts(b"T" * 16, bodies)
        assert (await client.ask(vote=pb.Vote(transaction_id=b"T" * 16, transaction=rest, parts=2))).HasField(
            "vote"
        )
        tid = (await client.ask(finish=pb.Finish(transaction_id=b"T" * 16))).committed.tid
        assert await read(client, 1, tid) == await read(client, 3, tid) == data
