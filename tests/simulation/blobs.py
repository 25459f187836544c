"""Blobs of simulated clients: uploaded in small chunks, committed or abandoned, and read back on any replica."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import google_crc32c
from raftstorage.client.cluster.policy import Call
from raftstorage.client.cluster.uploads import Chunk
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.layout import read_stub
from raftstorage.node.engine.state import StateMachine
from raftstorage.proto import storage_pb2 as pb

from tests.simulation.client import READ_SECONDS, Refused, SimClient
from tests.simulation.world import Violation

#: How far a clock must jump before an upload may end while somebody still wants it, in seconds.
IDLE_SECONDS = 3600.0
PATIENCE = 3.0
MOST_BYTES = 90
#: A node's chunks have 16 bytes; these lie across.
PIECE_BYTES = (5, 16, 30)


def crc(data: bytes) -> int:
    return int(google_crc32c.value(data))


@dataclass
class Ledger:
    """What clients wanted to have: bytes by a commit's identity and oid; revisions that were acknowledged.

    `leads(address)`: is that node the leader, and nobody newer? `clocks_jump`: uploads may end at any moment. Else
    one that is whole can only be refused by a leader that was deposed and does not know.
    `packed`: revisions up to this tid may be packed away, or collected.
    """

    leads: Callable[[str], bool]
    clocks_jump: bool = False
    packed: bytes = b""
    wanted: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    revisions: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)
    uploads: int = 0
    ended: int = 0  # of those that were wanted

    def check(self, engine: StateMachine, truth: Iterable[pb.CommittedTransaction]) -> None:
        """Violation: a committed blob is not what its client sent, or something of others is left."""
        for each in truth:
            wanted = self.wanted.get(each.description, {})
            for record in each.records:
                data = wanted.get(record.oid)
                if record.HasField("blob") != (data is not None):
                    raise Violation(f"a blob of {record.oid.hex()} at {each.tid.hex()}: {data!r} was wanted")
                if data is not None:
                    try:
                        found = engine.load_blob(record.oid, each.tid, 0, MOST_BYTES * 2)
                    except (EngineError, KeyError) as error:
                        raise Violation(f"a committed blob is not there: {error!r}") from error
                    if found != (data, len(data), crc(data)):
                        raise Violation(
                            f"blob of {record.oid.hex()} at {each.tid.hex()}: {found!r} is not {data!r}"
                        )
        self._check_store(engine)

    def _check_store(self, engine: StateMachine) -> None:
        """No bytes but those of records and of uploads that are open."""
        store = engine._store
        stubs = [read_stub(key, sealed) for key, sealed in store.scan("records", b"")]
        named = {stub.blob.number for stub in stubs if stub.blob is not None}
        keys = [key[1:] for key, _ in store.scan("uploads", b"") if key[:1] == b"i"]
        named |= {upload.number for upload in map(engine._upload, keys) if upload is not None}
        stored = {int.from_bytes(key[:8], "big") for key, _ in store.scan("blobs", b"")}
        if not stored <= named:
            raise Violation(f"bytes of blobs that are nobody's: {sorted(stored - named)}")


class _Source:
    """A client's bytes, in chunks of `size`."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size

    def chunk(self, offset: int) -> Chunk:
        data = self._data[offset : offset + self._size]
        return Chunk(data, crc(data))


