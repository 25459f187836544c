"""What is on disk, byte by byte, and logs of an older version."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from raftstorage.node.raft.types import Entry, EntryKind, HardState
from raftstorage.node.wal import Wal, WalDamaged
from raftstorage.node.wal import format as fmt
from raftstorage.node.wal.files import SystemFiles

from tests.unit.wal.log_directory import cut, entry, opened, reopened
from tests.unit.wal.log_model import State, observed

#: Two segments as the last version with format 1 wrote them; zeros up to 256 bytes follow.
FORMAT_1 = [
    "5261667457414c0000000001000000000000000100000000000001000000000000000001000000000000000001010101010101010101010101"
    "010101fc8ddace00000010015433e0c1000000000000000000000000000000000000000803f4f436da00000000000000590000000803dd3778"
    "aa000000000000006a00000010013e96518e0000000000000001000000000000000200000011025d9665780000000000000001000000000000"
    "00010200000008035b015e7700000000000000ae000000100166a395cc000000000000000200000000000000030000001402c2dc3e98000000"
    "000000000100000000000000020174776f",
    "5261667457414c0000000001000000000000000200000000000001000000000000000003000000000000"
    "00f502020202020202020202020202"
    "020202b43290f90000001001bc08ad2f000000000000000200000000000000030000000803f3f9e32d00000000000000590000001602e5b532"
    "60000000000000000200000000000000030174687265650000000803a5d24f3c0000000000000089",
]
OLD_ENTRIES = (
    Entry(1, 1, EntryKind.NOOP),
    Entry(1, 2, EntryKind.COMMAND, b"two"),
    Entry(2, 3, EntryKind.COMMAND, b"three"),
)


class Salted(SystemFiles):
    def salt(self, length: int) -> bytes:
        return b"s" * length


def test_the_bytes_of_a_segment_that_begins_behind_a_base(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path, segment_bytes=256, files=Salted())
    wal.reset(0x0102, 7, HardState(8, 3))
    wal._release()
    (data,) = (path.read_bytes() for path in tmp_path.glob("*2.segment"))
    assert data[:12] == b"RaftWAL\0" + struct.pack(">I", 2)
    begin = data[fmt.HEADER_BYTES : fmt.BEGIN_BYTES].hex()
    assert begin == (
        "0000001001ea4af9e200000000000000080000000000000003"  # term 8, vote 3
        "0000001004f29ed6ff00000000000001020000000000000007"  # index 258, term 7
    )
    assert not any(data[fmt.BEGIN_BYTES :])


def old_log(directory: Path, segments: int = 2) -> None:
    for sequence, text in enumerate(FORMAT_1[:segments], 1):
        data = bytes.fromhex(text)
        (directory / f"{sequence:016d}.segment").write_bytes(data + bytes(256 - len(data)))


@pytest.mark.parametrize("segments", [1, 2])
def test_a_log_of_format_1_opens_and_goes_on_in_a_new_segment(tmp_path: Path, segments: int) -> None:
    old_log(tmp_path, segments)
    known = State((0, 0), OLD_ENTRIES[: segments + 1], HardState(2, 3))
    wal = opened(tmp_path)
    assert observed(wal) == known
    old = sorted(tmp_path.glob("*.segment"))[:segments]
    assert [path.read_bytes().rstrip(b"\0").hex() for path in old] == FORMAT_1[:segments]
    wal.write(None, [entry(known.last + 1, 3)])
    wal.close()
    assert reopened(tmp_path) == State((0, 0), (*known.entries, entry(known.last + 1, 3)), HardState(2, 3))
    wal = opened(tmp_path)
    assert cut(wal, known.last) == segments * 256
    wal.close()
    assert reopened(tmp_path) == State(
        (known.last, known.term(known.last)), (entry(known.last + 1, 3),), known.vote
    )


def test_nothing_vouches_for_what_is_missing_from_a_log_of_format_1(tmp_path: Path) -> None:
    old_log(tmp_path)
    (tmp_path / "0000000000000001.segment").unlink()
    with pytest.raises(WalDamaged, match="entries 1 to 2 are missing"):
        opened(tmp_path)


def test_a_segment_of_format_1_holds_no_base(tmp_path: Path) -> None:
    old_log(tmp_path, 1)
    path = tmp_path / "0000000000000001.segment"
    data = path.read_bytes()
    end = len(bytes.fromhex(FORMAT_1[0]))
    seed = fmt.seed(fmt.Header.unpack(data, path).salt)
    # The log was not closed: behind its last record there is room for a small one.
    header = fmt.Header(1, 512, 1, 0, b"\1" * 16, form=1).pack()
    path.write_bytes((header + data[len(header) : end] + fmt.base(seed, end, 1, 1)).ljust(512, b"\0"))
    with pytest.raises(WalDamaged, match="unknown type 4"):
        opened(tmp_path)
