"""Copying transactions with blobs into a cluster and out of it, with a real node inside the process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
import ZODB
import ZODB.POSException as E
from raftstorage.client import ClientStorage
from raftstorage.client.storage import blob_copies, bulk
from raftstorage.client.storage.storage import ClientStorage as Storage
from raftstorage.proto import BLOB_CHUNK_BYTES
from ZODB.blob import Blob, copyTransactionsFromTo, is_blob_record
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64

from tests.unit.blobs.blob_cluster import BlobCluster, content
from tests.unit.blobs.directories import leftovers

SIZES = [0, 10, BLOB_CHUNK_BYTES, BLOB_CHUNK_BYTES + 1, 5 * BLOB_CHUNK_BYTES + 3, 200_000, 200_000, 200_000]


@pytest.fixture
def opened(disk_directory: Path) -> Iterator[Callable[[Any], Any]]:
    """Storages that are closed before their directory goes."""
    with contextlib.ExitStack() as stack:

        def open_(storage: Any) -> Any:
            stack.callback(storage.close)
            return storage

        yield open_


@pytest.fixture
def files(tmp_path: Path, opened: Callable[[Any], Any]) -> FileStorage:
    """A FileStorage whose blobs have SIZES, one of them changed, then undone."""
    path = str(tmp_path / "source")
    db = ZODB.DB(FileStorage(path, blob_dir=f"{path}.blobs"))
    connection = db.open()
    for number, size in enumerate(SIZES):
        connection.root()[number] = Blob(content(size, number))
        if number % 3:
            transaction.commit()
    connection.root()["mixed"] = {"blobs": [Blob(b"a"), Blob(b"b")], "text": "x" * 300_000}
    transaction.commit()
    with connection.root()[1].open("w") as file:
        file.write(b"changed")
    transaction.commit()
    db.undo(db.undoLog(0, 1)[0]["id"])
    transaction.commit()
    connection.close()
    db.close()
    return opened(FileStorage(path, blob_dir=f"{path}.blobs"))


def everything(storage: Any) -> list[Any]:
    """All transactions with their records and blobs."""
    found = []
    for each in storage.iterator():
        records = []
        for record in each:
            blob = None
            if is_blob_record(record.data):
                with (
                    contextlib.suppress(E.POSKeyError),
                    storage.openCommittedBlobFile(record.oid, record.tid) as f,
                ):
                    blob = f.read()
            records.append((record.oid, record.data, blob))
        found.append((each.tid, each.user, each.description, each.extension_bytes, sorted(records)))
    return found


def test_in_and_out_again(files: FileStorage, place: str, tmp_path: Path, opened: Callable[[Any], Any]) -> None:
    inside = opened(ClientStorage(place, blob_dir=tmp_path / "cache"))
    seen: list[tuple[int, int]] = []
    inside.copyTransactionsFrom(files, progress=lambda count, size: seen.append((count, size)))
    before = everything(files)
    assert everything(inside) == before
    assert len(seen) == len(before)
    assert sum(blob is not None for *_, records in before for *_, blob in records) == len(SIZES) + 2 + 2

    outside = opened(FileStorage(str(tmp_path / "out"), blob_dir=str(tmp_path / "out.blobs")))
    outside.copyTransactionsFrom(inside)
    assert everything(outside) == before

    again = opened(ClientStorage(f"{place}-2", blob_dir=tmp_path / "cache-2", blob_cache_size=0))
    copyTransactionsFromTo(inside, again)  # through restoreBlob
    assert everything(again) == before
    assert leftovers(tmp_path / "cache") == leftovers(tmp_path / "cache-2") == []


def test_from_one_cluster_to_another(
    files: FileStorage, place: str, tmp_path: Path, opened: Callable[[Any], Any]
) -> None:
    one = opened(ClientStorage(place, blob_dir=tmp_path / "cache", blob_cache_size=100_000))
    one.copyTransactionsFrom(files)
    other = opened(ClientStorage(f"{place}-2", blob_dir=tmp_path / "cache-2"))
    other.copyTransactionsFrom(one)
    assert everything(other) == everything(files)


def test_whoever_only_copies_in_needs_no_directory(
    files: FileStorage, place: str, tmp_path: Path, opened: Callable[[Any], Any]
) -> None:
    opened(ClientStorage(place)).copyTransactionsFrom(files)
    assert everything(opened(ClientStorage(place, blob_dir=tmp_path / "cache"))) == everything(files)


def test_blobs_that_cannot_be_had_are_not_left_out(
    files: FileStorage, place: str, opened: Callable[[Any], Any]
) -> None:
    blind = opened(ClientStorage(place))
    blind.copyTransactionsFrom(files)
    other = opened(ClientStorage(f"{place}-2"))
    with pytest.raises(E.Unsupported, match="open it with a blob_dir"):
        other.copyTransactionsFrom(blind)


def test_a_source_without_blob_support_is_copied_as_it_is(
    files: FileStorage, place: str, tmp_path: Path, opened: Callable[[Any], Any]
) -> None:
    files.close()
    blind = opened(FileStorage(str(tmp_path / "source"), read_only=True))
    inside = opened(ClientStorage(place, blob_dir=tmp_path / "cache"))
    inside.copyTransactionsFrom(blind)
    assert [t.tid for t in inside.iterator()] == [t.tid for t in blind.iterator()]
    assert all(record.blob is None for t in inside.iterator() for record in t)


def test_a_source_that_has_lost_a_file_is_copied_without_it(
    files: FileStorage, place: str, tmp_path: Path, opened: Callable[[Any], Any]
) -> None:
    lost = max((tmp_path / "source.blobs").rglob("*.blob"))
    lost.unlink()
    inside = opened(ClientStorage(place, blob_dir=tmp_path / "cache"))
    inside.copyTransactionsFrom(files)
    before = everything(files)
    assert everything(inside) == before
    assert sum(blob is not None for *_, records in before for *_, blob in records) == len(SIZES) + 2 + 1


def test_the_same_again_is_the_same_transaction(files: FileStorage) -> None:
    fake = BlobCluster()
    fake.max_record_bytes = fake.max_transaction_bytes = 0
    try:
        storage = Storage(fake.addresses)
        prepared = [
            [
                bulk._prepare(storage.cluster, each, blob_copies.BlobCopies(storage.cluster, files))
                for each in files.iterator()
            ]
            for _ in range(2)
        ]
        one, other = prepared
        for a, b in zip(one, other, strict=True):
            assert a.call.message.transaction_id == b.call.message.transaction_id
            for each in (*a.uploads, *b.uploads):
                each.wait()
        assert [bool(a.uploads) for a in one].count(True) > 3
        assert one[1].call != other[1].call  # their blobs are in other places
        storage.close()
    finally:
        fake.stop()


def test_small_ones_are_on_their_way_together_but_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[int] = []
    most = 0

    class Slow:
        def __init__(self, cluster: Any, data: bytes) -> None:
            nonlocal most
            self.blob = type("Blob", (), {"size": len(data)})()
            under_way.append(len(data))
            most = max(most, sum(under_way))

        def wait(self) -> None:
            under_way.remove(self.blob.size)

    monkeypatch.setattr(blob_copies, "SmallUpload", Slow)
    copies = blob_copies.BlobCopies(None, None)  # type: ignore[arg-type]
    for number in range(50):
        copies._begin(bytes(200_000 + number))
    assert blob_copies.WINDOW_BYTES - 250_000 < most <= blob_copies.WINDOW_BYTES


def test_restoring_a_blob_by_hand(place: str, tmp_path: Path, opened: Callable[[Any], Any]) -> None:
    from ZODB.Connection import TransactionMetaData

    from tests.unit.blobs.blob_cluster import RECORD

    storage = opened(ClientStorage(place, blob_dir=tmp_path / "cache"))
    source = tmp_path / "source"
    source.write_bytes(b"restored")
    meta = TransactionMetaData()
    storage.tpc_begin(meta, p64(77))
    storage.restoreBlob(p64(5), p64(77), RECORD, str(source), None, meta)
    storage.tpc_vote(meta)
    assert storage.tpc_finish(meta) == p64(77)
    assert Path(storage.loadBlob(p64(5), p64(77))).read_bytes() == b"restored"
    assert not source.exists()
    assert storage.loadSerial(p64(5), p64(77)) == RECORD
