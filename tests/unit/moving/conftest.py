"""A database of one node that others are copied into and out of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raftstorage.client import ClientStorage

from tests.unit.moving.files import content


@pytest.fixture
def place(tmp_path: Path) -> str:
    """What ClientStorage takes for it."""
    return f"embedded:{tmp_path}/database"


@pytest.fixture
def stored(place: str) -> Callable[[], list[tuple[Any, ...]]]:
    """What the database holds, as `content` tells it."""

    def read() -> list[tuple[Any, ...]]:
        storage = ClientStorage(place, read_only=True)
        try:
            return content(storage.iterator())
        finally:
            storage.close()

    return read


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Writes a configuration file; its path."""

    def write(text: str) -> str:
        path = tmp_path / f"storage-{len(list(tmp_path.glob('*.conf')))}.conf"
        path.write_text(text)
        return str(path)

    return write
