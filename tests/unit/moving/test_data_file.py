"""Reading a Data.fs past its damage: what comes out is what is sound, and the rest is told by offset."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.ops.moving.data_file import DataFile, NotADataFile
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf

from tests.unit.moving.files import content, content_of, make, offsets

Z64 = b"\0" * 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "Data.fs", count=20)


def read(path: Path) -> tuple[list[tuple[object, ...]], list[str]]:
    """Its readable transactions, and its damage. A damaged and a harmless place may differ in nothing but this."""
    with DataFile(path) as file:
        found = content(file.iterator())
        return found, [("harmless " if each.harmless else "") + str(each) for each in file.damage]


def test_a_sound_file_is_read_as_zodb_reads_it(path: Path) -> None:
    assert read(path) == (content_of(path), [])
    tids = [each[0] for each in content_of(path)]
    with DataFile(path) as file:
        assert file.heads() == (tids[-1], Z64)
        for start, stop in [
            (tids[3], tids[5]),
            (tids[3], None),
            (None, tids[5]),
            (Z64, tids[-1]),
            (tids[-1], Z64),
        ]:
            wanted = [tid for tid in tids if (start or Z64) <= tid <= (tids[-1] if stop is None else stop)]
            assert [t.tid for t in file.iterator(start, stop)] == wanted


def test_a_packed_file_says_up_to_where(path: Path) -> None:
    db = ZODB.DB(FileStorage(str(path)))
    tids = [each[0] for each in content_of(path)]
    db.storage.pack(db.storage._ts.timeTime() + 1, referencesf)
    with db.transaction() as connection:
        connection.root()["m"]["after"] = 1
    db.close()
    assert read(path) == (content_of(path), [])
    with DataFile(path) as file:
        last, packed = file.heads()
        assert tids[-1] <= packed == (int.from_bytes(last) - 1).to_bytes(8)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 60])
def test_a_cut_end_is_told(path: Path, cut: int) -> None:
    whole, last = content_of(path), offsets(path)[-1]
    path.write_bytes(path.read_bytes()[:-cut])
    found, damage = read(path)
    assert found == whole[:-1]
    size = path.stat().st_size - last
    reason = "no header of a transaction" if size < 23 else "a length that cannot be"
    assert damage == [f"at {last}: {reason}; {size} bytes left out"]


def test_what_a_crash_left_unfinished_is_no_damage(path: Path) -> None:
    whole, last = content_of(path), offsets(path)[-1]
    data = bytearray(path.read_bytes())
    data[last + 16] = ord("c")
    for size in (len(data), len(data) - 20):
        path.write_bytes(data[:size])
        found, damage = read(path)
        assert found == whole[:-1]
        assert damage == [f"harmless at {last}: a transaction that was not finished; {size - last} bytes left out"]


def test_a_damaged_record_costs_its_own_transaction_only(path: Path) -> None:
    whole, places = content_of(path), offsets(path)
    data = bytearray(path.read_bytes())
    header = 23 + sum(struct.unpack(">HHH", data[places[4] + 17 : places[4] + 23]))
    data[places[4] + header + 8] ^= 0xFF  # the record's tid
    path.write_bytes(data)
    found, damage = read(path)
    # The transaction is left out, and no later one: none has data in it that this one points to.
    assert found == whole[:4] + whole[5:]
    (told,) = damage
    assert told.startswith(f"at {places[4]}: transaction {whole[4][0].hex()} has an unreadable record at ")


def test_a_record_that_others_point_to_costs_these_too(path: Path) -> None:
    whole, places = content_of(path), offsets(path)
    # The last two transactions are undos: their data is that of an earlier one.
    pointed = {record[3] for each in whole[-2:] for record in each[5]} - {None}
    index = next(i for i, each in enumerate(whole) if each[0] in pointed)
    data = bytearray(path.read_bytes())
    data[places[index] + 4 : places[index] + 16] = b"\xff" * 12
    path.write_bytes(data)
    found, damage = read(path)
    assert whole[index] not in found
    assert len(found) >= len(whole) - 3
    assert damage[0].startswith(f"at {places[index]}: ")


def test_no_length_in_it_is_believed(path: Path) -> None:
    whole, places = content_of(path), offsets(path)
    pointed = {record[3] for each in whole[-2:] for record in each[5]} - {None}
    index = next(i for i, each in enumerate(whole) if each[0] in pointed)
    data = bytearray(path.read_bytes())
    header = 23 + sum(struct.unpack(">HHH", data[places[index] + 17 : places[index] + 23]))
    record = places[index] + header
    data[record + 34 : record + 42] = (1 << 62).to_bytes(8)  # found by those that point to it, too
    path.write_bytes(data)
    found, damage = read(path)
    assert whole[index] not in found
    assert whole[-1] not in found or whole[-2] not in found
    assert len(damage) > 1


def test_a_record_that_repeats_itself_ends_nothing(path: Path) -> None:
    whole, places = content_of(path), offsets(path)
    data = bytearray(path.read_bytes())
    records = []
    for place in places[-2:]:  # undos: a record is a header of 42 bytes, and where the data is
        header = 23 + sum(struct.unpack(">HHH", data[place + 17 : place + 23]))
        records.append(place + header)
    for record in records:
        data[record + 42 : record + 50] = records[0].to_bytes(8)
    path.write_bytes(data)
    found, damage = read(path)
    assert found == whole[:-2]
    assert len(damage) == 2


@pytest.mark.parametrize("place", ["tid", "length", "status"])
def test_a_damaged_header_is_jumped_over(path: Path, place: str) -> None:
    whole, places = content_of(path), offsets(path)
    begin, end = {"tid": (0, 8), "length": (8, 16), "status": (16, 17)}[place]
    data = bytearray(path.read_bytes())
    data[places[9] + begin : places[9] + end] = b"\x7f" * (end - begin)
    path.write_bytes(data)
    found, damage = read(path)
    assert found == whole[:9] + whole[10:]
    (told,) = damage
    assert told.startswith(f"at {places[9]}: ")
    assert told.endswith(f"; {places[10] - places[9]} bytes left out")


def test_whole_blocks_that_are_gone_are_jumped_over(path: Path) -> None:
    whole, places = content_of(path), offsets(path)
    data = bytearray(path.read_bytes())
    data[places[5] + 10 : places[8] + 30] = bytes(places[8] + 30 - places[5] - 10)
    path.write_bytes(data)
    found, damage = read(path)
    assert found == whole[:5] + whole[9:]
    assert damage == [
        f"at {places[5]}: a length that cannot be; {places[9] - places[5]} bytes left out"
    ] or damage == [
        f"at {places[5]}: the lengths at a transaction's two ends differ; {places[9] - places[5]} bytes left out"
    ]


def test_a_data_fs_inside_a_record_is_no_transaction_of_this_one(tmp_path: Path) -> None:
    inner = make(tmp_path / "inner.fs")
    path = tmp_path / "Data.fs"
    db = ZODB.DB(FileStorage(str(path)))
    for n in range(3):
        with db.transaction() as connection:
            connection.root()[f"file {n}"] = PersistentMapping(data=inner.read_bytes())
    db.close()
    whole, places = content_of(path), offsets(path)
    data = bytearray(path.read_bytes())
    data[places[2] : places[2] + 23] = b"\xff" * 23
    path.write_bytes(data)
    found, damage = read(path)
    assert found == whole[:2] + whole[3:]
    assert len(damage) == 1


def test_any_damage_is_survived_and_nothing_is_made_up(path: Path, rng: random.Random) -> None:
    whole = content_of(path)
    sound = path.read_bytes()
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(4, len(data))
            size = min(rng.choice([1, 8, 64, 900]), len(data) - at)
            data[at : at + size] = rng.randbytes(size) if rng.random() < 0.7 else bytes(size)
        if rng.random() < 0.3:
            del data[rng.randrange(4, len(data)) :]
        path.write_bytes(data)
        found, damage = read(path)
        # All that is wholly outside the damage is there. (Data has no checksum: what is wrong only there, or in a
        # user's name, comes over wrong.)
        ends = [*offsets_in(sound)[1:], len(sound)]
        places = zip(offsets_in(sound), ends, whole, strict=True)
        untouched = [each for start, end, each in places if data[start:end] == sound[start:end]]
        came = {each[0] for each in found}
        for each in untouched:  # what is missing is only an undo whose original is damaged
            assert each[0] in came or any(record[3] is not None for record in each[5]), (each[0], damage)
        assert damage or len(found) == len(whole) or len(data) < len(sound)
        assert sorted(came) == [each[0] for each in found]


def offsets_in(data: bytes) -> list[int]:
    found, position = [], 4
    while position < len(data):
        found.append(position)
        position += int.from_bytes(data[position + 8 : position + 16]) + 8
    return found


@pytest.mark.parametrize("data", [b"", b"FS", b"Dear Sir or Madam", b"\0" * 100])
def test_a_file_of_something_else_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(NotADataFile):
        DataFile(tmp_path / "x")
