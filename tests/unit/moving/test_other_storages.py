"""Only what is current, and what comes from and goes to storages of other kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
import ZODB.config
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.ops.errors import CommandError
from ZODB.FileStorage import FileStorage
from ZODB.utils import load_current

from tests.unit.moving.files import bring, content, content_of, make, more, take

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
