"""One database: embedded in a process that is killed, then served on a port, then embedded again."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ZODB
from raftstorage.client import ClientStorage
from raftstorage.ops.ports import free_ports

from tests.e2e.test_up import read_until

WRITER = textwrap.dedent(
    """
    import sys, threading, transaction, ZODB
    from raftstorage.client import ClientStorage

    db = ZODB.DB(ClientStorage(sys.argv[1]))
    with db.transaction() as connection:
        for name in "ab":
            connection.root().setdefault(name, 0)

    def write(name):
        manager = transaction.TransactionManager()
        connection = db.open(manager)
        while True:
            connection.root()[name] += 1  # one of the two threads conflicts, again and again
            number = connection.root()[name]
            try:
                manager.commit()
            except transaction.interfaces.TransientError:
                manager.abort()
            else:
                sys.stdout.write(f"{name} {number}\\n")
                sys.stdout.flush()

    for name in "ab":
        threading.Thread(target=write, args=(name,)).start()
    """
)


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def test_nothing_acknowledged_is_lost_when_the_application_is_killed(
    disk_directory: Path, rng: random.Random
) -> None:
    place = f"embedded:{disk_directory}/database"
    said = {"a": 0, "b": 0}
    for _ in range(6):
        with process("-c", WRITER, place) as writer:
            assert writer.stdout is not None
            left = rng.randrange(1, 80)
            for line in writer.stdout:
                name, number = line.split()
                said[name] = int(number)
                left -= 1
                if left == 0:
                    writer.send_signal(signal.SIGKILL)
            assert writer.wait(60) == -signal.SIGKILL, writer.stderr and writer.stderr.read()
        db = ZODB.DB(ClientStorage(place))
        with db.transaction() as connection:
            found = {name: connection.root()[name] for name in said}
        db.close()
        for name, number in said.items():
            assert number <= found[name] <= number + 1  # the one that was under way
        said = found


def test_a_database_is_embedded_and_served_in_turn(disk_directory: Path) -> None:
    directory = disk_directory / "database"
    for turn in range(2):
        db = ZODB.DB(ClientStorage(f"embedded:{directory}"))
        with db.transaction() as connection:
            assert connection.root().get("turns", 0) == 2 * turn
            connection.root()["turns"] = 2 * turn + 1
        words = ["-m", "raftstorage.ops.cli", "serve", "--dir", str(directory)]
        with process(*words) as refused:
            assert refused.wait(60) == 5
            assert "in use by another process" in refused.communicate()[1]
        db.close()

        address = f"127.0.0.1:{free_ports(1)[0]}"  # another one each time
        with process(*words, "--listen", address, "--lease-ms", "5000") as node:
            assert node.stdout is not None
            told = read_until(node.stdout, r'ClientStorage\("(.*)"\)')[1]
            assert told == address
            db = ZODB.DB(ClientStorage(told))
            with db.transaction() as connection:
                assert connection.root()["turns"] == 2 * turn + 1
                connection.root()["turns"] = 2 * turn + 2
            db.close()
            node.send_signal(signal.SIGINT)
            assert node.wait(60) == 0


def test_what_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    for words, status, why in (
        (["--listen", "0.0.0.0:7441"], 2, "--advertise"),
        (["--listen", "127.0.0.1:0"], 2, "port 0"),
        (["--lease-ms", "0"], 2, "--lease-ms"),
        (["--nonsense"], 2, "--nonsense"),
        (["--dir", "/dev/null"], 5, "/dev/null"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "raftstorage.ops.cli", "serve", "--dir", str(tmp_path / "node"), *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done.stderr
        assert re.fullmatch(r"raftstorage node: .*\n", done.stderr), done.stderr
        assert why in done.stderr
