"""Storages on top of a cluster's, and a cluster's below others: DemoStorage, HexStorage, zc.zlibstorage.

ZODB's own suites run over each wrapper, on a directory of their own for each check; what several clients see of
one another, and two-phase commit over several databases, is for a live cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transaction
import ZODB.config
from BTrees.Length import Length
from persistent.mapping import PersistentMapping
from raftstorage.client import ClientStorage
from zc.zlibstorage import ZlibStorage
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.interfaces import IStorageWrapper
from ZODB.MappingStorage import MappingStorage
from ZODB.POSException import ConflictError, ReadOnlyError
from ZODB.utils import load_current

from tests.conformance.cases import CHECKS, MIXINS, Embedded, Hex, make_cases, missing

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster

WRAPPERS: list[Callable[[Any], Any]] = [Hex, ZlibStorage]

# ---- ZODB's suites ---------------------------------------------------------------------------------------------


class UnderZlib(Embedded):
    """Records are compressed; test_zodb_mixins.py does this with HexStorage."""

    def client(self, **options: Any) -> Any:
        return ZlibStorage(super().client(**options))


class OnBase(Embedded):
    """DemoStorages with an empty database of ours below them."""

    def client(self, **options: Any) -> Any:
        return DemoStorage(base=super().client(**options), changes=MappingStorage())


class OnChanges(Embedded):
    """DemoStorages that write into a database of ours."""

    def client(self, **options: Any) -> Any:
        return DemoStorage(changes=super().client(**options))


#: What ZODB asks of DemoStorages: what is over a base is in memory, and new_oid() does not refuse.
DEMO = ("Basic", "Revision", "History", "MT", "Synchronization", "Iterator")
CASES = {
    UnderZlib: make_cases(UnderZlib, __name__),
    OnBase: make_cases(OnBase, __name__, DEMO),
    OnChanges: make_cases(OnChanges, __name__, DEMO),
}
for cases in CASES.values():  # where a test runner looks for them
    globals().update(cases)


def _nobody_else(case: Any) -> Any:
    """ZODB's checks of several clients skip themselves: a DemoStorage passes no invalidations of others on."""
    raise NotImplementedError


def _no_undo(case: Any) -> None:
    pytest.skip("a MappingStorage has no undo, and no DemoStorage over it")


for cases in (CASES[OnBase], CASES[OnChanges]):
    for case in cases.values():
        case._new_storage_client = _nobody_else  # type: ignore[attr-defined]
CASES[OnBase]["TestRevisionOnBase"].testLoadBeforeUndo = _no_undo  # type: ignore[attr-defined]
CASES[OnBase]["TestIteratorOnBase"].testUndoZombie = _no_undo  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", CASES, ids=lambda place: place.__name__)
def test_every_check_is_collected(place: type) -> None:
    found = CASES[place].values()
    assert len(found) == len(MIXINS if place is UnderZlib else DEMO)
    assert [missing(mixin, case) for case in found for mixin in CHECKS if issubclass(case, mixin)] == [
        set() for case in found for mixin in CHECKS if issubclass(case, mixin)
    ]


# ---- on a cluster ----------------------------------------------------------------------------------------------


@pytest.fixture
def open_db() -> Iterator[Callable[..., ZODB.DB]]:
    with ExitStack() as stack:

        def open_(storage: Any, **arguments: Any) -> ZODB.DB:
            db = ZODB.DB(storage, **arguments)
            stack.callback(db.close)
            return db

        yield open_


def fill(db: ZODB.DB, **items: object) -> None:
    with db.transaction() as connection:
        connection.root()["m"] = PersistentMapping(items)


def content(db: ZODB.DB) -> dict[str, Any]:
    with db.transaction() as connection:
        return dict(connection.root()["m"])


