"""Admin.Verify: a node reads all it has, in slices beside its other work, and tells what it finds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import grpc
from raftstorage.node.engine.api import Engine, Interrupted, Packed, Verification
from raftstorage.proto import admin_pb2 as pb

#: Seconds of work in a row, and how many times as long others have their turn then.
SLICE_SECONDS = 0.001
REST = 3
#: Seconds from one report to the next.
REPORT_SECONDS = 0.5


class NotNow(Exception):
    """Why it cannot be done: the status code, and the reason."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Verifier:
    """One at a time. `engine()`: the node's."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine
        self._busy = False

    async def reports(self, request: pb.VerifyRequest) -> AsyncIterator[pb.VerifyReport]:
        """The last one has `done`. NotNow."""
        if self._busy:
            raise NotNow(grpc.StatusCode.RESOURCE_EXHAUSTED, "this node is verifying already: one at a time")
        self._busy = True
        try:
            verification = self._begin(request)
            try:
                async for report in self._run(verification):
                    yield report
            except Interrupted:
                raise NotNow(
                    grpc.StatusCode.UNAVAILABLE, "the database was packed or replaced meanwhile: begin again"
                ) from None
        finally:
            self._busy = False

    def _begin(self, request: pb.VerifyRequest) -> Verification:
        engine = self._engine()
        tid = request.tid or engine.last_tid
        if len(tid) != 8:
            raise NotNow(grpc.StatusCode.INVALID_ARGUMENT, "a tid has 8 bytes")
        if tid > engine.last_tid:
            raise NotNow(grpc.StatusCode.UNAVAILABLE, f"this node has transactions up to {engine.last_tid.hex()}")
        if engine.pack.collect and not engine.pack.collected:
            # Until all of it is known, nodes that have applied different parts of it see different objects.
            raise NotNow(grpc.StatusCode.UNAVAILABLE, "a pack is looking for garbage: ask again when it knows it")
        try:
            return engine.verification(tid, request.references)
        except Packed as error:
            raise NotNow(
                grpc.StatusCode.FAILED_PRECONDITION, f"the database is packed to {error.packed.hex()}"
            ) from None

    async def _run(self, verification: Verification) -> AsyncIterator[pb.VerifyReport]:
        engine = self._engine()
        more = True
        reported = time.monotonic()
        while more:
            begun = now = time.perf_counter()
            while more and now - begun < SLICE_SECONDS:
                more = verification.step()
                now = time.perf_counter()
            if not more or time.monotonic() - reported >= REPORT_SECONDS:
                reported = time.monotonic()
                yield _report(verification, engine.approximate_size()[1], done=not more)
            await asyncio.sleep(REST * (now - begun))


def _report(verification: Verification, objects: int, *, done: bool) -> pb.VerifyReport:
    report = pb.VerifyReport(
        tid=verification.tid,
        packed=verification.packed,
        records=verification.records,
        bytes=verification.bytes_read,
        blobs=verification.blobs,
        objects=objects,
        problems=verification.problems,
        digest=verification.digest,
        done=done,
    )
    verification.problems.clear()
    return report
