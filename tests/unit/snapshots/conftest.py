from __future__ import annotations

import random

import pytest

from tests.unit.snapshots.disk import ModelDisk
from tests.unit.snapshots.sources import new_disk


@pytest.fixture
def disk(rng: random.Random) -> ModelDisk:
    return new_disk(rng)
