"""All nodes are killed at once under load, again and again, and come back in random order: nothing is missing.

`pytest tests/e2e/test_cold_restarts.py --cold-restarts 50` is the long form.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from ZODB.utils import maxtid

if TYPE_CHECKING:
    from raftstorage.ops.local import LocalCluster


@pytest.mark.timeout(1800)
def test_cold_restarts_lose_nothing(
    cluster: LocalCluster,
    open_storage: Callable[..., Any],
    start_writers: Callable[..., Any],
    request: pytest.FixtureRequest,
    rng: random.Random,
) -> None:
    with start_writers(2, cluster.addresses) as writers:
        for _ in range(request.config.option.cold_restarts):
            before = len(writers.acknowledged)
            writers.reach(before + rng.randrange(1, 15))
            order = rng.sample(range(3), 3)
            for i in order:
                cluster.kill(i)
            told = dict(writers.acknowledged)
            for i in rng.sample(range(3), 3):
                cluster.start(i)
            cluster.leader(timeout=60)
            check_newest(open_storage(cluster.addresses), told, len(told) - before)
        writers.stop()
    writers.check_all(open_storage(cluster.addresses))


def check_newest(storage: Any, acknowledged: dict[str, tuple[bytes, bytes]], count: int) -> None:
    """The last `count` commits are there right after the restart; the rest is checked at the end."""
    for note, (oid, tid) in list(acknowledged.items())[-count:]:
        assert storage.loadBefore(oid, maxtid) == (note.encode(), tid, None)
    storage.close()
