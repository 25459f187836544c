"""Databases copied into a database of ours and out of it: whole, again, what is new, only what is current."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.ops import transfer
from raftstorage.ops.errors import CommandError
from raftstorage.ops.moving import copying
from raftstorage.ops.moving.copying import Outcome
from rich.console import Console
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf
from ZODB.utils import load_current

from tests.unit.moving.files import content, content_of, make, more, offsets

QUIET = Console(quiet=True)
Z64 = b"\0" * 8


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A database of one node."""
    return f"embedded:{tmp_path}/database"


def bring(source: Path | str, place: str, **options: Any) -> Outcome:
    return transfer.import_database(str(source), place, QUIET, **options)


def take(target: Path | str, place: str, **options: Any) -> Outcome:
    return transfer.export_database(str(target), place, QUIET, **options)


@pytest.fixture
def stored(place: str) -> Callable[[], list[tuple[Any, ...]]]:
    """What the database holds, as `content` tells it."""

    def read() -> list[tuple[Any, ...]]:
        storage = ClientStorage(place, read_only=True)
        try:
            return content(storage.iterator())
        finally:
            storage.close()

    return read


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
    with pytest.raises(OSError, match="No space left"):
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


# ---- only what is current --------------------------------------------------------------------------------------


def current(storage: Any) -> dict[bytes, tuple[bytes, bytes]]:
    """Each object's data and serial."""
    oids = {record.oid for each in storage.iterator() for record in each if record.data is not None}
    found = {}
    for oid in oids:
        try:
            found[oid] = load_current(storage, oid)
        except KeyError:
            continue
    storage.close()
    return found


def test_only_what_is_current_keeps_its_tids(tmp_path: Path, place: str, stored: Callable[[], Any]) -> None:
    path = make(tmp_path / "Data.fs")
    whole = content_of(path)
    outcome = bring(path, place, current_only=True)
    assert outcome.problems == []
    records = [record for each in stored() for record in each[5]]
    assert len({record[0] for record in records}) == len(records) < sum(len(each[5]) for each in whole)
    assert all(record[3] is None for record in records)
    assert current(ClientStorage(place)) == current(FileStorage(str(path), read_only=True))
    # A second run brings what has changed since, and what was deleted.
    more(path, 100, 3)
    db = ZODB.DB(FileStorage(str(path)))
    with db.transaction() as connection:
        connection.root()["short-lived"] = PersistentMapping()
    tid = db.lastTransaction()
    db.close()
    assert bring(path, place, current_only=True).copied.transactions == 2
    db = ZODB.DB(FileStorage(str(path)))
    db.undo(db.undoInfo(0, 1)[0]["id"])
    transaction.commit()
    db.close()
    outcome = bring(path, place, current_only=True, verify=True)
    assert outcome.had == tid
    assert outcome.copied.transactions == 1
    assert current(ClientStorage(place)) == current(FileStorage(str(path), read_only=True))
    with pytest.raises(CommandError, match="no earlier state of"):
        bring(path, place)


def test_only_what_is_current_comes_out(tmp_path: Path, place: str) -> None:
    path, out = make(tmp_path / "Data.fs"), tmp_path / "out.fs"
    bring(path, place)
    outcome = take(out, place, current_only=True)
    assert outcome.compared.transactions == outcome.copied.transactions == len(content_of(out))
    assert current(FileStorage(str(out))) == current(FileStorage(str(path), read_only=True))


# ---- other storages --------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    def write(text: str) -> str:
        path = tmp_path / f"storage-{len(list(tmp_path.glob('*.conf')))}.conf"
        path.write_text(text)
        return str(path)

    yield write


def test_a_configuration_file_and_a_uri_name_any_storage(
    tmp_path: Path, place: str, stored: Callable[[], Any], config: Callable[[str], str]
) -> None:
    path = make(tmp_path / "Data.fs")
    whole = content_of(path)
    section = f"<filestorage>\n path {path}\n read-only yes\n</filestorage>"
    bring(config(section), place)
    assert stored() == whole
    assert bring(config(f"<zodb>\n{section}\n</zodb>"), place, verify=True).compared.transactions == len(whole)
    assert bring(f"file://{path}?read_only=1", place, verify=True).compared.transactions == len(whole)
    take(f"file://{tmp_path}/out.fs", place)
    assert content_of(tmp_path / "out.fs") == whole
    with pytest.raises(CommandError, match="has 2 databases and storages"):
        bring(config(f"<zodb>\n{section}\n</zodb>\n{section}"), place)
    with pytest.raises(CommandError, match="no restore"):
        take("memory://there", place)


def test_a_demo_storage_comes_as_one_history(tmp_path: Path, place: str, config: Callable[[str], str]) -> None:
    path = make(tmp_path / "Data.fs")
    changes = tmp_path / "changes.fs"
    text = (
        f"<demostorage>\n<filestorage base>\n path {path}\n</filestorage>\n"
        f"<filestorage changes>\n path {changes}\n</filestorage>\n</demostorage>"
    )
    db = ZODB.config.databaseFromString(f"<zodb>\n{text}\n</zodb>")
    with db.transaction() as connection:
        connection.root()["over it"] = PersistentMapping(x=1)
    db.close()
    more(path, 100, 1)  # later than what is over it
    outcome = bring(config(text), place, verify=True)
    assert outcome.copied.transactions == len(content_of(path)) + 1
    db = ZODB.DB(ClientStorage(place))
    with db.transaction() as connection:
        assert connection.root()["over it"]["x"] == 1
        assert connection.root()["m"][100] == "x" * 100
    db.close()


@pytest.mark.parametrize("history", [True, False], ids=["history", "history-free"])
def test_relstorage_on_sqlite_comes_and_goes(
    tmp_path: Path, place: str, stored: Callable[[], Any], config: Callable[[str], str], history: bool
) -> None:
    def relstorage(name: str) -> str:
        return config(
            f"%import relstorage\n<relstorage>\n keep-history {str(history).lower()}\n"
            f"<sqlite3>\n data-dir {tmp_path}/{name}\n</sqlite3>\n</relstorage>"
        )

    path = make(tmp_path / "Data.fs")
    bring(path, place, current_only=not history)
    there = relstorage("there")
    outcome = take(there, place, verify=True)
    first = stored()
    assert outcome.compared.transactions == outcome.copied.transactions == len(first)
    more(path, 100, 2)
    bring(path, place, current_only=not history)
    if history:
        assert take(there, place).copied.transactions == 2
    back = f"embedded:{tmp_path}/back"
    outcome = bring(there, back, verify=True)
    storage = ClientStorage(back)
    came = content(storage.iterator())
    storage.close()
    if history:
        assert [each[:5] for each in came] == [each[:5] for each in content_of(path)]
        for ours, theirs in zip(came, content_of(path), strict=True):
            assert sorted(r[:3] for r in ours[5]) == sorted(r[:3] for r in theirs[5])
    else:
        assert {record[:2] for each in came for record in each[5]} == {
            record[:2] for each in first for record in each[5]
        }
