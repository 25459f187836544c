"""Admin.Verify on one node: in slices, one at a time, and not before it can be compared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import grpc
import pytest
from raftstorage.node.engine import MemoryEngine
from raftstorage.node.service import verify
from raftstorage.node.service.verify import NotNow, Verifier
from raftstorage.proto import admin_pb2 as pb
from raftstorage.proto import storage_pb2

from tests.unit.engine.commands import change, feed, in_fragments, p64


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)  # pytest sees which fixtures it wants
    def runner(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 60))

    return runner


@pytest.fixture
def engine() -> MemoryEngine:
    made = MemoryEngine()
    for start in range(10, 1010, 100):
        feed(made, *in_fragments(b"%016d" % start, start, change(*range(start, start + 100), size=300)))
    return made


async def reports(verifier: Verifier, **request: Any) -> list[pb.VerifyReport]:
    return [report async for report in verifier.reports(pb.VerifyRequest(**request))]


async def refused(verifier: Verifier, **request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(NotNow) as caught:
        await reports(verifier, **request)
    return caught.value.code, str(caught.value)


@run
async def test_the_last_report_has_it_all(engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "REPORT_SECONDS", 0.0)
    found = await reports(Verifier(lambda: engine))
    *before, last = found
    assert len(before) > 2
    assert [report.done for report in before] == [False] * len(before)
    assert [report.records for report in found] == sorted(report.records for report in found)
    assert (last.done, last.tid, last.records, last.packed) == (True, engine.last_tid, 1000, b"")
    assert len(last.digest) == 32
    (again,) = (await reports(Verifier(lambda: engine), tid=engine.last_tid))[-1:]
    assert again.digest == last.digest


@run
async def test_the_loop_is_free_most_of_the_time(engine: MemoryEngine) -> None:
    longest = 0.0
    turns = 0

    async def others() -> None:
        nonlocal longest, turns
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - begun)
            turns += 1

    task = asyncio.create_task(others())
    await asyncio.sleep(0)
    await reports(Verifier(lambda: engine))
    task.cancel()
    assert turns > 20
    assert longest < 0.5, "one slice took as long as all of it"


@run
async def test_what_cannot_be_compared_now_is_refused(engine: MemoryEngine) -> None:
    verifier = Verifier(lambda: engine)
    code = grpc.StatusCode
    assert await refused(verifier, tid=p64(2000)) == (
        code.UNAVAILABLE,
        f"this node has transactions up to {engine.last_tid.hex()}",
    )
    assert (await refused(verifier, tid=b"short"))[0] is code.INVALID_ARGUMENT
    pack = storage_pb2.PackCommand(pack_id=b"p" * 16, tid=p64(500), collect=True)
    feed(engine, storage_pb2.Command(pack=pack).SerializeToString())
    assert (await refused(verifier))[0] is code.UNAVAILABLE
    collect = storage_pb2.CollectCommand(pack_id=b"p" * 16, last=True)
    feed(engine, storage_pb2.Command(collect=collect).SerializeToString())
    assert (await reports(verifier))[-1].packed == engine.packed
    assert await refused(verifier, tid=p64(100)) == (
        code.FAILED_PRECONDITION,
        f"the database is packed to {engine.packed.hex()}",
    )


@run
async def test_one_at_a_time_and_a_client_that_leaves_makes_room(
    engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "REPORT_SECONDS", 0.0)
    verifier = Verifier(lambda: engine)
    first = verifier.reports(pb.VerifyRequest())
    assert not (await anext(first)).done
    assert (await refused(verifier))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await first.aclose()
    assert (await reports(verifier))[-1].done


@run
async def test_a_pack_in_between_ends_it(engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "REPORT_SECONDS", 0.0)
    verifier = Verifier(lambda: engine)
    first = verifier.reports(pb.VerifyRequest())
    await anext(first)
    pack = storage_pb2.PackCommand(pack_id=b"p" * 16, tid=p64(500))
    feed(engine, storage_pb2.Command(pack=pack).SerializeToString())
    with pytest.raises(NotNow, match="begin again"):
        async for _ in first:
            pass
    assert (await reports(verifier))[-1].done
