"""zodburi's `raftstorage://` and `raftstorage+embedded://`."""

from __future__ import annotations

from pathlib import Path

import pytest
import ZODB
import zodburi
from raftstorage.client import ClientDisconnected, ClientStorage
from raftstorage.client.config import uri


def test_an_embedded_database_opens_with_the_storages_and_the_databases_arguments(tmp_path: Path) -> None:
    factory, arguments = zodburi.resolve_uri(
        f"raftstorage+embedded://{tmp_path}/one?name=first&wait_timeout=2.5&commit_timeout=5"
        "&consistency=linearizable&database_name=main&connection_pool_size=3&connection_cache_size=50"
    )
    assert arguments == {"database_name": "main", "pool_size": 3, "cache_size": 50}
    db = ZODB.DB(factory(), **arguments)
    try:
        assert isinstance(db.storage, ClientStorage)
        assert db.storage.getName() == "first"
        assert db.storage.cluster.wait_timeout == 2.5
        assert db.storage.cluster.commit_timeout == 5.0
        with db.transaction() as connection:
            connection.root()["x"] = 1
    finally:
        db.close()
    read_only, arguments = zodburi.resolve_uri(f"raftstorage+embedded://{tmp_path}/./one?read_only=1")
    assert arguments["database_name"] == "unnamed"
    storage = read_only()
    assert storage.isReadOnly()
    storage.close()


def test_addresses_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr(
        "raftstorage.client.storage.ClientStorage", lambda *args, **options: opened.append((args, options))
    )
    for text in ("raftstorage://one:1,[::1]:2", "raftstorage://one:1,[::1]:2/", "raftstorage://one:1,[::1]:2/?"):
        zodburi.resolve_uri(text)[0]()
    zodburi.resolve_uri(
        "raftstorage://one:1/?wait=no&read_only=true&cache_size=5MB&blob_dir=/b&blob_cache_size=1gb&shared_blob_dir=0"
    )[0]()
    assert opened == [((("one:1", "[::1]:2"),), {})] * 3 + [
        (
            (("one:1",),),
            {
                "wait": False,
                "read_only": True,
                "cache_size": 5 << 20,
                "blob_dir": "/b",
                "blob_cache_size": 1 << 30,
                "shared_blob_dir": False,
            },
        )
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raftstorage://", "at least one address"),
        ("raftstorage://one", "host:port: 'one'"),
        ("raftstorage://one:1/main", "there is no path: 'main'"),
        ("raftstorage://one:1/?wait=perhaps", "wait: not a valid boolean"),
        ("raftstorage://one:1/?wait_timeout=-1", "wait_timeout: not a number of seconds"),
        ("raftstorage://one:1/?cache_size=-1MB", "cache_size: not a number of bytes"),
        ("raftstorage://one:1/?consistency=none", "consistency: consistency is"),
        ("raftstorage://one:1/?wait", "bad query field"),
        ("raftstorage+embedded://", "no directory"),
        ("raftstorage+embedded:here", "not of the form"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        zodburi.resolve_uri(text)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(zodburi.UnknownDatabaseKeywords, match="colour"):
        zodburi.resolve_uri("raftstorage://one:1/?colour=red")


def test_it_is_below_a_demo_storage_as_others_are(tmp_path: Path) -> None:
    ZODB.DB(ClientStorage(f"embedded:{tmp_path}/one")).close()
    factory, arguments = zodburi.resolve_uri(
        f"demo:(raftstorage+embedded://{tmp_path}/one?read_only=1)/(memory://changes)#database_name=demo"
    )
    assert arguments["database_name"] == "demo"
    db = ZODB.DB(factory())
    with db.transaction() as connection:
        connection.root()["x"] = 1
    assert db.storage.base.isReadOnly()
    db.close()


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage, _ = uri.resolve_cluster("raftstorage://127.0.0.1:1/?wait=no&wait_timeout=0.2")
    with pytest.raises(ClientDisconnected, match="no node could be reached"):
        open_storage()
