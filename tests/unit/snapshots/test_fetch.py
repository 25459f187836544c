"""Getting a snapshot: going on after breaks, refusing nonsense, giving up, being cancelled."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncGenerator, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raftstorage.node.snapshots import (
    FetchOptions,
    SnapshotTooLarge,
    SnapshotUnavailable,
    SourceFailed,
)
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.disk import ModelDisk
from tests.unit.snapshots.sources import (
    CHUNK,
    CONTENTS,
    NODE,
    OPTIONS,
    TOTAL,
    Seen,
    Source,
    breaks_at,
    check_fetched,
    check_finished,
    fetcher,
    manifest_of,
    new_disk,
    run,
)


def test_a_snapshot_becomes_a_folder_that_survives_a_power_cut(disk: ModelDisk) -> None:
    seen = Seen()
    fetched = run(fetcher(disk, observer=seen).fetch(Source()))
    assert (fetched.path, fetched.index, fetched.term, fetched.membership) == (NODE / "db-9-2", 9, 2, b"members")
    check_fetched(disk, fetched)
    disk.end("nothing")
    check_fetched(disk, fetched)
    assert seen.received == TOTAL
    assert seen.done == ["fetched"] and seen.failed == []
    *steps, last = seen.progress
    assert steps == sorted(steps) and steps[-1] == (TOTAL, TOTAL) and last == (0, 0)


def test_progress_can_be_asked_for(disk: ModelDisk) -> None:
    fetching = fetcher(disk)
    found = []

    def look(number: int, chunk: pb.SnapshotChunk) -> Iterable[pb.SnapshotChunk]:
        found.append(fetching.progress)
        if number == 6 and not any(each and each.problem for each in found):
            raise SourceFailed("the cable is cut")
        return [chunk]

    assert fetching.progress is None
    run(fetching.fetch(Source(always=look)))
    assert fetching.progress is None
    dones = [each.done for each in found if each is not None]
    assert dones == sorted(dones) and dones[-1] == TOTAL - len(CONTENTS["MANIFEST-000005"]) % CHUNK
    assert {each.total for each in found if each is not None} == {0, TOTAL}
    assert {each.problem for each in found if each is not None} == {"", "the cable is cut"}
    assert found[-1] is not None and found[-1].index == 9


def test_a_break_costs_nothing(disk: ModelDisk) -> None:
    source = Source(mangles=[breaks_at(n) for n in (0, 1, 4, 4, 1, 3)])
    check_fetched(disk, run(fetcher(disk).fetch(source)))
    assert source.sent == TOTAL
    assert source.streams == 0


def test_breaks_without_end_are_no_reason_to_give_up_as_long_as_something_comes(disk: ModelDisk) -> None:
    source = Source(always=breaks_at(2))  # a manifest and one chunk
    check_fetched(disk, run(fetcher(disk).fetch(source)))
    assert len(source.requests) > OPTIONS.attempts


@pytest.mark.parametrize("end", ["kill", "nothing"])
def test_another_process_goes_on_where_one_ended(disk: ModelDisk, end: str) -> None:
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk).fetch(Source(always=breaks_at(12, final=True))))
    disk.end(end)
    source = Source()
    check_fetched(disk, run(fetcher(disk).fetch(source)))
    if end == "kill":
        assert source.requests[0].snapshot_id == source.manifest.snapshot_id
        assert source.sent == TOTAL - 11 * CHUNK + 50  # the last chunk of the first file is half a one


def test_files_of_another_snapshot_that_are_the_same_stay(disk: ModelDisk) -> None:
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk).fetch(Source(always=breaks_at(12, final=True))))
    other = {"000007.sst": CONTENTS["000007.sst"], "000008.sst": b"another", "000009.sst": b"new"}
    source = Source(other, manifest_of(other, 20, 3, "b" * 32))
    fetched = run(fetcher(disk).fetch(source))
    check_fetched(disk, fetched, other)
    assert fetched.index == 20
    assert source.sent == len(b"another" + b"new")
    assert [each.snapshot_id for each in source.requests] == ["a" * 32, "b" * 32]
    assert {each.file: each.bytes for each in source.requests[1].have} == {"000007.sst": 950}


def test_a_source_with_another_snapshot_each_time_is_given_up(disk: ModelDisk) -> None:
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk).fetch(Source(always=breaks_at(12, final=True))))
    source = Source()

    def change(number: int, chunk: pb.SnapshotChunk) -> Iterable[pb.SnapshotChunk]:
        source.manifest.snapshot_id = f"{len(source.requests):032x}"
        return [pb.SnapshotChunk(manifest=source.manifest)]

    source._always = change
    with pytest.raises(SnapshotUnavailable, match="another snapshot each time"):
        run(fetcher(disk).fetch(source))
    assert len(source.requests) <= 2 * OPTIONS.attempts


@pytest.mark.parametrize("final", [True, False])
def test_a_source_that_gives_nothing_is_given_up(disk: ModelDisk, final: bool) -> None:
    source = Source(always=breaks_at(0, final=final))
    seen = Seen()
    with pytest.raises(SnapshotUnavailable, match="the connection is gone"):
        run(fetcher(disk, observer=seen).fetch(source))
    assert len(source.requests) == (1 if final else OPTIONS.attempts)
    assert seen.failed == ["fetch"] and seen.done == []


def test_waits_between_attempts_grow_and_vary(disk: ModelDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    options = FetchOptions(attempts=9, backoff_seconds=(0.1, 5.0), reserve_bytes=0)
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk, options=options).fetch(Source(always=breaks_at(0))))
    bounds = [min(5.0, 0.2 * 2**n) for n in range(1, 9)]
    assert len(waits) == 8
    assert all(0.1 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
    assert max(waits) > 1 and len(set(waits)) == 8


def test_a_source_that_falls_silent_is_asked_again(disk: ModelDisk) -> None:
    class Silent(Source):
        async def open(self, request: pb.SnapshotRequest) -> AsyncGenerator[pb.SnapshotChunk, None]:
            count = 0
            async for chunk in super().open(request):
                count += 1
                if count == 4 and len(self.requests) == 1:
                    await asyncio.Event().wait()
                yield chunk

    source = Silent()
    options = FetchOptions(stall_seconds=0.05, backoff_seconds=(0, 0), reserve_bytes=0)
    check_fetched(disk, run(fetcher(disk, options=options).fetch(source)))
    assert len(source.requests) == 2


# ---- the disk fails --------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_what_is_there_stays(disk: ModelDisk) -> None:
    writes = 0

    def full(step: str) -> int:
        nonlocal writes
        writes += step.startswith("write /node/incoming/files")
        return errno.ENOSPC if writes > 11 else 0

    disk.fails = full
    with pytest.raises(SnapshotTooLarge, match="no room"):
        run(fetcher(disk).fetch(Source()))
    disk.fails = lambda step: 0
    source = Source()
    check_fetched(disk, run(fetcher(disk).fetch(source)))
    assert source.sent == TOTAL - 1050


def test_any_step_that_fails_ends_the_fetch_and_the_next_one_works() -> None:
    probe = new_disk(random.Random(0))
    run(fetcher(probe).fetch(Source()))
    for at in range(len(probe.steps)):
        disk = new_disk(random.Random(at))
        disk.fails = lambda step, disk=disk, at=at: errno.EIO if len(disk.steps) == at + 1 else 0
        with pytest.raises(OSError, match="Input/output"):
            run(fetcher(disk).fetch(Source()))
        assert disk.open_files() == 0
        disk.fails = lambda step: 0
        check_finished(disk, CONTENTS)
        fetched = run(fetcher(disk).fetch(Source()))
        disk.end("nothing")
        check_fetched(disk, fetched)


def test_a_sync_that_failed_is_not_believed_when_tried_again(disk: ModelDisk) -> None:
    """The system takes the pages for written then; only new ones reach the disk."""
    table = "sync /node/incoming/files/000007.sst"
    disk.fails = lambda step: errno.EIO if step == table else 0
    with pytest.raises(OSError, match="Input/output"):
        run(fetcher(disk).fetch(Source()))
    assert "000007.sst" not in disk.names(NODE / "incoming" / "files")


def test_names_whose_sync_failed_are_not_believed_when_tried_again(disk: ModelDisk) -> None:
    disk.fails = lambda step: errno.EIO if step == "sync /node/incoming/files" and written(disk) == TOTAL else 0
    with pytest.raises(OSError, match="Input/output"):
        run(fetcher(disk).fetch(Source()))
    assert disk.names(NODE) == ["db"]


def written(disk: ModelDisk) -> int:
    folder = NODE / "incoming" / "files"
    return sum(disk.info(folder / name).size for name in disk.names(folder))


# ---- ending early ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(16))
def test_a_fetch_can_be_cancelled_at_any_chunk(disk: ModelDisk, number: int) -> None:
    async def work() -> None:
        fetching = fetcher(disk)
        source = Source()
        task = asyncio.create_task(fetching.fetch(source))

        def cancel(at: int, chunk: pb.SnapshotChunk) -> Iterable[pb.SnapshotChunk]:
            if at == number:
                task.cancel()
            return [chunk]

        source._always = cancel
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.streams == 0 and disk.open_files() == 0 and fetching.progress is None
        source = Source()
        check_fetched(disk, await fetching.fetch(source))
        assert source.sent == TOTAL - sum(each.bytes for each in source.requests[0].have)

    run(work())


def test_one_fetch_at_a_time(disk: ModelDisk) -> None:
    async def work() -> None:
        fetching = fetcher(disk)
        task = asyncio.create_task(fetching.fetch(Source()))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await fetching.fetch(Source())
        with pytest.raises(RuntimeError):
            await fetching.discard()
        check_fetched(disk, await task)

    run(work())


def test_what_is_left_can_be_thrown_away(disk: ModelDisk) -> None:
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk).fetch(Source(always=breaks_at(12, final=True))))
    assert disk.names(NODE) == ["db", "incoming"]
    run(fetcher(disk).discard())
    assert disk.names(NODE) == ["db"]
    run(fetcher(disk).discard())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=200))
def test_bytes_that_are_no_state_of_a_fetch_are_not_used(manifest: bytes, positions: bytes) -> None:
    disk = new_disk(random.Random(0))
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk).fetch(Source(always=breaks_at(12, final=True))))
    if manifest:
        disk.put(NODE / "incoming" / "manifest", manifest)
    disk.put(NODE / "incoming" / "positions", positions)
    check_fetched(disk, run(fetcher(disk).fetch(Source())))


def test_data_is_taken_no_faster_than_the_rate(disk: ModelDisk) -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        content = {"a": bytes(1 << 20)}
        burst = 4 << 20
        options = FetchOptions(bytes_per_second=8 << 20, reserve_bytes=0)
        fetching = fetcher(disk, options=options)
        fetching._pace._bucket.take(burst, begin)  # the burst is used up
        await fetching.fetch(Source(content))
        return loop.time() - begin

    assert run(work()) >= 1 / 8 - 0.01
