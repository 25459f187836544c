"""Databases with blobs, history, undo and a packed past, on their way through a cluster: what comes out is what
went in, transaction by transaction, from and to storages of every kind."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ZEO
import ZODB
import ZODB.config
from raftstorage.ops.ports import free_ports
from ZODB.blob import Blob
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf

from tests.e2e import databases
from tests.e2e.test_import_export import raftstorage

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

#: How much importing and exporting may grow by, whatever the size of a blob.
GROWTH = 64 << 20


@pytest.fixture
def source(disk_directory: Path, rng: random.Random) -> tuple[Path, Path]:
    """A Data.fs and the directory of its blobs."""
    path, blobs = disk_directory / "Data.fs", disk_directory / "blobs"
    databases.fill(FileStorage(str(path), blob_dir=str(blobs)), rng)
    return path, blobs


def done(*arguments: object, status: int = 0) -> dict[str, Any]:
    """What the command says with --json."""
    process = raftstorage(*map(str, arguments), "--json")
    assert process.returncode == status, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def add(storage: Any, name: str, data: bytes) -> None:
    db = ZODB.DB(storage)
    with db.transaction(note=name) as connection:
        connection.root()[name] = Blob(data)
    db.close()


# ---- Data.fs ---------------------------------------------------------------------------------------------------


def test_a_data_fs_with_blobs_comes_out_as_it_went_in(
    cluster: LocalCluster, disk_directory: Path, source: tuple[Path, Path], open_storage: Callable[..., Any]
) -> None:
    path, blobs = source
    out, out_blobs = disk_directory / "out.fs", disk_directory / "out-blobs"
    whole = databases.of_file(path, blobs)
    assert {each[1] for each in whole} == {" ", "p"}
    records = [record for each in whole for record in each[5]]
    assert any(record[2] is None for record in records)
    assert any(record[3] for record in records)
    count = databases.blobs_in(whole)
    assert count == databases.BLOBS
    assert done("import", path, "--blob-dir", blobs, "--to", cluster.addresses)["copied"]["blobs"] == count
    storage = open_storage(cluster.addresses, blob_dir=disk_directory / "cache", consistency="linearizable")
    assert databases.of_storage(storage) == whole
    told = done("export", out, "--blob-dir", out_blobs, "--from", cluster.addresses, "--verify")
    assert told["compared"]["blobs"] == count
    assert databases.of_file(out, out_blobs) == whole

    # What is new, there and back; the leader has died between.
    cluster.kill(cluster.leader(timeout=30))
    add(FileStorage(str(path), blob_dir=str(blobs)), "new", b"new" * 100_000)
    assert done("import", path, "--blob-dir", blobs, "--to", cluster.addresses)["copied"]["blobs"] == 1
    assert done("export", out, "--blob-dir", out_blobs, "--from", cluster.addresses)["copied"]["blobs"] == 1
    assert databases.of_file(out, out_blobs) == databases.of_file(path, blobs)

    # The cluster is packed: both sides are still its copies, and a new file has what it has.
    assert raftstorage("pack", "--addresses", cluster.addresses).returncode == 0
    assert done("import", path, "--blob-dir", blobs, "--to", cluster.addresses, "--verify")["copied"]["blobs"] == 0
    done("export", out, "--blob-dir", out_blobs, "--from", cluster.addresses, "--verify")
    packed, packed_blobs = disk_directory / "packed.fs", disk_directory / "packed-blobs"
    told = done("export", packed, "--blob-dir", packed_blobs, "--from", cluster.addresses, "--verify")
    assert told["compared"]["blobs"] == told["copied"]["blobs"] < count
    storage.sync()
    assert databases.of_file(packed, packed_blobs) == databases.of_storage(storage)


def test_an_export_that_is_killed_at_a_blob_goes_on(
    cluster: LocalCluster, disk_directory: Path, source: tuple[Path, Path]
) -> None:
    path, blobs = source
    out, out_blobs = disk_directory / "out.fs", disk_directory / "out-blobs"
    done("import", path, "--blob-dir", blobs, "--to", cluster.addresses)
    program = (
        "import os, shutil, signal, sys\n"
        "copy = shutil.copyfileobj\n"
        "def dies(source, file, length=0):\n"
        f"    if os.fstat(source.fileno()).st_size == {databases.LARGE}:\n"
        "        file.write(source.read(1 << 20)); file.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    copy(source, file, length)\n"
        "shutil.copyfileobj = dies\n"
        "from raftstorage.ops.cli import app\n"
        "app(sys.argv[1:])"
    )
    arguments = ["export", str(out), "--blob-dir", str(out_blobs), "--from", cluster.addresses]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, timeout=120)
    assert killed.returncode == -9
    assert not out.exists()
    (left,) = (out_blobs / "tmp").iterdir()
    assert left.stat().st_size == 1 << 20
    told = done(*arguments, "--verify")
    assert 0 < told["copied"]["transactions"] < told["compared"]["transactions"]
    assert databases.of_file(out, out_blobs) == databases.of_file(path, blobs)
    assert list((out_blobs / "tmp").iterdir()) == []


def test_a_large_blob_needs_no_memory(cluster: LocalCluster, disk_directory: Path) -> None:
    megabytes = 192
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from raftstorage.ops.transfer import export_database, import_database\n"
        "from rich.console import Console\n"
        "from tests.e2e.blob_client import make, measured\n"
        "import ZODB\n"
        "from ZODB.blob import Blob\n"
        "from ZODB.FileStorage import FileStorage\n"
        "base, quiet = Path(sys.argv[1]), Console(quiet=True)\n"
        "def more(name, megabytes):\n"
        "    make(base / 'made', megabytes)\n"
        "    db = ZODB.DB(FileStorage(str(base / 'Data.fs'), blob_dir=str(base / 'blobs')))\n"
        "    with db.transaction() as connection:\n"
        "        connection.root()[name] = blob = Blob()\n"
        "        blob.consumeFile(str(base / 'made'))\n"
        "    db.close()\n"
        "where, blobs, out_blobs = sys.argv[2], base / 'blobs', base / 'out'\n"
        "def in_():\n"
        "    assert import_database(str(base / 'Data.fs'), where, quiet, blob_dir=blobs).compared.blobs\n"
        "def out():\n"
        "    assert export_database(str(base / 'out.fs'), where, quiet, blob_dir=out_blobs).compared.blobs\n"
        "more('small', 1); in_(); out()\n"
        "more('large', int(sys.argv[3]))\n"
        "print(json.dumps([measured(in_), measured(out)]))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(disk_directory), cluster.addresses, str(megabytes)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr
    print(found.stdout)
    for each in json.loads(found.stdout):
        assert each["growth"] < GROWTH


# ---- ZEO -------------------------------------------------------------------------------------------------------


@contextmanager
def zeo_server(path: Path, blobs: Path, directory: Path) -> Iterator[tuple[Path, Any]]:
    """A process of its own (ZEO.server would fork this one, which may have threads of gRPC). A configuration file
    of its client, and its address."""
    address = "127.0.0.1", free_ports(1)[0]
    (directory / "zeo-server.conf").write_text(
        f"<zeo>\n address {address[0]}:{address[1]}\n</zeo>\n"
        f"<filestorage>\n path {path}\n blob-dir {blobs}\n</filestorage>\n"
    )
    config = directory / "zeo.conf"
    config.write_text(
        f"%import ZEO\n<clientstorage>\n server {address[0]}:{address[1]}\n wait-timeout 60\n"
        f" blob-dir {directory}/zeo-cache\n</clientstorage>\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "ZEO.runzeo", "-C", str(directory / "zeo-server.conf")], cwd=directory
    ) as server:
        try:
            yield config, address
        finally:
            server.terminate()


def test_a_zeo_server_with_blobs_moves_while_it_is_used(
    cluster: LocalCluster, disk_directory: Path, source: tuple[Path, Path]
) -> None:
    path, blobs = source
    count = databases.blobs_in(databases.of_file(path, blobs))
    out, out_blobs = disk_directory / "out.fs", disk_directory / "out-blobs"
    with zeo_server(path, blobs, disk_directory) as (config, address):
        told = done("import", config, "--to", cluster.addresses)
        assert told["copied"]["blobs"] == told["compared"]["blobs"] == count
        add(ZEO.client(address, blob_dir=str(disk_directory / "application")), "new", b"new" * 300_000)
        told = done("import", config, "--to", cluster.addresses, "--verify")
        assert (told["copied"]["blobs"], told["compared"]["blobs"]) == (1, count + 1)
    done("export", out, "--blob-dir", out_blobs, "--from", cluster.addresses)
    assert databases.of_file(out, out_blobs) == databases.of_file(path, blobs)


def test_a_zeo_server_takes_no_blobs_and_says_so(
    cluster: LocalCluster, disk_directory: Path, source: tuple[Path, Path]
) -> None:
    path, blobs = source
    done("import", path, "--blob-dir", blobs, "--to", cluster.addresses)
    with zeo_server(disk_directory / "target.fs", disk_directory / "target", disk_directory) as (config, _):
        process = raftstorage("export", str(config), "--from", cluster.addresses)
    assert process.returncode == 1
    assert "takes no blobs, and object" in process.stderr
    assert process.stderr.count("raftstorage: ") == 1


# ---- RelStorage ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["shared", "cache"])
def relstorage(request: pytest.FixtureRequest, disk_directory: Path) -> Callable[..., Path]:
    """A configuration file of one on SQLite, whose blobs are files beside it or rows in it."""

    def write(name: str, *, keep_history: bool = True) -> Path:
        (disk_directory / name).mkdir()
        config = disk_directory / f"{name}.conf"
        config.write_text(
            f"%import relstorage\n<relstorage>\n keep-history {str(keep_history).lower()}\n"
            f" blob-dir {disk_directory}/{name}-blobs\n shared-blob-dir {str(request.param == 'shared').lower()}\n"
            f"<sqlite3>\n data-dir {disk_directory}/{name}\n</sqlite3>\n</relstorage>"
        )
        return config

    return write


def opened(config: Path) -> Any:
    return ZODB.config.storageFromString(config.read_text())


def of_config(config: Path) -> list[tuple[Any, ...]]:
    storage = opened(config)
    try:
        return databases.of_storage(storage)
    finally:
        storage.close()


def test_a_relstorage_is_a_source(
    cluster: LocalCluster, disk_directory: Path, relstorage: Callable[..., Path], rng: random.Random
) -> None:
    """Filled by an application, packed, and gone on with."""
    config = relstorage("source")
    databases.fill(opened(config), rng)
    whole = of_config(config)
    told = done("import", config, "--to", cluster.addresses)
    assert told["copied"]["blobs"] == databases.blobs_in(whole) == databases.BLOBS
    add(opened(config), "new", b"new" * 300_000)
    assert done("import", config, "--to", cluster.addresses, "--verify")["copied"]["blobs"] == 1
    storage = opened(config)
    storage.pack(2e9, referencesf)
    storage.close()
    assert of_config(config) != whole
    assert done("import", config, "--to", cluster.addresses, "--verify")["copied"]["transactions"] == 0
    out, out_blobs = disk_directory / "out.fs", disk_directory / "out-blobs"
    done("export", out, "--blob-dir", out_blobs, "--from", cluster.addresses)
    assert databases.of_file(out, out_blobs)[: len(whole)] == whole


def test_a_relstorage_is_a_target(
    cluster: LocalCluster, source: tuple[Path, Path], relstorage: Callable[..., Path]
) -> None:
    path, blobs = source
    config = relstorage("target")
    done("import", path, "--blob-dir", blobs, "--to", cluster.addresses)
    told = done("export", config, "--from", cluster.addresses, "--verify")
    assert told["compared"]["blobs"] == databases.BLOBS
    # It keeps no hints of what an undo repeats.
    assert databases.without_hints(of_config(config)) == databases.without_hints(databases.of_file(path, blobs))
    add(FileStorage(str(path), blob_dir=str(blobs)), "new", b"new" * 300_000)
    done("import", path, "--blob-dir", blobs, "--to", cluster.addresses)
    assert done("export", config, "--from", cluster.addresses)["copied"]["blobs"] == 1
    assert databases.without_hints(of_config(config)) == databases.without_hints(databases.of_file(path, blobs))


def test_a_history_free_relstorage_says_what_it_does_not_keep(
    cluster: LocalCluster, disk_directory: Path, source: tuple[Path, Path], relstorage: Callable[..., Path]
) -> None:
    path, blobs = source
    done("import", path, "--blob-dir", blobs, "--to", cluster.addresses)
    config = relstorage("free", keep_history=False)
    told = done("export", config, "--from", cluster.addresses, "--verify")
    assert "keeps no history" in told["notes"][0]
    newest = {r[0]: r for each in databases.of_file(path, blobs) for r in each[5]}
    assert {r[0]: r for each in of_config(config) for r in each[5] if r[2]} == {
        oid: (*r[:3], None, r[4]) for oid, r in newest.items() if r[2]
    }
    back = f"embedded:{disk_directory}/back"
    assert "keeps no history" in done("import", config, "--to", back, "--verify")["notes"][0]
    add(opened(config), "new", b"new")
    assert done("import", config, "--to", back, "--verify")["copied"]["blobs"] == 1
