"""A real database goes in, is read whole while a follower dies, and comes out as it was.

The data is on every Debian or Ubuntu machine after `apt-get update`: the package index, one persistent object a
package, in BTrees, with a reference for each dependency.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transaction
import ZODB
from BTrees.OOBTree import OOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileIterator, FileStorage

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

MIN_OBJECTS = 10_000
#: CI takes so many packages; `--thorough` takes them all.
STANZAS = 12_000
PACKAGES_IN_TRANSACTION = 200
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")


class Package(Persistent):
    """A package of the index; `depends` are other packages, as far as they came before it."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.name = fields["Package"]
        self.fields = fields
        self.depends: list[Package] = []


def read_index() -> Iterator[dict[str, str]]:
    """The stanzas of the package index, each as a dictionary."""
    fields: dict[str, str] = {}
    key = ""
    with subprocess.Popen(
        ["apt-cache", "dumpavail"], stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.strip():
                if "Package" in fields:
                    yield fields
                fields = {}
            elif line[0] in " \t":
                fields[key] += "\n" + line.strip()
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if "Package" in fields:
            yield fields
    assert process.returncode == 0


def dependencies(fields: dict[str, str]) -> list[str]:
    """The names in Depends, each once."""
    names = (_NAME.match(part.strip()) for part in re.split(r"[,|]", fields.get("Depends", "")))
    return list(dict.fromkeys(match[0] for match in names if match))


def build(path: Path, most: int | None) -> int:
    """Makes the Data.fs at `path` of the first `most` stanzas of the package index; how many packages it has."""
    db = ZODB.DB(FileStorage(str(path)))
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    root = connection.root()
    root["packages"], root["sections"] = packages, sections = OOBTree(), OOBTree()
    manager.commit()
    stanzas = islice(read_index(), most)
    while chunk := list(islice(stanzas, PACKAGES_IN_TRANSACTION)):
        for fields in chunk:
            if fields["Package"] in packages:
                continue
            packages[fields["Package"]] = package = Package(fields)
            package.depends = [packages[name] for name in dependencies(fields) if name in packages]
            section = fields.get("Section", "none")
            if section not in sections:
                sections[section] = OOBTree()
            sections[section][package.name] = package
        current = manager.get()
        current.user = "archive"
        current.note(f"packages {chunk[0]['Package']} to {chunk[-1]['Package']}: größer")
        current.setExtendedInfo("chunk", len(chunk))
        manager.commit()
        connection.cacheGC()
    # Later revisions, an undo (a record that repeats another one's data) and a transaction without any record.
    for package in islice(sections["python"].values(), 500):
        package.depends = [packages[name] for name in dependencies(package.fields) if name in packages]
    manager.commit()
    root["note"] = PersistentMapping(text="to be undone")
    manager.commit()
    db.undo(db.undoInfo(0, 1)[0]["id"], manager.get())
    manager.commit()
    count = len(packages)
    connection.close()
    db.close()
    return count


@pytest.fixture(scope="module")
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The Data.fs of the package index, and how many packages it holds."""
    if shutil.which("apt-cache") is None:
        pytest.skip("no Debian package index: this system has no apt-cache")
    path = tmp_path_factory.mktemp("index") / "Data.fs"
    count = build(path, None if request.config.option.thorough else STANZAS)
    if count < MIN_OBJECTS:
        pytest.skip(f"the package index has {count} packages: run `apt-get update`")
    yield path, count
    shutil.rmtree(path.parent)


def raftstorage(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "raftstorage.ops.cli", *arguments], capture_output=True, text=True, timeout=timeout
    )
    print(" ".join(arguments), "->", done.returncode, done.stdout, done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    return done


def transactions(path: Path) -> Iterator[tuple[Any, ...]]:
    """Every transaction of a Data.fs, with all that it holds."""
    for t in FileIterator(str(path)):
        records = [(r.oid, r.tid, r.data) for r in t]
        yield t.tid, t.status, t.user, t.description, t.extension, t.extension_bytes, records


def describe(package: Package) -> tuple[Any, ...]:
    return package.name, package.fields, [other.name for other in package.depends]


def packages_of(db: Any, on_package: Callable[[int], None] = lambda n: None) -> Iterator[tuple[Any, ...]]:
    """All packages with their dependencies' names, in order."""
    with db.transaction() as connection:
        for number, package in enumerate(connection.root()["packages"].values()):
            yield describe(package)
            on_package(number)
            if number % 5000 == 4999:
                connection.cacheMinimize()


@pytest.mark.timeout(900)
def test_the_package_index_goes_in_is_read_whole_and_comes_out_equal(
    index: tuple[Path, int], cluster: LocalCluster, disk_directory: Path
) -> None:
    from raftstorage.client import ClientStorage

    path, count = index
    done = raftstorage("import", str(path), "--to", cluster.addresses)
    assert done.returncode == 0
    assert "imported: " in done.stdout
    assert "compared: " in done.stdout

    follower = (cluster.leader(timeout=30) + 1) % 3

    def kill_half_way(number: int) -> None:
        if number == count // 2:
            cluster.kill(follower)

    original = ZODB.DB(FileStorage(str(path), read_only=True))
    db = ZODB.DB(ClientStorage(cluster.addresses))
    try:
        seen = 0
        for ours, theirs in zip(packages_of(db, kill_half_way), packages_of(original), strict=True):
            assert ours == theirs
            seen += 1
    finally:
        db.close()
        original.close()
    assert seen == count >= MIN_OBJECTS
    assert not cluster.is_running(follower), "the follower was to die half-way"

    out = disk_directory / "out.fs"
    done = raftstorage("export", str(out), "--from", cluster.addresses)
    assert done.returncode == 0
    assert sorted(p.name for p in disk_directory.iterdir()) == ["cluster", "out.fs"]
    for ours, theirs in zip(transactions(out), transactions(path), strict=True):
        assert ours == theirs

    # What came out opens as a database.
    exported = ZODB.DB(FileStorage(str(out)))
    with exported.transaction() as connection:
        assert len(connection.root()["packages"]) == count
        assert "note" not in connection.root()
    exported.close()


def small_file(path: Path) -> Path:
    db = ZODB.DB(FileStorage(str(path)))
    with db.transaction() as connection:
        connection.root()["x"] = PersistentMapping(a=1)
    db.close()
    return path


def test_import_and_export_refuse_what_would_destroy_something(
    cluster: LocalCluster, disk_directory: Path
) -> None:
    path = small_file(disk_directory / "small.fs")
    empty = raftstorage("export", str(disk_directory / "empty.fs"), "--from", cluster.addresses)
    assert empty.returncode == 1
    assert "is empty" in empty.stderr

    assert raftstorage("import", str(path), "--to", cluster.addresses).returncode == 0
    other = small_file(disk_directory / "other.fs")
    again = raftstorage("import", str(other), "--to", cluster.addresses)
    assert again.returncode == 2
    assert "is not empty, and no earlier state of" in again.stderr

    before = other.read_bytes()
    over = raftstorage("export", str(other), "--from", cluster.addresses)
    assert over.returncode == 2
    assert "no earlier state of" in over.stderr
    assert other.read_bytes() == before

    out = disk_directory / "out.fs"
    assert raftstorage("export", str(out), "--from", cluster.addresses).returncode == 0
    assert list(transactions(out)) == list(transactions(path))


def test_nobody_there_is_one_line(disk_directory: Path) -> None:
    path = small_file(disk_directory / "small.fs")
    done = raftstorage("import", str(path), "--to", "127.0.0.1:1", "--wait-timeout", "1")
    assert done.returncode == 1
    assert done.stderr.count("raftstorage: ") == 1
    status = raftstorage("status", "--addresses", "127.0.0.1:1", "--timeout", "1")
    assert status.returncode == 1
    assert "no node answers" in status.stdout


# ---- breaking off ----------------------------------------------------------------------------------------------


def long_file(path: Path, transactions: int) -> Path:
    db = ZODB.DB(FileStorage(str(path)))
    for n in range(transactions):
        with db.transaction(note=f"number {n}") as connection:
            connection.root()[n % 50] = PersistentMapping(data="x" * 3000)
    db.close()
    return path


def test_an_import_whose_client_is_killed_goes_on(
    cluster: LocalCluster, disk_directory: Path, wait_for: Callable[..., Any]
) -> None:
    from raftstorage.client import ClientStorage

    path = long_file(disk_directory / "long.fs", 1500)
    storage = ClientStorage(cluster.addresses, consistency="linearizable")
    with subprocess.Popen(
        [sys.executable, "-m", "raftstorage.ops.cli", "import", str(path), "--to", cluster.addresses],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:

        def begun() -> int:
            storage.sync()
            return sum(1 for _ in storage.iterator()) if storage.lastTransaction() != b"\0" * 8 else 0

        wait_for(lambda: begun() > 20, "some transactions that came over", timeout=60)
        process.kill()
    count = begun()
    storage.close()
    assert 20 < count < 1501
    cluster.kill(cluster.leader(timeout=30))

    done = raftstorage("import", str(path), "--to", cluster.addresses, "--verify")
    assert done.returncode == 0
    # What was on its way when the client died may have come in after the count.
    (imported,) = re.findall(r"imported: (\d+) transactions", done.stdout)
    assert 0 < int(imported) <= 1501 - count
    assert "compared: 1501 transactions" in done.stdout


def test_a_cluster_without_room_says_so_and_goes_on_later(
    start_cluster: Callable[..., LocalCluster], disk_directory: Path
) -> None:
    path = long_file(disk_directory / "long.fs", 50)
    cluster = start_cluster(disk_reserve_bytes=1 << 60)
    done = raftstorage("import", str(path), "--to", cluster.addresses, "--wait-timeout", "3")
    assert done.returncode == 1
    assert "StorageFull" in done.stderr
    assert done.stderr.count("raftstorage: ") == 1


def test_a_target_without_room_is_gone_on_with(cluster: LocalCluster, disk_directory: Path) -> None:
    path, out = long_file(disk_directory / "long.fs", 400), disk_directory / "out.fs"
    assert raftstorage("import", str(path), "--to", cluster.addresses).returncode == 0
    limited = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "from raftstorage.ops.cli import app\n"
        "app(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "export", str(out), "--from", cluster.addresses],
        capture_output=True,
        text=True,
        timeout=120,
    )
    print(done.stderr)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    partial = disk_directory / "out.fs.part"
    came = sum(1 for _ in FileIterator(str(partial)))
    assert 0 < came < 401
    done = raftstorage("export", str(out), "--from", cluster.addresses)
    assert done.returncode == 0
    assert f"exported: {401 - came} transactions" in done.stdout
    assert list(transactions(out)) == list(transactions(path))
    assert [each.name for each in disk_directory.glob("out*")] == ["out.fs"]


def test_damage_is_told_by_offset_and_by_the_exit_status(cluster: LocalCluster, disk_directory: Path) -> None:
    path = long_file(disk_directory / "long.fs", 30)
    offsets = [each._tpos for each in FileIterator(str(path))]
    data = bytearray(path.read_bytes())
    data[offsets[10] : offsets[10] + 50] = bytes(50)
    path.write_bytes(data)
    done = raftstorage("import", str(path), "--to", cluster.addresses)
    assert done.returncode == 3
    assert "imported: 30 transactions" in done.stdout
    assert f"left out: at {offsets[10]}: " in done.stderr
    assert done.stderr.count("left out: ") == 1


# ---- other storages --------------------------------------------------------------------------------------------


def test_a_zeo_server_comes_in_and_goes_out(cluster: LocalCluster, disk_directory: Path) -> None:
    import ZEO

    path = long_file(disk_directory / "long.fs", 100)
    address, stop = ZEO.server(str(path), threaded=False)
    try:
        config = disk_directory / "zeo.conf"
        config.write_text(f"%import ZEO\n<clientstorage>\n server {address[0]}:{address[1]}\n</clientstorage>\n")
        done = raftstorage("import", str(config), "--to", cluster.addresses)
        assert done.returncode == 0
        assert "imported: 101 transactions" in done.stdout
        assert "compared: 101 transactions" in done.stdout
        uri = f"zeo://{address[0]}:{address[1]}?wait_timeout=10"
        assert raftstorage("import", uri, "--to", cluster.addresses, "--verify").returncode == 0
    finally:
        stop()

    target = disk_directory / "target.fs"
    address, stop = ZEO.server(str(target), threaded=False)
    try:
        done = raftstorage("export", f"zeo://{address[0]}:{address[1]}", "--from", cluster.addresses)
        assert done.returncode == 0
    finally:
        stop()
    assert list(transactions(target)) == list(transactions(path))
