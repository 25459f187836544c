"""Who may work together; and disks of a later version, which are refused before anything is written."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from raftstorage.node import identity
from raftstorage.node.engine import layout
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.rocks import RocksEngine, RocksStore
from raftstorage.node.identity import DirectoryError, NodeDirectory, NodeIdentity
from raftstorage.node.main import EXIT_OPTIONS, main
from raftstorage.node.options import OptionError, parse_versions
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.versions import (
    DISK,
    FEATURE_LEVEL,
    PROTOCOL,
    VERSIONS,
    Versions,
    agreed,
    cluster_level,
    may_join,
)
from raftstorage.node.wal import Wal, WalError
from raftstorage.node.wal import format as wal_format
from raftstorage.proto.versions import named, spoken


@pytest.mark.parametrize(
    ("mine", "theirs", "common"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 3), (2, 5), 3),
        ((2, 5), (1, 3), 3),
        ((1, 9), (4, 4), 4),
        ((1, 1), (2, 2), None),
        ((3, 4), (1, 2), None),
        ((1, 1), (0, 0), None),
        ((1, 3), (3, 2), None),  # no range at all
    ],
)
def test_the_newest_common_protocol(mine: tuple[int, int], theirs: tuple[int, int], common: int | None) -> None:
    assert agreed(mine, theirs) == agreed(theirs, mine) == common


def test_ranges_in_hellos_and_in_texts() -> None:
    assert spoken(3, 0) == (3, 3)
    assert spoken(3, 2) == (2, 3)
    assert (named((1, 1)), named((1, 3))) == ("1", "1 to 3")


def test_the_level_of_a_cluster_is_what_all_members_know() -> None:
    assert cluster_level([3, 1, 2]) == 1
    assert cluster_level([3, 0, 2]) == 0, "one is not known yet"
    assert cluster_level([]) == 0


def test_who_may_join() -> None:
    assert may_join(FEATURE_LEVEL, VERSIONS) == ""
    assert may_join(1, Versions(level=5), Versions(level=1)) == "", "a newer one that can still do as the others"
    mine = Versions((2, 3), 2, software="2.0")
    assert may_join(2, Versions((1, 2), 2), mine) == ""
    assert may_join(2, Versions((2, 3), 1, software="1.9"), mine) == (
        "its software (1.9) is too old for this cluster: it knows feature levels up to 1, the cluster's is 2"
    )
    assert may_join(2, Versions((1, 1), 2, software="1.0"), mine) == (
        "its software (1.0) is too old for this cluster: it speaks protocol 1, the cluster 2 to 3"
    )
    assert may_join(2, Versions((4, 5), 9, software="4.0"), mine) == (
        "its software (4.0) is too new for this cluster: it speaks protocol 4 to 5, the cluster 2 to 3"
    )
    assert may_join(2, Versions((2, 5), 9, 3, "4.0"), mine) == (
        "its software (4.0) is too new for this cluster: it knows feature levels from 3 on, the cluster's is 2; "
        "upgrade the members first"
    )


def test_what_a_node_can_be_told_to_pretend() -> None:
    assert parse_versions("") is VERSIONS
    assert parse_versions("2:3:4") == Versions((2, 3), 4, 0, f"{VERSIONS.software}, pretending 2:3:4")
    assert parse_versions("1:1:4:2").oldest_level == 2
    for wrong in (
        "1",
        "1:2",
        "1:2:x",
        "2:1:1",
        "0:1:1",
        "1:2:3:4",
        "1:2:3:1:1",
        "1:-2:3",
        f"1:{1 << 32}:1",
        "1:1:²",
    ):
        with pytest.raises(OptionError, match="--pretend-versions"):
            parse_versions(wrong)


def test_pretending_is_for_tests_and_not_advertised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--log-level" in shown and "--pretend" not in shown
    options = ["--id", "1", "--dir", str(tmp_path / "node"), "--member", "1=127.0.0.1:7441"]
    assert main([*options, "--pretend-versions", "new"]) == EXIT_OPTIONS
    assert "--pretend-versions 'new' is not MIN:MAX:LEVEL" in capsys.readouterr().err
    assert not (tmp_path / "node").exists()


def test_the_formats_are_those_that_are_read_and_written() -> None:
    assert DISK["directory"].writes == identity.FORMAT
    assert DISK["log"].writes == wal_format.FORMAT
    assert DISK["database"].writes == layout.FORMAT
    assert all(each.writes in each.reads for each in DISK.values())
    assert agreed(PROTOCOL, PROTOCOL) == PROTOCOL[1]


# ---- disks of a later version ------------------------------------------------------------------------------

LATER = 99
ME = NodeIdentity("ab" * 16, 1, {1: "127.0.0.1:7441"})


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    """All files below: content, and when it was written."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_directory_of_a_later_format(tmp_path: Path) -> None:
    directory = NodeDirectory.open(tmp_path)
    directory.claim(ME)
    directory.close()
    file = tmp_path / "node.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": LATER, "shape": "round"}))
    before = contents(tmp_path)
    with pytest.raises(DirectoryError) as refused:
        NodeDirectory.open(tmp_path)
    assert str(refused.value) == f"{file}: directory format {LATER}, this software knows {identity.FORMAT}"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("segment", [0, -1], ids=["all of it", "only the newest segment"])
def test_a_log_of_a_later_format(tmp_path: Path, segment: int) -> None:
    wal = Wal.open(tmp_path, segment_bytes=4096)
    for index in range(1, 20):
        wal.write(HardState(1, 1), [Entry(1, index, EntryKind.COMMAND, bytes(1000))])
    wal.close()
    paths = sorted(path for path in tmp_path.iterdir())
    assert len(paths) > 2
    for path in paths if segment == 0 else paths[-1:]:
        data = bytearray(path.read_bytes())
        data[8:12] = struct.pack(">I", LATER)
        path.write_bytes(data)
    (tmp_path / "0000000000000099.new").write_bytes(b"what the later version was about to write")
    before = contents(tmp_path)
    with pytest.raises(WalError) as refused:
        Wal.open(tmp_path, segment_bytes=4096)
    assert str(refused.value) == (
        f"{paths[segment]} has log format {LATER}; this version knows formats 1 to {wal_format.FORMAT}"
    )
    assert contents(tmp_path) == before


def test_a_database_of_a_later_format(tmp_path: Path) -> None:
    directory = tmp_path / "db"
    engine = RocksEngine(directory)
    engine.apply(Entry(1, 1, EntryKind.NOOP))
    engine.flush()
    engine.close()
    store = RocksStore(directory)
    later = layout.seal(struct.pack(">I", LATER) + b"in which nothing else is where it was")
    store.write([("meta", b"state", later)])
    store.flush()
    store.close()
    before = contents(tmp_path)
    with pytest.raises(EngineError) as refused:
        RocksEngine(directory)
    known = f"this version knows formats up to {layout.FORMAT}"
    assert str(refused.value) == f"the database has format {LATER}; {known}"
    after = contents(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} <= {"db/rocksdict-config.json"}
    assert after.keys() == before.keys()
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
