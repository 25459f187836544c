"""Uploads, the records that take them, and what is left of them on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import rocksdict
from raftstorage.node.engine import MemoryEngine, RocksEngine, rocks
from raftstorage.node.engine.api import EngineError
from raftstorage.node.engine.blobs import EXPIRED_AT_ONCE
from raftstorage.node.engine.kv import Change, MemoryStore, Until
from raftstorage.node.engine.layout import blob_key, read_stub
from raftstorage.node.engine.state import StateMachine
from raftstorage.proto import BLOB_CHUNK_BYTES
from raftstorage.proto import storage_pb2 as pb

from tests.unit.engine.blob_model import crc
from tests.unit.engine.commands import change, everything, feed, in_fragments, p64
from tests.unit.engine.test_engine_work import CountingStore

UP, OTHER = b"U" * 16, b"V" * 16
DATA = os.urandom(2 * BLOB_CHUNK_BYTES + 1000)


def chunk(offset: int, data: bytes, upload_id: bytes = UP, stamp: int = 5) -> bytes:
    made = pb.BlobCommand(upload_id=upload_id, offset=offset, data=data, stamp=stamp)
    return pb.Command(blob=made).SerializeToString()


def upload(data: bytes, upload_id: bytes = UP, stamp: int = 5) -> list[bytes]:
    size = BLOB_CHUNK_BYTES
    return [chunk(at, data[at : at + size], upload_id, stamp) for at in range(0, len(data), size)]


def expire(stamp: int) -> bytes:
    return pb.Command(expire_uploads=pb.ExpireUploadsCommand(stamp=stamp)).SerializeToString()


def with_blob(
    oid: int, data: bytes = DATA, base: int = 0, upload_id: bytes = UP, same_as: int = 0
) -> pb.Transaction:
    made = change(oid, base=base)
    if same_as:
        made.records[0].blob.same_as = p64(same_as)
    else:
        made.records[0].blob.CopyFrom(pb.Blob(upload_id=upload_id, size=len(data), crc32c=crc(data)))
    return made


def commit(tid: int, *parts: pb.Transaction) -> list[bytes]:
    return in_fragments(b"%016d" % tid, tid, *parts)


def blob_keys(engine: StateMachine) -> set[int]:
    """Numbers of those that have bytes in the store."""
    return {int.from_bytes(key[:8], "big") for key, _ in engine._store.scan("blobs", b"")}


def test_an_upload_is_taken_once(engine: StateMachine) -> None:
    feed(engine, *upload(DATA))
    assert engine.upload_size(UP) == len(DATA)
    outcome = feed(engine, *commit(10, with_blob(1)))[0]
    assert outcome.tid == p64(10) and engine.upload_size(UP) is None
    assert engine.load_blob(p64(1), p64(10), 0, 1 << 20) == (DATA, len(DATA), crc(DATA))
    assert everything(engine)[0].records[0].blob == pb.Blob(size=len(DATA), crc32c=crc(DATA))
    refused = feed(engine, *commit(20, with_blob(2)))[0]
    assert (refused.tid, refused.missing) == (None, p64(2)) and "not whole" in refused.refused
    # Its id begins anew, and is another one's.
    assert feed(engine, chunk(3, b"abc"))[0].uploaded == 0
    assert feed(engine, chunk(0, b"abc"))[0].uploaded == 3
    assert feed(engine, *commit(20, with_blob(2, b"abc")))[0].tid == p64(20)
    assert engine.load_blob(p64(1), p64(10), 0, 1 << 20)[0] == DATA
    assert engine.load_blob(p64(2), p64(20), 1, 1 << 20) == (b"bc", 3, crc(b"abc"))


def test_two_records_cannot_take_one_upload(engine: StateMachine) -> None:
    feed(engine, *upload(DATA))
    both = with_blob(1)
    both.MergeFrom(with_blob(2))
    assert feed(engine, *commit(10, both))[0].missing == p64(2)
    assert feed(engine, *commit(10, with_blob(1), with_blob(2)))[-1].missing == p64(2)
    assert engine.upload_size(UP) == len(DATA)
    assert engine.missing_upload(both.records) == p64(2)
    assert engine.missing_upload(with_blob(1).records) is None


def test_a_blob_on_a_conflicting_or_repeated_commit_changes_nothing(engine: StateMachine) -> None:
    feed(engine, *commit(10, change(1)), *upload(DATA))
    assert feed(engine, *commit(20, with_blob(1)))[0].conflicts
    assert engine.upload_size(UP) == len(DATA)
    assert feed(engine, *commit(30, with_blob(1, base=10)))[0].tid == p64(30)
    feed(engine, *upload(b"other"))
    again = feed(engine, *commit(30, with_blob(1, b"other", base=30)))[0]
    assert again.repeated and engine.upload_size(UP) == 5


def test_an_upload_that_fragments_claimed_is_free_when_they_are_dropped(engine: StateMachine) -> None:
    feed(engine, *upload(DATA))
    *fragments, _end = commit(10, with_blob(1), change(2), change(3))
    feed(engine, *fragments)
    assert engine.upload_size(UP) is None  # claimed
    feed(engine, b"")  # and dropped, not yet removed
    assert engine.upload_size(UP) == len(DATA)
    outcome = feed(engine, *commit(10, with_blob(4), change(5)))[-1]
    assert outcome.tid == p64(10)
    feed(engine, *[b""] * 5, expire(1 << 40))  # what was dropped is gone, and nobody goes on with anything
    assert not engine._dropped
    assert engine.load_blob(p64(4), p64(10), 0, 1 << 20)[0] == DATA
    assert engine.upload_size(UP) is None


def test_idle_uploads_go_and_those_of_records_stay(engine: StateMachine) -> None:
    for number in range(3):
        feed(engine, *upload(b"x" * number + b"y", b"%016d" % number, stamp=10 * number))
    feed(engine, *upload(DATA, OTHER, stamp=0), *commit(10, with_blob(1, upload_id=OTHER)))
    feed(engine, *upload(DATA, UP, stamp=0), *commit(20, with_blob(2), change(3)))
    assert engine.stale_uploads(1) and engine.stale_uploads(11)
    feed(engine, expire(11))
    assert [engine.upload_size(b"%016d" % number) for number in range(3)] == [None, None, 3]
    assert not engine.stale_uploads(20) and engine.stale_uploads(21)
    assert len(blob_keys(engine)) == 3
    for oid, tid in ((1, 10), (2, 20)):
        assert engine.load_blob(p64(oid), p64(tid), 0, 1 << 20)[0] == DATA
    feed(engine, chunk(3, b"z", b"%016d" % 2, stamp=30), expire(30))
    assert engine.upload_size(b"%016d" % 2) == 4


def test_a_command_ends_so_many_uploads_and_no_more() -> None:
    engine = MemoryEngine()
    for number in range(EXPIRED_AT_ONCE + 5):
        feed(engine, chunk(0, b"abc", b"%016d" % number, stamp=EXPIRED_AT_ONCE + 5 - number))
    feed(engine, expire(1 << 40))
    left = [number for number in range(EXPIRED_AT_ONCE + 5) if engine.upload_size(b"%016d" % number)]
    assert left == [0, 1, 2, 3, 4] and engine.stale_uploads(1 << 40)
    feed(engine, expire(1 << 40))
    assert not engine.stale_uploads(1 << 40) and not blob_keys(engine)


def test_a_blob_goes_with_the_last_record_that_has_it(engine: StateMachine) -> None:
    feed(engine, *upload(DATA), *commit(10, with_blob(1)))
    feed(engine, *commit(20, change(1, base=10)), *commit(30, with_blob(1, base=20, same_as=10)))
    feed(engine, *commit(40, with_blob(1, base=30, same_as=30)))
    for tid in (10, 30, 40):
        assert engine.load_blob(p64(1), p64(tid), 5, 9) == (DATA[5:14], len(DATA), crc(DATA))
    assert feed(engine, *commit(50, with_blob(1, base=40, same_as=20)))[0].missing == p64(1)
    assert feed(engine, *commit(50, with_blob(2, same_as=10)))[0].missing == p64(2)
    stubs = {key: read_stub(key, sealed) for key, sealed in engine._store.scan("records", p64(1))}

    def forget(*tids: int) -> None:
        changes: list[Change] = []
        for tid in tids:
            engine._forget_blob(stubs[p64(1) + p64(tid)], changes)
        engine._store.write(changes)

    forget(10, 20, 30)
    assert engine.load_blob(p64(1), p64(40), 0, 9)[0] == DATA[:9]
    forget(40)
    assert not blob_keys(engine)


def test_the_work_for_a_chunk_is_bounded() -> None:
    """However it lies: at most the last chunk is read, and written again."""
    store = CountingStore()
    engine = StateMachine(store)
    feed(engine, chunk(0, b"x"))
    for _ in range(40):
        size = engine.upload_size(UP)
        assert size is not None
        store.counted()
        assert feed(engine, chunk(size, bytes(BLOB_CHUNK_BYTES)))[0].uploaded == size + BLOB_CHUNK_BYTES
        reads, changes, moved = store.counted()
        assert reads < 10 and changes < 10 and moved < 4 * BLOB_CHUNK_BYTES
    feed(engine, *commit(10, with_blob(1, b"x" + bytes(40 * BLOB_CHUNK_BYTES))))
    reads, changes, moved = store.counted()
    assert reads < 20 and changes < 20 and moved < 10_000  # no byte of it is touched
    engine.load_blob(p64(1), p64(10), BLOB_CHUNK_BYTES - 1, BLOB_CHUNK_BYTES)
    assert store.counted()[2] < 3 * BLOB_CHUNK_BYTES


def test_a_missing_or_damaged_chunk_is_damage(engine: StateMachine) -> None:
    feed(engine, *upload(DATA), *commit(10, with_blob(1)))
    engine._store.write([("blobs", blob_key(1, 1), b"damaged" * 9)])
    assert engine.load_blob(p64(1), p64(10), 0, BLOB_CHUNK_BYTES)[0] == DATA[:BLOB_CHUNK_BYTES]
    with pytest.raises(EngineError, match="checksum"):
        engine.load_blob(p64(1), p64(10), 0, len(DATA))
    engine._store.write([("blobs", blob_key(1, 1), None)])
    with pytest.raises(EngineError, match="missing"):
        engine.load_blob(p64(1), p64(10), 0, len(DATA))


def test_digests_differ_with_a_byte_of_a_blob() -> None:
    digests = set()
    for flipped in (0, BLOB_CHUNK_BYTES, len(DATA) - 1, None):
        engine = MemoryEngine()
        data = bytearray(DATA)
        if flipped is not None:
            data[flipped] ^= 1
        feed(engine, *upload(bytes(data)))
        before = engine.digest()
        feed(engine, *commit(10, with_blob(1, bytes(data))))
        digests |= {before, engine.digest()}
    assert len(digests) == 8


def test_a_blob_that_was_packed_away_leaves_nothing(engine: StateMachine) -> None:
    """It came in fragments, so that its upload stays known for a while."""
    feed(engine, *upload(DATA), *commit(10, with_blob(1), change(2), change(3)), *commit(20, change(1, base=10)))
    feed(engine, *upload(b"kept", OTHER), *commit(30, with_blob(2, b"kept", base=10, upload_id=OTHER)))
    before = engine.digest()
    pack = pb.PackCommand(pack_id=b"P" * 16, tid=p64(30))
    feed(engine, pb.Command(pack=pack).SerializeToString())
    packed = engine.digest()
    with pytest.raises(KeyError):
        engine.load_blob(p64(1), p64(10), 0, 1)
    assert feed(engine, *commit(40, with_blob(1, base=20, same_as=10)))[0].missing == p64(1)
    index = engine.applied_index
    while engine.pack_step(1):
        assert engine.upload_size(UP) is None
    assert len({before, packed, engine.digest()}) == 3 and engine.applied_index == index
    assert engine.pack_state().removed_bytes == len(DATA) + 2 * 4
    assert len(blob_keys(engine)) == 1
    assert engine.load_blob(p64(2), p64(30), 0, 9)[0] == b"kept"
    feed(engine, expire(1 << 40))
    assert not engine.stale_uploads(1 << 40) and len(blob_keys(engine)) == 1


# ---- on disk -------------------------------------------------------------------------------------------------


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.suffix == ".blob"}


def test_what_is_large_is_in_files_of_its_own_and_in_every_copy(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    feed(engine, *upload(DATA), *commit(10, with_blob(1)))
    engine.flush()
    assert names(tmp_path / "db")
    engine.checkpoint(tmp_path / "copy")
    assert names(tmp_path / "copy") == names(tmp_path / "db")
    feed(engine, *upload(b"more" * 100_000, OTHER))
    engine.checkpoint(tmp_path / "with what was not flushed")
    for folder, more in (("copy", None), ("with what was not flushed", 400_000)):
        shutil.copytree(tmp_path / folder, tmp_path / f"{folder} elsewhere")
        copy = RocksEngine(tmp_path / f"{folder} elsewhere")
        assert copy.load_blob(p64(1), p64(10), 0, 1 << 20) == (DATA, len(DATA), crc(DATA))
        assert copy.upload_size(OTHER) == more
        copy.close()
    engine.close()
    name = min(names(tmp_path / "copy elsewhere"))
    file = tmp_path / "copy elsewhere" / name
    file.write_bytes(file.read_bytes()[: len(DATA) // 2])
    with pytest.raises(EngineError):
        RocksEngine(tmp_path / "copy elsewhere").load_blob(p64(1), p64(10), 0, 1 << 20)


def test_a_database_without_such_files_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_files = rocks._options

    def without(cache_bytes: int) -> rocksdict.Options:
        options = with_files(cache_bytes)
        options.set_enable_blob_files(False)
        return options

    monkeypatch.setattr(rocks, "_options", without)
    engine = RocksEngine(tmp_path / "db")
    feed(engine, *upload(DATA), *commit(10, with_blob(1)))
    engine.flush()
    engine.close()
    assert not names(tmp_path / "db")
    monkeypatch.setattr(rocks, "_options", with_files)
    engine = RocksEngine(tmp_path / "db")
    feed(engine, *upload(DATA[::-1], OTHER), *commit(20, with_blob(2, DATA[::-1], upload_id=OTHER)))
    engine.flush()
    assert names(tmp_path / "db")
    engine.close()
    engine = RocksEngine(tmp_path / "db")
    assert engine.load_blob(p64(1), p64(10), 0, 1 << 20)[0] == DATA
    assert engine.load_blob(p64(2), p64(20), 0, 1 << 20)[0] == DATA[::-1]
    engine.close()


def test_the_room_of_what_is_gone_comes_back(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    for number in range(8):
        upload_id = b"%016d" % number
        feed(engine, *upload(os.urandom(16 * BLOB_CHUNK_BYTES), upload_id, stamp=number))
        engine.flush()
    full = engine.approximate_size()[0]
    assert full > 32 << 20
    feed(engine, expire(6))
    engine.flush()
    engine._store._db.compact_range(None, None)  # type: ignore[attr-defined]  # what RocksDB does in its own time
    assert engine.approximate_size()[0] < full // 2
    engine.close()


def test_a_range_of_keys_goes_from_every_store(tmp_path: Path) -> None:
    for store in (MemoryStore(), rocks.RocksStore(tmp_path / "db")):
        keys = [bytes([a, b]) for a in range(4) for b in range(3)]
        store.write([(family, key, b"value") for family in ("data", "uploads", "blobs") for key in keys])
        store.flush()
        store.write([("uploads", b"\1", Until(b"\2")), ("uploads", b"\1\1", b"again")])
        expected = [key for key in keys if key[0] != 1 or key == b"\1\1"]
        assert [key for key, _ in store.scan("uploads", b"")] == expected
        assert [key for key, _ in store.scan("blobs", b"")] == [key for key, _ in store.scan("data", b"")] == keys
        assert store.get("uploads", b"\1\0") is None and store.get("uploads", b"\1\1") == b"again"
        store.close()