def change(db: ZODB.DB, **items: object) -> None:
    with db.transaction() as connection:
        connection.root()["m"].update(items)


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
def test_clients_see_one_another_through_their_wrappers(
    wrapper: Any, cluster: LocalCluster, open_db: Callable[..., ZODB.DB], open_storage: Callable[..., Any]
) -> None:
    one = open_db(wrapper(ClientStorage(cluster.addresses)))
    two = open_db(wrapper(ClientStorage(cluster.addresses, consistency="linearizable")))
    assert IStorageWrapper.providedBy(one.storage) or wrapper is ZlibStorage
    fill(one, text="x" * 5000)
    assert content(two) == {"text": "x" * 5000}
    cached = two.open()
    assert cached.root()["m"]["text"] == "x" * 5000
    change(one, more=1)
    cluster.kill(cluster.leader(timeout=30))
    change(one, more=2)
    cached.sync()
    assert cached.root()["m"]["more"] == 2
    cached.close()

    # What is stored is what the wrapper made of it, and each time that one looks it is unwrapped once.
    bare = open_storage(cluster.addresses)
    with two.transaction() as connection:
        oid = connection.root()["m"]._p_oid
    assert load_current(bare, oid)[0][:2] == (b".z" if wrapper is ZlibStorage else b".h")
    for each in one.storage.iterator():
        assert [record.data for record in each] == [record.data for record in each]


def test_a_change_between_a_wrapper_and_its_database_hurts_nobody(
    cluster: LocalCluster, open_db: Callable[..., ZODB.DB]
) -> None:
    writer = open_db(ZlibStorage(ClientStorage(cluster.addresses)))
    fill(writer, n=0)
    storage = ZlibStorage(ClientStorage(cluster.addresses, consistency="linearizable"))
    change(writer, n=1)
    storage.sync()  # the change is delivered, to nobody
    assert content(open_db(storage)) == {"n": 1}


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
def test_conflicts_are_resolved_inside_the_wrapping(
    wrapper: Any, cluster: LocalCluster, open_db: Callable[..., ZODB.DB]
) -> None:
    db = open_db(wrapper(ClientStorage(cluster.addresses)))
    with db.transaction() as connection:
        connection.root()["n"] = Length(1)
    mine, theirs = transaction.TransactionManager(), transaction.TransactionManager()
    here, there = db.open(mine), db.open(theirs)
    here.root()["n"].change(10)
    there.root()["n"].change(100)
    mine.commit()
    theirs.commit()
    assert there.root()["n"]() == 111
    here.close()
    there.close()


def test_a_demo_storage_over_a_cluster_leaves_it_alone(
    cluster: LocalCluster, open_db: Callable[..., ZODB.DB], disk_directory: Path
) -> None:
    below = open_db(ClientStorage(cluster.addresses))
    fill(below, a=1)
    before = below.lastTransaction()
    demo = open_db(
        DemoStorage(
            base=ClientStorage(cluster.addresses, read_only=True),
            changes=FileStorage(str(disk_directory / "changes.fs")),
        )
    )
    change(demo, b=2)
    with demo.transaction() as connection:
        connection.root()["only here"] = PersistentMapping(c=3)
    assert content(demo) == {"a": 1, "b": 2}
    assert content(below) == {"a": 1}
    assert below.lastTransaction() == before
    assert len(demo.storage.history(demo.open().root()["m"]._p_oid, 10)) == 2


def test_a_demo_storage_whose_changes_are_a_cluster(
    cluster: LocalCluster, open_db: Callable[..., ZODB.DB], disk_directory: Path
) -> None:
    path = disk_directory / "Data.fs"
    base = ZODB.DB(FileStorage(str(path)))
    fill(base, a=1)
    base.close()

    def demo() -> ZODB.DB:
        return open_db(
            DemoStorage(base=FileStorage(str(path), read_only=True), changes=ClientStorage(cluster.addresses))
        )

    one = demo()
    change(one, b=2)
    change(one, b=3)
    assert content(one) == {"a": 1, "b": 3}
    assert content(demo()) == {"a": 1, "b": 3}
    two = demo()
    mine, theirs = transaction.TransactionManager(), transaction.TransactionManager()
    here, there = one.open(mine), two.open(theirs)
    here.root()["m"]["c"], there.root()["m"]["c"] = 1, 2
    mine.commit()
    with pytest.raises(ConflictError):
        theirs.commit()
    theirs.abort()
    assert there.root()["m"]["c"] == 1
    # An object of the base that two change for the first time: the second one is told.
    here.root()["new"], there.root()["new"] = PersistentMapping(), PersistentMapping()
    theirs.commit()
    with pytest.raises(ConflictError):
        mine.commit()
    mine.abort()
    here.close()
    there.close()


