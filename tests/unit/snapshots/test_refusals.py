"""What a node does not take: manifests that make no sense, snapshots that it has no room or no use for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raftstorage.node.snapshots import (
    SnapshotRefused,
    SnapshotTooLarge,
    SnapshotUnavailable,
    point_to,
)
from raftstorage.node.snapshots.api import is_file_name
from raftstorage.proto import raft_pb2 as pb

from tests.unit.snapshots.disk import ModelDisk
from tests.unit.snapshots.sources import (
    CONTENTS,
    NODE,
    TOTAL,
    Seen,
    Source,
    breaks_at,
    check_fetched,
    check_finished,
    fetcher,
    manifest_of,
    run,
)


def files(*names: str, size: int = 3, crc32c: int = 1) -> dict[str, Any]:
    return {"files": [pb.SnapshotFile(name=name, size=size, crc32c=crc32c) for name in names]}


NONSENSE: dict[str, dict[str, Any]] = {
    "format": {"format": 2},
    "no format": {"format": 0},
    "id": {"snapshot_id": "../db"},
    "index 0": {"index": 0},
    "a negative term": {"term": 1 << 63},
    "no files": {"files": []},
    "the folder": files("."),
    "the folder above": files(".."),
    "a path": files("db/CURRENT"),
    "an absolute path": files("/etc/passwd"),
    "a Windows path": files("C:\\x"),
    "a hidden file": files(".hidden"),
    "a dot at the end": files("a."),
    "two dots": files("a..b"),
    "a line": files("a\nb"),
    "no name": files(""),
    "a NUL": files("a\0b"),
    "a long name": files("a" * 200),
    "a name twice": files("a", "b", "a"),
    "a size beyond all": files("a", size=1 << 63),
    "an empty file with a checksum": files("a", size=0, crc32c=1),
    "a large membership": {"membership": bytes((1 << 20) + 1)},
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_manifest_that_makes_no_sense_is_refused_before_anything_is_written(disk: ModelDisk, what: str) -> None:
    source = Source(manifest=manifest_of(CONTENTS, **NONSENSE[what]))
    seen = Seen()
    with pytest.raises(SnapshotRefused):
        run(fetcher(disk, observer=seen).fetch(source))
    assert disk.steps == [] and disk.names(NODE) == ["db"]
    assert len(source.requests) == 1 and source.streams == 0
    assert seen.failed == ["fetch"]


@given(st.text(max_size=12) | st.from_regex(r"[A-Za-z0-9_.-]*", fullmatch=True))
def test_a_name_that_is_taken_is_one_within_its_folder(name: str) -> None:
    if is_file_name(name):
        assert (NODE / name).parent == NODE and (NODE / name).name == name
        assert not name.startswith(".") and "/" not in name and "\\" not in name and name.isascii()


def test_a_snapshot_larger_than_the_disk_is_refused_with_the_figures(disk: ModelDisk) -> None:
    disk.free = TOTAL - 1
    with pytest.raises(SnapshotTooLarge, match=f"has {TOTAL} bytes; {TOTAL - 1} are free"):
        run(fetcher(disk).fetch(Source()))
    assert disk.steps == []
    disk.free = TOTAL
    check_fetched(disk, run(fetcher(disk).fetch(Source())))


def test_what_is_here_already_needs_no_room(disk: ModelDisk) -> None:
    with pytest.raises(SnapshotUnavailable):
        run(fetcher(disk).fetch(Source(always=breaks_at(12, final=True))))
    disk.free = TOTAL - 1050
    check_fetched(disk, run(fetcher(disk).fetch(Source())))


def test_what_is_not_wanted_is_refused_on_every_stream(disk: ModelDisk) -> None:
    """A fetch that breaks may find, at its next stream, that the log has come meanwhile."""
    asked = []

    def check(manifest: pb.SnapshotManifest) -> None:
        asked.append(manifest.index)
        if len(asked) == 2:
            raise SnapshotRefused("entry 9 is committed here")

    with pytest.raises(SnapshotRefused, match="committed here"):
        run(fetcher(disk).fetch(Source(always=breaks_at(3)), check))
    assert asked == [9, 9]
    check_finished(disk)


def test_the_snapshot_that_is_the_database_is_refused(disk: ModelDisk) -> None:
    fetched = run(fetcher(disk).fetch(Source()))
    point_to(NODE, fetched.path.name, fetched.index, fetched.term, disk)
    with pytest.raises(SnapshotRefused, match="already"):
        run(fetcher(disk).fetch(Source()))
    assert disk.folder_contents(fetched.path) == CONTENTS


def test_a_folder_of_the_same_name_that_is_not_the_database_is_replaced(disk: ModelDisk) -> None:
    disk.put(NODE / "db-9-2" / "CURRENT", b"left behind")
    check_fetched(disk, run(fetcher(disk).fetch(Source())))
