"""The drill finds its unique ids in what a storage holds, and tells one that is there twice."""

from __future__ import annotations

from pathlib import Path

import ZODB
from raftstorage.ops.drills.kill_leader import marks_in
from raftstorage.ops.drills.objects import Mark, Slot
from raftstorage.ops.drills.writer import MARK
from ZODB.FileStorage import FileStorage

ONE, TWO = "1" * 32, "2" * 32


def test_marks_are_found_once_for_each_transaction(tmp_path: Path) -> None:
    db = ZODB.DB(FileStorage(str(tmp_path / "Data.fs")))
    with db.transaction() as connection:
        connection.root()["slot"] = Slot()
    tids = []
    for uid in (ONE, TWO, ONE):
        with db.transaction() as connection:
            slot = connection.root()["slot"]
            slot.latest = Mark(MARK + uid, slot.latest)
        tids.append(slot._p_serial.hex())
    found = marks_in(db.storage.iterator())
    db.close()
    assert found == {ONE: [tids[0], tids[2]], TWO: [tids[1]]}
