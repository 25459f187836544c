"""An `embedded:` directory and several processes: locks, ends without a close, forks, what must be installed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import ZODB
from raftstorage.client import ClientStorage

from tests.unit.client.embedding import commit, directory


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=120
    )


OPEN = """
    import sys
    from raftstorage.client import ClientStorage
    from zc.lockfile import LockError
    try:
        ClientStorage(sys.argv[1])
    except LockError as error:
        print(type(error).__name__, error)
"""


def test_a_second_process_is_refused(place: str) -> None:
    storage = ClientStorage(place)
    commit(storage, b"mine")
    done = run(OPEN, place)
    assert done.stdout == f"DirectoryInUse {directory(place)} is in use by another process\n", done.stderr
    commit(storage, b"still mine")
    storage.close()


def test_without_a_nodes_packages_it_says_what_to_install(place: str) -> None:
    done = run(
        """
        import sys
        for name in ("rocksdict",): sys.modules[name] = None
        from raftstorage.client import ClientStorage
        ClientStorage(sys.argv[1])
        """,
        place,
    )
    assert done.stderr.splitlines()[-1].startswith("ImportError: an embedded: storage needs")
    assert "pip install 'raftstorage[node]'" in done.stderr
    assert not directory(place).exists()


def test_a_process_that_ends_without_closing_ends_quietly_and_loses_nothing(place: str) -> None:
    done = run(
        """
        import sys, ZODB
        from raftstorage.client import ClientStorage
        db = ZODB.DB(ClientStorage(sys.argv[1]))
        with db.transaction() as connection:
            connection.root()["left"] = "open"
        """,
        place,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    db = ZODB.DB(ClientStorage(place))
    with db.transaction() as connection:
        assert connection.root()["left"] == "open"
    db.close()


def test_it_can_be_closed_as_the_process_ends(place: str) -> None:
    done = run(
        """
        import atexit, sys, ZODB
        from raftstorage.client import ClientStorage
        db = ZODB.DB(ClientStorage(sys.argv[1]))
        with db.transaction() as connection:
            connection.root()["closed"] = "at exit"
        atexit.register(lambda: print("closed"))
        atexit.register(db.close)
        """,
        place,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
    db = ZODB.DB(ClientStorage(place))
    with db.transaction() as connection:
        assert connection.root()["closed"] == "at exit"
    db.close()


def test_a_child_of_a_fork_does_not_keep_the_directory(place: str) -> None:
    done = run(
        """
        import os, sys
        from raftstorage.client import ClientStorage
        storage = ClientStorage(sys.argv[1])
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                ClientStorage(sys.argv[1])
            except RuntimeError as error:
                print(error, flush=True)
            os.close(writing)
            os.read(reading, 1)  # until the parent is through
            os._exit(0)
        storage.close()
        ClientStorage(sys.argv[1]).close()
        os.close(writing)
        assert os.waitpid(child, 0)[1] == 0
        print("closed and opened again")
        """,
        place,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "a storage was opened before os.fork(); open storages in the child only",
        "closed and opened again",
    ]
