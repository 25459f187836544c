"""A client of the ledger in a process of its own: its threads share one storage with its cache.

    python -m tests.e2e.cache_client OPTIONS

OPTIONS: JSON of `addresses`, `seed`, numbers of `readers` and `writers`, and more options of ClientStorage. It
looks at everything once and prints a line of JSON; works until its standard input ends or something is wrong; and
prints another one. Half of all reads go round the connection's own cache of objects: they ask the storage's.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import ZODB
from raftstorage.client import ClientStorage, CommitOutcomeUnknown
from transaction import TransactionManager
from transaction.interfaces import TransientError

from tests.e2e import ledger

#: Seconds from one look of a thread to its next, so that there is something new and the machine has time for it.
PAUSE = 0.005


class Client:
    def __init__(self, storage: ClientStorage) -> None:
        self.storage = storage
        self.db = ZODB.DB(storage)
        self.stop = threading.Event()
        self.problems: list[str] = []
        self.looks = self.moves = 0
        self._lock = threading.Lock()
        self._newest = 0  # that a transaction here has seen or made

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        """As DB.transaction, which leaves its connection open when a commit is refused."""
        manager = TransactionManager()
        connection = self.db.open(manager)
        try:
            yield connection
            manager.commit()
        finally:
            manager.abort()
            connection.close()

    def look(self, rng: random.Random) -> None:
        """A snapshot is whole, and no older than what any thread here knew before."""
        with self._lock:
            floor = self._newest
        with self._transaction() as connection:
            if rng.random() < 0.5:
                connection.cacheMinimize()
            number = ledger.look(connection.root(), rng)
        if number < floor:
            raise ledger.Broken(f"transaction {number} was seen after {floor}")
        self._know(number)
        self.looks += 1

    def move(self, rng: random.Random) -> None:
        with self._transaction() as connection:
            ledger.look(connection.root(), rng)
            number = ledger.move(connection.root(), rng)
        self._know(number)
        self.moves += 1

    def _know(self, number: int) -> None:
        with self._lock:
            self._newest = max(self._newest, number)

    def again_and_again(self, work: Callable[[random.Random], None], rng: random.Random) -> None:
        while not self.stop.wait(PAUSE):
            try:
                work(rng)
            except (TransientError, CommitOutcomeUnknown):
                continue  # what an application does
            except BaseException:
                self.problems.append(traceback.format_exc())
                self.stop.set()

    def report(self) -> dict[str, Any]:
        figures = self.storage.cache.figures()
        return {"looks": self.looks, "moves": self.moves, "newest": self._newest, "problems": self.problems} | {
            "hits": figures.hits,
            "misses": figures.misses,
        }


def main(options: dict[str, Any]) -> None:
    seed, readers, writers = options.pop("seed"), options.pop("readers"), options.pop("writers")
    storage = ClientStorage(options.pop("addresses"), **options)
    client = Client(storage)
    with client.db.transaction() as connection:
        stones = len(connection.root()["stones"])
        before = storage.cache.figures()
        ledger.lift(connection.root())
        after = storage.cache.figures()
    client.look(random.Random(seed))
    first = client.report() | {"stones": stones, "fetched": after.misses - before.misses}
    print(json.dumps(first), flush=True)

    def end() -> None:
        sys.stdin.read()
        client.stop.set()

    threading.Thread(target=end, daemon=True).start()
    works = [client.look] * readers + [client.move] * writers
    threads = [
        threading.Thread(target=client.again_and_again, args=(work, random.Random(f"{seed}/{number}")))
        for number, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.stop.wait()
    client.db.close()
    print(json.dumps(client.report()), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