def test_a_cluster_read_only_refuses_to_write_and_reads(
    cluster: LocalCluster, open_db: Callable[..., ZODB.DB], open_storage: Callable[..., Any]
) -> None:
    fill(open_db(ClientStorage(cluster.addresses)), a=1)
    reader = open_db(ClientStorage(cluster.addresses, read_only=True))
    assert reader.storage.isReadOnly()
    assert content(reader) == {"a": 1}
    with pytest.raises(ReadOnlyError):
        change(reader, b=1)
    transaction.abort()


# ---- several databases -----------------------------------------------------------------------------------------

MANY = """
%import raftstorage.client
%import zc.zlibstorage
<zodb main>
  <raftstorage>
    server {one}
    name one
    wait-timeout 20
  </raftstorage>
</zodb>
<zodb other>
  <zlibstorage>
    <raftstorage>
      server {two}
    </raftstorage>
  </zlibstorage>
</zodb>
<zodb file>
  <filestorage>
    path {path}
  </filestorage>
</zodb>
"""


@pytest.fixture
def many(
    shared_cluster: LocalCluster, cluster: LocalCluster, disk_directory: Path
) -> Iterator[tuple[ZODB.DB, str]]:
    """A multi-database of two clusters and a file, out of one configuration file; and that file's text."""
    text = MANY.format(
        one=shared_cluster.addresses,
        two=cluster.addresses.replace(",", "\n    server "),
        path=disk_directory / "Data.fs",
    )
    db = ZODB.config.databaseFromString(text)
    yield db, text
    transaction.abort()
    for each in db.databases.values():
        each.close()


def test_one_transaction_over_two_clusters_and_a_file(many: tuple[ZODB.DB, str]) -> None:
    db, _ = many
    assert set(db.databases) == {"main", "other", "file"}
    assert isinstance(db.databases["other"].storage, ZlibStorage)
    with db.transaction() as connection:
        for name in db.databases:
            connection.get_connection(name).root()["at"] = name
    with db.transaction() as connection:
        assert {connection.get_connection(name).root()["at"] for name in db.databases} == set(db.databases)
    lasts = {name: each.lastTransaction() for name, each in db.databases.items()}

    # One of them refuses in its vote: none of them changes.
    manager = transaction.TransactionManager()
    connection = db.open(manager)
    for name in db.databases:
        connection.get_connection(name).root()["more"] = PersistentMapping()
    connection.get_connection("other").root()["at"] = "changed"
    with db.databases["other"].transaction() as other:
        other.root()["at"] = "changed before"
    with pytest.raises(ConflictError):
        manager.commit()
    manager.abort()
    connection.close()
    assert db.lastTransaction() == lasts["main"]
    assert db.databases["file"].lastTransaction() == lasts["file"]
    with db.transaction() as connection:
        assert all("more" not in connection.get_connection(name).root() for name in db.databases)
        assert connection.get_connection("other").root()["at"] == "changed before"


def test_objects_refer_to_objects_of_another_cluster(many: tuple[ZODB.DB, str]) -> None:
    db, text = many
    with db.transaction() as connection:
        # As a mount point of Zope's: an object of one database that is reached through another one.
        other = connection.get_connection("other")
        mounted = PersistentMapping(x=1)
        other.add(mounted)
        other.root()["mounted"] = connection.root()["mount"] = mounted
        connection.get_connection("file").root()["mount"] = mounted
    for each in db.databases.values():
        each.close()

    db.databases.update(ZODB.config.databaseFromString(text).databases)  # which are closed after the test
    connection = db.databases["main"].open()
    mount = connection.root()["mount"]
    assert mount["x"] == 1
    assert mount._p_jar.db() is db.databases["other"]
    assert connection.get_connection("file").root()["mount"] is mount
    mount["x"] = 2
    transaction.commit()
    connection.close()
    with db.databases["other"].transaction() as other:
        assert other.root()["mounted"]["x"] == 2