class BlobWork:
    """One client's. `new_oid` gives oids, `ledger` is everybody's."""

    def __init__(
        self, client: SimClient, ledger: Ledger, rng: random.Random, new_oid: Callable[[], Awaitable[bytes]]
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._rng = rng
        self._new_oid = new_oid

    async def work(self) -> None:
        """Something with a blob. ClusterError, Refused: as of any transaction."""
        revisions = self._ledger.revisions
        if revisions and self._rng.random() < 0.4:
            (oid, tid), data = self._rng.choice(list(revisions.items()))
            await self._read(oid, tid, data)
        elif revisions and self._rng.random() < 0.2:
            (oid, tid), data = self._rng.choice(list(revisions.items()))
            await self._commit(oid, data, pb.Blob(same_as=tid), whole=tid > self._ledger.packed)
        else:
            await self._upload()

    async def _upload(self) -> None:
        rng = self._rng
        data = rng.randbytes(rng.choice((0, rng.randrange(1, MOST_BYTES))))
        upload_id = rng.randbytes(16)
        part = len(data)
        if data and rng.random() < 0.2:  # abandoned, or committed before it is whole
            part = rng.randrange(len(data))
        self._ledger.uploads += 1
        if part:
            source = _Source(data[:part], rng.choice(PIECE_BYTES))
            event, _ = await self._client.flow(self._client.replicas.upload(source, upload_id, part, PATIENCE))
            if event.blob_stored.size != part:
                raise Violation(f"{part} bytes were uploaded, {event.blob_stored.size} are there")
        if part < len(data) and rng.random() < 0.5:
            return
        if rng.random() < 0.2:
            await asyncio.sleep(rng.choice((0.05, 0.5, 2.0)))
        known = [oid for oid, _ in self._ledger.revisions]
        oid = rng.choice(known) if known and rng.random() < 0.5 else await self._new_oid()
        blob = pb.Blob(upload_id=upload_id, size=len(data), crc32c=crc(data))
        await self._commit(oid, data, blob, whole=part == len(data))

    async def _commit(self, oid: bytes, data: bytes, blob: pb.Blob, whole: bool) -> None:
        """`whole`: the cluster said that it has all the bytes."""
        token = self._rng.randbytes(4).hex().encode()
        one_phase = self._rng.random() < 0.5

        def began(identity: bytes) -> None:
            self._ledger.wanted[identity] = {oid: data}

        try:
            tid = await self._client.commit(
                lambda _: {oid: token}, (oid,), one_phase=one_phase, blobs={oid: blob}, began=began
            )
        except Refused as refused:
            if refused.failure.reason != pb.NO_UPLOAD:
                raise
            known = one_phase or self._ledger.leads(refused.address)
            if whole and known and not self._ledger.clocks_jump:
                raise Violation(f"{self._client.name} is refused a blob that was whole: {refused}") from None
            self._ledger.ended += whole
            raise
        if not whole and not blob.same_as:
            raise Violation(f"{self._client.name} has a blob committed of which bytes are missing")
        self._ledger.revisions[oid, tid] = data

    async def _read(self, oid: bytes, tid: bytes, data: bytes) -> None:
        """Each piece from whichever replica."""
        found = b""
        size = self._rng.choice(PIECE_BYTES)
        while True:
            asked = pb.LoadBlob(oid=oid, serial=tid, offset=len(found), max_bytes=size, at_least=tid)
            read = self._client.replicas.read(Call("load_blob", asked), tid, READ_SECONDS)
            try:
                event, address = await self._client.flow(read)
            except Refused as refused:
                if refused.failure.reason == pb.NO_SUCH_OBJECT and tid > self._ledger.packed:
                    raise Violation(f"there is no blob of {oid.hex()} at {tid.hex()}: {refused}") from None
                raise
            piece = event.blob_data
            found += piece.data
            if (piece.size, piece.crc32c) != (len(data), crc(data)) or not data.startswith(found):
                raise Violation(f"{address} has {found!r} of blob {data!r} of {oid.hex()} at {tid.hex()}")
            if len(found) == len(data):
                return
            if len(piece.data) != min(size, len(data) - len(found) + len(piece.data)):
                raise Violation(f"{address} answers {len(piece.data)} bytes where {size} were asked for")


def jumps(numbers: Iterable[float]) -> bool:
    """Whether clocks that are set by so many seconds can end an upload that is wanted."""
    return sum(abs(number) for number in numbers) > IDLE_SECONDS / 2
