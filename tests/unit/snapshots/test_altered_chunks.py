"""Nothing that was altered or cut on its way gets into a finished folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import suppress

import google_crc32c
import pytest
from raftstorage.node.snapshots import SnapshotUnavailable
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.disk import Crash
from tests.unit.snapshots.sources import (
    CHUNK,
    CONTENTS,
    NODE,
    Mangle,
    Source,
    breaks_at,
    check_fetched,
    check_finished,
    fetcher,
    new_disk,
    piece,
    run,
)

#: Data chunks of a whole stream; number 0 is the manifest.
CHUNKS = sum(-(-len(content) // CHUNK) for content in CONTENTS.values())


def altered(chunk: pb.SnapshotChunk, **changes: object) -> pb.SnapshotChunk:
    other = pb.SnapshotChunk()
    other.CopyFrom(chunk)
    for name, value in changes.items():
        setattr(other.data, name, value)
    return other


def flipped(chunk: pb.SnapshotChunk) -> bytes:
    data = bytearray(chunk.data.data)
    data[len(data) // 2] ^= 4
    return bytes(data)


def with_its_checksum(chunk: pb.SnapshotChunk, data: bytes) -> pb.SnapshotChunk:
    return altered(chunk, data=data, crc32c=google_crc32c.value(data))


ATTACKS: dict[str, Callable[[pb.SnapshotChunk], Iterable[pb.SnapshotChunk]]] = {
    "a flipped bit": lambda chunk: [altered(chunk, data=flipped(chunk))],
    "a flipped bit with its checksum": lambda chunk: [with_its_checksum(chunk, flipped(chunk))],
    "another checksum": lambda chunk: [altered(chunk, crc32c=chunk.data.crc32c ^ 1)],
    "cut": lambda chunk: [with_its_checksum(chunk, chunk.data.data[:-1])],
    "cut to nothing": lambda chunk: [with_its_checksum(chunk, b"")],
    "longer": lambda chunk: [with_its_checksum(chunk, chunk.data.data + b"x")],
    "left out": lambda chunk: [],
    "twice": lambda chunk: [chunk, chunk],
    "in another place": lambda chunk: [altered(chunk, offset=chunk.data.offset + 1)],
    "of another file": lambda chunk: [altered(chunk, file="CURRENT-")],
    "of a file elsewhere": lambda chunk: [altered(chunk, file="../db/CURRENT")],
    "a second manifest": lambda chunk: [pb.SnapshotChunk(manifest=Source().manifest), chunk],
    "nothing in it": lambda chunk: [pb.SnapshotChunk()],
    "of zeros": lambda chunk: [with_its_checksum(chunk, bytes(len(chunk.data.data)))],
}


def at(number: int, attack: Callable[[pb.SnapshotChunk], Iterable[pb.SnapshotChunk]]) -> Mangle:
    return lambda n, chunk: attack(chunk) if n == number else [chunk]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_altered_chunk_is_fetched_again(attack: str) -> None:
    for number in range(1, CHUNKS + 1):
        disk = new_disk(random.Random(number))
        source = Source(mangles=[at(number, ATTACKS[attack])])
        check_fetched(disk, run(fetcher(disk).fetch(source)))
        harmless = attack == "twice" and number == CHUNKS  # nobody reads on behind the last one
        # A lie that fits shows at the end of its file only, and that may be a stream later.
        assert len(source.requests) in ((1,) if harmless else (2, 3))


#: What is behind the good half of such a chunk may come in time.
MAY_COME = {"cut", "twice", "a second manifest"}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_source_that_always_alters_a_chunk_is_given_up(attack: str) -> None:
    """Its chunk is looked for by file and offset, so that it meets a stream that goes on, too."""
    for name, content in CONTENTS.items():
        for offset in range(0, len(content), CHUNK):
            disk = new_disk(random.Random(offset))

            def mangle(
                n: int, chunk: pb.SnapshotChunk, target: tuple[str, int] = (name, offset)
            ) -> Iterable[pb.SnapshotChunk]:
                return ATTACKS[attack](chunk) if (chunk.data.file, chunk.data.offset) == target else [chunk]

            source = Source(always=mangle)
            came = False
            with suppress(SnapshotUnavailable):
                check_fetched(disk, run(fetcher(disk).fetch(source)))
                came = True
            assert not came or attack in MAY_COME
            assert len(source.requests) <= 8
            check_finished(disk, CONTENTS)
            # What is left is of use, or does no harm.
            if not came:
                check_fetched(disk, run(fetcher(disk).fetch(Source())))


@pytest.mark.parametrize("number", range(CHUNKS + 1))
def test_a_stream_that_is_cut_goes_on_where_it_broke(number: int) -> None:
    disk = new_disk(random.Random(number))
    source = Source(mangles=[lambda n, chunk: [chunk] if n < number else []])
    check_fetched(disk, run(fetcher(disk).fetch(source)))
    assert source.sent == sum(map(len, CONTENTS.values()))


def test_a_manifest_that_changes_under_its_id_is_not_taken() -> None:
    """Two databases mixed: every chunk is right for one of them."""
    other = dict(CONTENTS) | {"000007.sst": random.Random(1).randbytes(950)}
    disk = new_disk(random.Random(0))
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk).fetch(Source(always=breaks_at(5, final=True))))
    changed = Source(other)
    assert changed.manifest.snapshot_id == Source().manifest.snapshot_id
    with pytest.raises(SnapshotUnavailable, match="not the one"):
        run(fetcher(disk).fetch(changed))
    check_finished(disk)


def test_files_that_decayed_on_the_disk_are_fetched_again() -> None:
    total = sum(map(len, CONTENTS.values()))
    for name, content in CONTENTS.items():
        for offset in range(0, len(content), 37):
            disk = new_disk(random.Random(offset))
            with pytest.raises(SnapshotUnavailable):
                run(fetcher(disk).fetch(Source(always=breaks_at(CHUNKS, final=True))))
            path = NODE / "incoming" / "files" / name
            if offset >= len(disk.read_all(path)):
                continue
            disk.flip(path, offset)
            source = Source()
            check_fetched(disk, run(fetcher(disk).fetch(source)))
            assert 0 < source.sent < total
            assert len(source.requests) == 1, "it showed when it was read back"


def test_files_that_have_grown_on_the_disk_are_cut() -> None:
    for name in CONTENTS:
        disk = new_disk(random.Random(0))
        with pytest.raises(SnapshotUnavailable):
            run(fetcher(disk).fetch(Source(always=breaks_at(CHUNKS, final=True))))
        path = NODE / "incoming" / "files" / name
        disk.put(path, disk.read_all(path) + b"more")
        check_fetched(disk, run(fetcher(disk).fetch(Source())))


@pytest.mark.parametrize("number", [1, 10, 11, CHUNKS])
def test_a_lie_that_fits_does_not_outlive_a_crash_between_write_and_check(number: int) -> None:
    """All of a file is there then, and marked, and was not compared with the manifest."""
    lie = at(number, ATTACKS["a flipped bit with its checksum"])
    probe = new_disk(random.Random(0))
    run(fetcher(probe).fetch(Source(mangles=[lie])))
    for step in range(len(probe.steps)):
        disk = new_disk(random.Random(step))
        disk.crash_at = step
        with suppress(Crash):
            run(fetcher(disk).fetch(Source(mangles=[lie])))
        disk.end("kill")
        check_finished(disk, CONTENTS)
        check_fetched(disk, run(fetcher(disk).fetch(Source())))


def test_data_of_more_than_a_chunk_is_refused() -> None:
    disk = new_disk(random.Random(0))
    big = {"big": bytes((1 << 20) + 1)}
    source = Source(big, always=lambda n, chunk: [chunk] if n == 0 else [piece("big", 0, big["big"])])
    with pytest.raises(SnapshotUnavailable, match="in place of"):
        run(fetcher(disk).fetch(source))
