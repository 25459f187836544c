"""`raftstorage pack`, with a cluster of one in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.client.cluster import Cluster
from raftstorage.ops import packing
from raftstorage.ops.cli import app
from raftstorage.ops.pack_cli import EXIT_NOT_COLLECTED
from raftstorage.proto import storage_pb2 as pb
from rich.console import Console
from typer.testing import CliRunner

Invoke = Callable[..., tuple[int, str]]


@pytest.fixture
def addresses(tmp_path: Path) -> str:
    return f"embedded:{tmp_path / 'db'}"


@pytest.fixture
def invoke(addresses: str) -> Invoke:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["pack", "--addresses", addresses, *arguments])
        return result.exit_code, result.output

    return run


def fill(addresses: str) -> float:
    """An object with three revisions and two that nothing refers to; the time before the newest one."""
    database = ZODB.DB(ClientStorage(addresses))
    connection = database.open()
    root = connection.root()
    root["gone"] = PersistentMapping(other=PersistentMapping())
    root["kept"] = PersistentMapping()
    transaction.commit()
    del root["gone"]
    transaction.commit()
    root["kept"]["a"] = 1
    transaction.commit()
    before = time.time()
    while time.time() == before:
        pass
    root["kept"]["b"] = 2
    transaction.commit()
    transaction.abort()
    connection.close()
    database.close()
    return before


def test_a_pack_says_what_it_removed(addresses: str, invoke: Invoke) -> None:
    fill(addresses)
    status, output = invoke("--json")
    told = json.loads(output[output.index("{") :])
    assert (status, told["removed_objects"], told["problem"]) == (0, 2, "")
    assert told["removed_records"] == 6  # two of the root, two of what is kept, two that were garbage
    assert told["removed_bytes"] > 100 and told["collect"] is True
    status, output = invoke()
    assert (status, "removed 0 records" in output) == (0, True)
    database = ZODB.DB(ClientStorage(addresses, read_only=True))
    with database.transaction() as connection:
        kept = connection.root()["kept"]
        assert dict(kept) == {"a": 1, "b": 2}
        assert len(database.history(kept._p_oid, 10)) == 1
    database.close()


def test_to_a_time_and_without_garbage(addresses: str, invoke: Invoke) -> None:
    before = fill(addresses)
    status, output = invoke("--days", "1")
    assert (status, output.strip()) == (0, "there is nothing to pack")
    status, output = invoke("--time", repr(before), "--no-collect")
    assert (status, "removed 3 records" in output, "nothing refers to" in output) == (0, True, False)


def test_nothing_to_pack(addresses: str, invoke: Invoke) -> None:
    with_root = ClientStorage(addresses)
    with_root.close()
    status, output = invoke()
    assert (status, output.strip()) == (0, "there is nothing to pack")


def test_garbage_that_cannot_be_told_has_an_exit_code(addresses: str, invoke: Invoke) -> None:
    storage = ClientStorage(addresses)
    meta = transaction.Transaction()
    storage.tpc_begin(meta)
    storage.store(bytes(8), bytes(8), b"no pickle", "", meta)
    storage.tpc_vote(meta)
    storage.tpc_finish(meta)
    storage.close()
    status, output = invoke()
    assert (status, "garbage was not collected" in output) == (EXIT_NOT_COLLECTED, True)


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--days", "1", "--time", "2020-01-01"], 2, "not both"),
        (["--time", "yesterday"], 2, "no date and time"),
        (["--time", "-1e30"], 2, "no such time"),
        (["--time", "nan"], 2, "no such time"),
        (["--time", "1e30"], 2, "is in the future"),
        (["--time", "2999-01-31T12:00"], 2, "is in the future"),
        (["--days", "-1"], 2, ""),
    ],
)
def test_what_is_asked_wrongly(
    addresses: str, invoke: Invoke, arguments: list[str], status: int, why: str
) -> None:
    fill(addresses)
    code, output = invoke(*arguments)
    assert (code, why in " ".join(output.split())) == (status, True), output
    storage = ClientStorage(addresses, read_only=True)
    assert storage.lastPack() == bytes(8)
    storage.close()


def test_some_seconds_to_come_mean_now(addresses: str, invoke: Invoke) -> None:
    """Of another clock."""
    fill(addresses)
    status, output = invoke("--time", repr(time.time() + packing.CLOCK_SECONDS / 2))
    assert (status, "removed 6 records" in output) == (0, True), output


def test_no_leader_and_old_members() -> None:
    result = CliRunner().invoke(app, ["pack", "--addresses", "127.0.0.1:1", "--timeout", "0.2"])
    assert result.exit_code == 1
    with (
        mock.patch.object(Cluster, "open", lambda self, patience: None),
        mock.patch.object(Cluster, "reaches", lambda self, level: False),
    ):
        result = CliRunner().invoke(app, ["pack"])
    assert (result.exit_code, "know packs yet" in result.output) == (1, True)


def test_a_refusal_is_told(addresses: str, invoke: Invoke) -> None:
    fill(addresses)
    with mock.patch.object(packing, "os") as fake:
        fake.urandom = lambda count: b"short"
        status, output = invoke()
    assert (status, "a pack's id must have 16 bytes" in " ".join(output.split())) == (1, True)


def test_times() -> None:
    now = 1_800_000_000.0
    assert packing.time_to_pack_to(None, None, now) == now
    assert packing.time_to_pack_to(2, None, now) == now - 172_800
    assert packing.time_to_pack_to(None, "12.5", now) == 12.5
    assert packing.time_to_pack_to(None, "2026-01-31T12:00Z", now) == 1_769_860_800
    assert packing.time_to_pack_to(None, "2026-01-31", now) == datetime(2026, 1, 31).timestamp()
    assert packing.time_to_pack_to(None, "1800000060", now) == now + 60
    with pytest.raises(ValueError, match="'1800000061' is in the future"):
        packing.time_to_pack_to(None, "1800000061", now)


def test_the_bar_shows_how_far_it_is() -> None:
    text = StringIO()
    with packing.Bar(Console(file=text, force_terminal=True, width=120)) as bar:
        bar.told(pb.PackState(phase="marking", done=1200, total=5000, unit="objects"))
        bar._progress.refresh()
        bar.told(pb.PackState(phase="removing", done=7, unit="transactions"))
        bar._progress.refresh()
    assert "looking for garbage" in text.getvalue() and "1,200 of 5,000 objects" in text.getvalue()
    assert "7 transactions" in text.getvalue()
