"""`raftstorage log`, `show`, `undo` and `verify` on a real cluster, while it fails and when its disks lie."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import transaction
import ZODB
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from raftstorage.node.engine.layout import seal, unseal
from raftstorage.node.engine.rocks import RocksStore

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster


def raftstorage(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "raftstorage.ops.cli", *arguments], capture_output=True, text=True, timeout=timeout
    )
    print(" ".join(arguments), "->", done.returncode, done.stdout, done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def db(cluster: LocalCluster) -> Iterator[ZODB.DB]:
    db = ZODB.DB(ClientStorage(cluster.addresses))
    yield db
    db.close()


def change(db: ZODB.DB, name: str, user: str = "ada") -> str:
    """Changes the root and makes an object; the tid in hexadecimal digits."""
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    connection.root()[name] = PersistentMapping(name=name)
    manager.get().user = user
    manager.get().note(f"made {name}")
    manager.get().setExtendedInfo("request", f"/{name}")
    manager.commit()
    connection.close()
    tid: str = db.lastTransaction().hex()
    return tid


def test_the_log_and_its_filters(cluster: LocalCluster, db: ZODB.DB) -> None:
    tids = [change(db, f"thing {n}", "ada" if n % 2 else "grace") for n in range(6)]

    def log(*arguments: str) -> list[dict[str, Any]]:
        done = raftstorage("log", "--json", "--addresses", cluster.addresses, *arguments)
        assert done.returncode == 0
        return [json.loads(line) for line in done.stdout.splitlines()]

    every = log()
    assert [each["tid"] for each in every][:-1] == tids[::-1]
    assert every[0]["user"] == "ada"
    assert every[0]["description"] == "made thing 5"
    assert every[0]["extension"] == {"request": "/thing 5"}
    assert [each["tid"] for each in log("--user", "grace")] == tids[4::-2]
    assert [each["tid"] for each in log("-n", "2")] == tids[:-3:-1]
    assert [each["tid"] for each in log("--since", tids[1], "--until", tids[3])] == tids[3:0:-1]
    assert [each["tid"] for each in log("--since", every[3]["time"])][:3] == tids[:-4:-1]
    assert log("--until", "2000-01-01") == []
    with db.transaction() as connection:
        oid = connection.root()["thing 2"]._p_oid.hex()
    assert [each["tid"] for each in log("--oid", oid)] == [tids[2]]

    text = raftstorage("log", "-n", "1", "--addresses", cluster.addresses).stdout
    assert text.split() == [tids[5], every[0]["time"], "ada", "made", "thing", "5"]

    for arguments, code in (
        (("--since", "soon"), 2),
        (("--oid", "x"), 2),
        (("--oid", "0xffff"), 1),
        (("--addresses", "127.0.0.1:1", "--wait-timeout", "1"), 1),
    ):
        done = raftstorage(
            "log", *(() if "--addresses" in arguments else ("--addresses", cluster.addresses)), *arguments
        )
        assert done.returncode == code
        assert done.stderr.count("raftstorage: ") == 1


def test_following_goes_on_behind_a_failover(cluster: LocalCluster, db: ZODB.DB) -> None:
    before = change(db, "before")
    with subprocess.Popen(
        [
            sys.executable, "-u", "-m", "raftstorage.ops.cli", "log", "--follow", "--json", "-n", "1",
            "--addresses", cluster.addresses,
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()])
        reader.start()

        def following() -> str:
            return str(json.loads(lines.get(timeout=60))["tid"])

        try:
            assert following() == before
            tids = [change(db, f"a {n}") for n in range(3)]
            cluster.kill(cluster.leader(timeout=30))
            tids += [change(db, f"b {n}") for n in range(3)]
            assert [following() for _ in tids] == tids
        finally:
            process.kill()
            reader.join(10)


def test_objects_and_transactions_are_shown(cluster: LocalCluster, db: ZODB.DB) -> None:
    tid = change(db, "thing")
    with db.transaction() as connection:
        oid = connection.root()["thing"]._p_oid.hex()
        connection.root()["thing"]["more"] = 1

    def show(*arguments: str) -> dict[str, Any]:
        done = raftstorage("show", "--json", "--addresses", cluster.addresses, *arguments)
        assert done.returncode == 0
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    found = show(tid)
    assert found["user"] == "ada"
    assert found["extension"] == {"request": "/thing"}
    assert {each["oid"]: each["class"] for each in found["records"]} == {
        "0" * 16: "persistent.mapping.PersistentMapping",
        oid: "persistent.mapping.PersistentMapping",
    }
    root = show("0")
    assert root["references"] == [{"oid": oid, "class": "persistent.mapping.PersistentMapping"}]
    assert root["history"][0]["tid"] == tid == root["tid"]
    now, then = show(oid), show(f"0x{oid}", "--at", tid)
    assert then["tid"] == tid
    assert then["next"] == now["tid"] == db.lastTransaction().hex()
    assert len(now["history"]) == 2
    assert show(oid, "--revisions", "1")["history"] == now["history"][:1]
    text = raftstorage("show", "0", "--addresses", cluster.addresses).stdout
    assert f"->  {oid}  persistent.mapping.PersistentMapping" in text
    for name, code in (("0xffff", 1), ("f" * 16, 1), ("thing", 2)):
        done = raftstorage("show", name, "--addresses", cluster.addresses)
        assert done.returncode == code
        assert done.stderr.count("raftstorage: ") == 1
    assert raftstorage("show", oid, "--at", "2000-01-01", "--addresses", cluster.addresses).returncode == 1


def test_transactions_are_taken_back_or_not_at_all(cluster: LocalCluster, db: ZODB.DB) -> None:
    first, second = change(db, "first"), change(db, "second")

    def names() -> set[str]:
        db.storage.sync()
        with db.transaction() as connection:
            return set(connection.root())

    where = ("--addresses", cluster.addresses)
    done = raftstorage("undo", first, *where)
    assert done.returncode == 1
    assert "nothing was undone" in done.stderr
    assert names() == {"first", "second"}
    last = db.lastTransaction()
    done = raftstorage("undo", first, second, "--dry-run", *where)
    assert done.returncode == 0
    assert "can be undone: 3 objects" in done.stdout
    assert db.lastTransaction() == last
    done = raftstorage("undo", first, second, "--user", "grace", "--note", "not wanted", *where)
    assert done.returncode == 0
    assert names() == set()
    (line,) = raftstorage("log", "-n", "1", *where).stdout.splitlines()
    assert line.endswith("grace  not wanted")
    assert line.split()[0] in done.stdout
    assert raftstorage("undo", "f" * 16, *where).returncode == 1
    assert raftstorage("undo", "first", *where).returncode == 2


# ---- verify ----------------------------------------------------------------------------------------------------


def verify(cluster: LocalCluster, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = raftstorage("verify", "--json", "--addresses", cluster.addresses, "--timeout", "10", *arguments)
    return done.returncode, json.loads(done.stdout)


def test_sound_nodes_agree_while_others_write(
    cluster: LocalCluster, db: ZODB.DB, start_writers: Callable[..., Any]
) -> None:
    tid = change(db, "thing")
    with start_writers(2, cluster.addresses) as busy:
        busy.more(50)
        code, found = verify(cluster, "--tid", tid, "--references")
        assert code == 0
        assert found["tid"] == tid
        assert {node["records"] for node in found["nodes"]} == {3}
        code, found = verify(cluster)
        assert code == 0
        assert {node["records"] > 50 for node in found["nodes"]} == {True}
        busy.more(1)
    assert len({node["digest"] for node in found["nodes"]}) == 1
    db.pack()
    assert verify(cluster)[0] == 0
    cluster.kill((cluster.leader(timeout=30) + 1) % 3)
    code, found = verify(cluster)
    assert code == 1
    assert sorted(bool(node["error"]) for node in found["nodes"]) == [False, False, True]


def test_a_disk_that_lies_is_found_and_named(cluster: LocalCluster, db: ZODB.DB) -> None:
    for n in range(20):
        change(db, f"thing {n}")
    assert verify(cluster)[0] == 0
    liar = (cluster.leader(timeout=30) + 1) % 3

    def write(change_it: Callable[[bytes, bytes], bytes]) -> bytes:
        """Changes one record on the disk of a node that is stopped for it; the record's key."""
        cluster.stop(liar)
        (directory,) = cluster.node_directory(liar).rglob("CURRENT")
        store = RocksStore(directory.parent)
        key, value = list(store.scan("records", b""))[-1]
        store.write([("records", key, change_it(key, value))])
        store.flush()
        store.close()
        cluster.start(liar)
        return key

    original: list[bytes] = []

    def broken(key: bytes, value: bytes) -> bytes:
        original.append(value)
        return value[:-5] + bytes([value[-5] ^ 1]) + value[-4:]

    key = write(broken)
    code, found = verify(cluster)
    assert code == 1
    (node,) = [node for node in found["nodes"] if node["problems"]]
    assert node["node_id"] == cluster.node_id(liar)
    assert node["problems"] == [
        f"checksum of records {key.hex()} does not fit: the stored value is damaged",
        *[problem for problem in node["problems"][1:] if problem.startswith("transactions name ")],
    ]

    # The checksum fits, but it is another record: only the others tell.
    write(lambda key, value: seal(unseal("records", key, original[0])[:-1] + b"!"))
    code, found = verify(cluster)
    assert code == 1
    assert [node["problems"] for node in found["nodes"]] == [[], [], []]
    (difference,) = found["differences"]
    assert difference.startswith("the database is not the same everywhere: ")
    assert str(cluster.node_id(liar)) in difference
