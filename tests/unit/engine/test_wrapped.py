from __future__ import annotations

import random
import zlib
from binascii import hexlify

import pytest
from raftstorage.node.engine.wrapped import STEP_BYTES, unwrap


def compressed(data: bytes) -> bytes:
    return b".z" + zlib.compress(data)


def hexed(data: bytes) -> bytes:
    return b".h" + hexlify(data)


def finish(data: bytes) -> tuple[bytes, int]:
    """What is inside, and after how many steps."""
    inside: list[bytes] = []
    steps = sum(1 for _ in unwrap(data, inside))
    (found,) = inside
    return found, steps


@pytest.mark.parametrize("size", [0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 5 * STEP_BYTES])
def test_what_is_inside(size: int) -> None:
    record = random.Random(size).randbytes(size)
    assert finish(b"\x80" + record)[0] == b"\x80" + record
    for wrap in (compressed, hexed):
        found, steps = finish(wrap(record))
        assert found == record
        assert steps >= size // STEP_BYTES


def test_layers() -> None:
    assert finish(hexed(compressed(b"record")))[0] == b"record"
    assert finish(compressed(hexed(b"record")))[0] == b"record"


@pytest.mark.parametrize(
    "data",
    [
        b".z",
        b".znothing of the kind",
        compressed(b"x" * 1000)[:-1],
        b".h1",
        b".hxy",
        compressed(compressed(compressed(compressed(b"x")))),
    ],
)
def test_what_is_not_what_it_says(data: bytes) -> None:
    with pytest.raises(ValueError):
        finish(data)


def test_a_bomb_is_not_let_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftstorage.node.engine.wrapped.MOST_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="more than"):
        finish(compressed(bytes((1 << 20) + 1)))
    assert finish(compressed(bytes(1 << 20)))[0] == bytes(1 << 20)


def test_a_large_record_that_is_compressed_well() -> None:
    record = bytes(20 << 20)
    found, steps = finish(compressed(record))
    assert found == record
    assert steps >= (20 << 20) // STEP_BYTES
