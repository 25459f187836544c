"""`<raftstorage>` in a configuration file: what it takes, what it opens, what it refuses and where."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ZConfig
import ZODB.config
from raftstorage.client import ClientDisconnected, ClientStorage
from raftstorage.client.config.options import OPTIONS
from raftstorage.client.config.section import RaftStorageSection

IMPORT = "%import raftstorage.client\n"


def section(text: str) -> RaftStorageSection:
    """The factory that a file makes, nothing opened yet."""
    schema = ZODB.config.getStorageSchema()
    config, _ = ZConfig.loadConfigFile(schema, StringIO(IMPORT + text))
    assert isinstance(config.storage, RaftStorageSection)
    return config.storage


def test_servers_come_in_lines_and_in_lists() -> None:
    made = section(
        "<raftstorage>\n server one:7441\n server two:7441, [::1]:7443\n server three:1 four:2\n</raftstorage>"
    )
    assert made.addresses == ("one:7441", "two:7441", "[::1]:7443", "three:1", "four:2")
    assert made.options == {}


ALL = """
<raftstorage main>
  server one:7441
  name catalogue
  read-only yes
  wait off
  wait-timeout 2.5
  commit-timeout 7
  consistency linearizable
  cache-size 20MB
  cache-path /var/cache/records
  blob-dir /var/cache/blobs
  blob-cache-size 2GB
  blob-cache-size-check 5
  shared-blob-dir false
  pack-gc no
</raftstorage>
"""


def test_every_option_has_its_key_and_comes_out_as_the_constructor_takes_it() -> None:
    options = section(ALL).options
    assert options == {
        "name": "catalogue",
        "read_only": True,
        "wait": False,
        "wait_timeout": 2.5,
        "commit_timeout": 7.0,
        "consistency": "linearizable",
        "cache_size": 20 << 20,
        "cache_path": "/var/cache/records",
        "blob_dir": "/var/cache/blobs",
        "blob_cache_size": 2 << 30,
        "blob_cache_size_check": 5,
        "shared_blob_dir": False,
        "pack_gc": False,
    }
    assert options.keys() == OPTIONS.keys()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "either `server` or `directory`"),
        ("server a:1\ndirectory /tmp/x", "either `server` or `directory`"),
        ("server a", "not an address of the form host:port: 'a'"),
        ("server a:1\nserver a:99999", "not an address of the form host:port: 'a:99999'"),
        ("server a:1\nconsistency eventual", "'snapshot' or 'linearizable', not 'eventual'"),
        ("server a:1\nwait-timeout -1", "not a number of seconds"),
        ("server a:1\nwait-timeout soon", "could not convert"),
        ("server a:1\nread-only perhaps", "not a valid boolean"),
        ("server a:1\nshared-blob-dir yes", "want a blob-dir"),
        ("server a:1\nread-only-fallback yes", "not a known key name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_opened(text: str, why: str) -> None:
    with pytest.raises(ZConfig.ConfigurationError, match=why):
        section(f"<raftstorage>\n{text}\n</raftstorage>")


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[tuple[Any, Path]]:
    """A database out of a file with every kind of nesting, and its directory."""
    text = f"""
    %import raftstorage.client
    <zodb main>
      cache-size 321
      <raftstorage catalogue>
        directory {tmp_path}/one
      </raftstorage>
    </zodb>
    <zodb second>
      <demostorage>
        <raftstorage base>
          directory {tmp_path}/two
          read-only yes
        </raftstorage>
      </demostorage>
    </zodb>
    """
    ClientStorage(f"embedded:{tmp_path}/two").close()
    ZODB.DB(ClientStorage(f"embedded:{tmp_path}/two")).close()
    db = ZODB.config.databaseFromString(text)
    yield db, tmp_path
    for each in db.databases.values():
        each.close()


def test_a_database_and_a_demo_storage_over_another_open_out_of_one_file(embedded: tuple[Any, Path]) -> None:
    db, _ = embedded
    assert db.database_name == "main"
    assert db.getCacheSize() == 321
    assert db.storage.getName() == "catalogue"
    demo = db.databases["second"].storage
    assert demo.base.isReadOnly()
    with db.transaction() as connection:
        connection.root()["here"] = 1
        connection.get_connection("second").root()["there"] = 2
    with db.transaction() as connection:
        assert connection.root()["here"] == 1
        assert connection.get_connection("second").root()["there"] == 2
        assert demo.base.lastTransaction() < demo.lastTransaction()


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAFTSTORAGE_SERVER", "a:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ZConfig.ConfigurationError, match="either `server` or `directory`"):
        section("<raftstorage>\n</raftstorage>")
    assert section("<raftstorage>\n directory ~/x\n</raftstorage>").addresses == "embedded:~/x"


def test_nobody_there_is_said_after_the_time_that_was_given() -> None:
    with pytest.raises(ClientDisconnected, match=r"127\.0\.0\.1:1"):
        section("<raftstorage>\n server 127.0.0.1:1\n wait-timeout 0.2\n</raftstorage>").open()
