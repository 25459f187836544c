"""Databases copied into a database of ours and out of it: whole, again, what is new, only what is current."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ZODB
from raftstorage.client import ClientStorage
from raftstorage.ops.errors import CommandError
from raftstorage.ops.moving import copying
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf

from tests.unit.moving.files import bring, content_of, make, more, offsets, take

Z64 = b"\0" * 8

# ---- whole -----------------------------------------------------------------------------------------------------


def test_in_and_out_again_it_is_the_same(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    path = make(tmp_path / "Data.fs")
    whole = content_of(path)
    outcome = bring(path, place)
    assert (outcome.had, outcome.last) == (Z64, whole[-1][0])
    assert outcome.copied.transactions == outcome.compared.transactions == len(whole)
    assert outcome.copied.records == sum(len(each[5]) for each in whole)
    assert outcome.problems == outcome.notes == []
    assert stored() == whole

    out = tmp_path / "out.fs"
    outcome = take(out, place, verify=True)
    assert outcome.compared.transactions == len(whole)
    assert content_of(out) == whole
    assert any(record[3] for each in whole for record in each[5]), "no undo is in it"
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith("out")) == ["out.fs"]


def test_it_goes_on_behind_what_is_there(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    path, out = make(tmp_path / "Data.fs"), tmp_path / "out.fs"
    bring(path, place)
    take(out, place)
    before = content_of(path)
    more(path, 100, 60)
    outcome = bring(path, place)
    assert outcome.had == before[-1][0]
    assert outcome.copied.transactions == outcome.compared.transactions == 60
    assert stored() == content_of(path)
    outcome = take(out, place)
    assert outcome.copied.transactions == 60
    assert content_of(out) == content_of(path)

    again = bring(path, place)
    assert again.copied.transactions == again.compared.transactions == 0
    everything = bring(path, place, verify=True)
    assert everything.copied.transactions == 0
    assert everything.compared.transactions == len(content_of(path))
    assert take(out, place, verify=False).compared.transactions == 0


def test_a_packed_source_goes_on_too(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "Data.fs")
    bring(path, place)
    db = ZODB.DB(FileStorage(str(path)))
    db.storage.pack(db.storage._ts.timeTime() + 1, referencesf)
    db.close()
    more(path, 50, 3)
    outcome = bring(path, place, verify=True)
    assert outcome.copied.transactions == 3
    assert outcome.compared.transactions == len(content_of(path))


# ---- refused ---------------------------------------------------------------------------------------------------


def test_a_database_of_something_else_is_left_alone(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    db = ZODB.DB(ClientStorage(place))
    with db.transaction() as connection:
        connection.root()["mine"] = 1
    db.close()
    before = stored()
    with pytest.raises(CommandError, match=r"not empty, and no earlier state of .*Nothing was written") as caught:
        bring(make(tmp_path / "Data.fs"), place)
    assert caught.value.exit_code == 2
    assert stored() == before


def test_a_later_state_is_refused(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    path = make(tmp_path / "Data.fs")
    old = tmp_path / "old.fs"
    old.write_bytes(path.read_bytes())
    more(path, 100, 1)
    bring(path, place)
    with pytest.raises(CommandError, match="only up to"):
        bring(old, place)
    assert stored() == content_of(path)


def test_two_that_parted_are_told_where(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    path = make(tmp_path / "Data.fs")
    other = tmp_path / "other.fs"
    other.write_bytes(path.read_bytes())
    bring(path, place)
    more(other, 200, 1)
    more(path, 300, 2)
    bring(other, place)
    before = stored()
    with pytest.raises(CommandError, match=r"has transaction [0-9a-f]{16}, .* has not\. Nothing"):
        bring(path, place)
    assert stored() == before


def test_a_record_that_differs_among_the_last_ones_is_found(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "Data.fs")
    bring(path, place)
    data = path.read_bytes()
    at = data.rindex(b"x" * 5)
    path.write_bytes(data[:at] + b"y" * 5 + data[at + 5 :])
    more(path, 100, 1)
    with pytest.raises(CommandError, match=r"object 0{15}1 of transaction [0-9a-f]{16} differs"):
        bring(path, place)


def test_verify_finds_what_differs_long_ago(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "Data.fs", count=80)
    bring(path, place)
    data = path.read_bytes()
    at = data.index(b"x" * 5)
    path.write_bytes(data[:at] + b"y" * 5 + data[at + 5 :])
    assert bring(path, place).copied.transactions == 0
    with pytest.raises(CommandError, match=r"the copy is not equal: object 0{15}1 of transaction"):
        bring(path, place, verify=True)


def test_an_empty_source_is_said_to_be_empty(tmp_path: Path, place: str) -> None:
    ClientStorage(place).close()
    FileStorage(str(tmp_path / "Data.fs")).close()
    with pytest.raises(CommandError, match="is empty"):
        bring(tmp_path / "Data.fs", place)
    with pytest.raises(CommandError, match="is empty"):
        take(tmp_path / "out.fs", place)
    assert not (tmp_path / "out.fs.part").exists()


def test_what_is_not_there_is_not_made(tmp_path: Path, place: str) -> None:
    ClientStorage(place).close()
    with pytest.raises(CommandError, match="no such file"):
        bring(tmp_path / "missing.fs", place)
    with pytest.raises(CommandError, match="no such directory"):
        take(tmp_path / "no" / "out.fs", place)
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir or Madam")
    with pytest.raises(CommandError, match=r"neither a Data.fs nor a configuration file"):
        bring(letter, place)
    with pytest.raises(CommandError, match=r"neither a Data.fs nor a configuration file"):
        take(letter, place)
    assert letter.read_text() == "Dear Sir or Madam"
    with pytest.raises(CommandError, match="No resolver found"):
        bring("nothing://here", place)


def test_a_damaged_target_is_left_alone(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "Data.fs")
    bring(path, place)
    data = path.read_bytes()[:-5]
    path.write_bytes(data)
    with pytest.raises(CommandError, match=r"is damaged at .* It was left alone"):
        take(path, place)
    assert path.read_bytes() == data


def test_a_target_in_use_is_left_alone(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "Data.fs")
    bring(path, place)
    storage = FileStorage(str(path))
    try:
        with pytest.raises(CommandError, match="in use by another process"):
            take(path, place)
    finally:
        storage.close()


# ---- damage and breaking off -----------------------------------------------------------------------------------


def test_what_is_damaged_is_left_out_and_told(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    path = make(tmp_path / "Data.fs")
    whole = content_of(path)
    data = bytearray(path.read_bytes())
    place_of_one = offsets(path)[5]
    data[place_of_one + 8 : place_of_one + 60] = b"\xff" * 52
    path.write_bytes(data)
    outcome = bring(path, place)
    (problem,) = outcome.problems
    assert problem.startswith(f"at {place_of_one}: ")
    assert problem.endswith(" bytes left out")
    assert stored() == whole[:5] + whole[6:]
    assert outcome.compared.transactions == len(whole) - 1


def test_an_unfinished_end_is_a_note(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    path = make(tmp_path / "Data.fs")
    whole = content_of(path)
    with path.open("ab") as file:
        file.write(b"\x7f" * 8 + (1000).to_bytes(8) + b"c" + bytes(6))
    outcome = bring(path, place)
    assert outcome.problems == []
    assert "not finished" in outcome.notes[0]
    assert stored() == whole


def test_an_import_that_breaks_off_goes_on(
    tmp_path: Path, place: str, stored: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "Data.fs", count=100)
    whole = content_of(path)
    look = copying._Checked._look_at
    seen = []

    def look_at(self: Any, each: Any) -> Any:
        seen.append(each)
        if len(seen) == 70:
            raise KeyboardInterrupt
        return look(self, each)

    monkeypatch.setattr(copying._Checked, "_look_at", look_at)
    with pytest.raises(KeyboardInterrupt):
        bring(path, place)
    half = stored()
    assert 0 < len(half) < len(whole)
    assert half == whole[: len(half)]
    outcome = bring(path, place)
    assert outcome.copied.transactions == len(whole) - len(half)
    assert stored() == whole


def test_an_export_that_breaks_off_goes_on(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = make(tmp_path / "Data.fs", count=30), tmp_path / "out.fs"
    bring(path, place)
    finish = FileStorage.tpc_finish
    done = []

    def tpc_finish(self: Any, *args: Any) -> Any:
        done.append(finish(self, *args))
        if len(done) == 20:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileStorage, "tpc_finish", tpc_finish)
    with pytest.raises(CommandError, match=r"no room for .*out.fs.part: No space left .* the same again goes on"):
        take(out, place)
    assert not out.exists()
    assert len(content_of(tmp_path / "out.fs.part")) == 20
    outcome = take(out, place, verify=True)
    assert outcome.copied.transactions == len(content_of(path)) - 20
    assert content_of(out) == content_of(path)
    assert not (tmp_path / "out.fs.part").exists()


def test_a_file_that_appears_during_the_export_is_left_alone(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = make(tmp_path / "Data.fs"), tmp_path / "out.fs"
    bring(path, place)
    close = FileStorage.close

    def closed(self: Any) -> None:
        close(self)
        out.write_text("old")

    monkeypatch.setattr(FileStorage, "close", closed)
    with pytest.raises(CommandError, match="left alone"):
        take(out, place)
    assert out.read_text() == "old"
    assert content_of(tmp_path / "out.fs.part") == content_of(path)
