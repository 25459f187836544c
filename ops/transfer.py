"""`raftstorage import` and `raftstorage export`: whole databases between a cluster and any storage of ZODB's."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from raftstorage.ops.moving.clusters import ClusterPlace
from raftstorage.ops.moving.copying import Outcome, copy
from raftstorage.ops.moving.data_target import data_target
from raftstorage.ops.moving.places import Target, open_other_target, open_source
from raftstorage.ops.moving.showing import Bars
from rich.console import Console


def import_database(
    source: str,
    addresses: str,
    console: Console,
    *,
    blob_dir: Path | None = None,
    current_only: bool = False,
    verify: bool | None = None,
    wait_timeout: float = 30.0,
) -> Outcome:
    """Copies `source` (places.py says what it may be) into the cluster, or what is new in it: `copying.copy`."""
    with (
        open_source(source, blob_dir) as place,
        ClusterPlace(addresses, wait_timeout) as cluster,
    ):
        return copy(place, cluster, Bars(console), current_only=current_only, verify=verify)


def export_database(
    target: str,
    addresses: str,
    console: Console,
    *,
    blob_dir: Path | None = None,
    current_only: bool = False,
    verify: bool | None = None,
    wait_timeout: float = 30.0,
) -> Outcome:
    """Copies the cluster's database, as of now, into `target`, or what is new in it."""
    with ExitStack() as stack:
        cluster = stack.enter_context(ClusterPlace(addresses, wait_timeout, read_only=True))
        other = open_other_target(target)
        place: Target = stack.enter_context(data_target(Path(target), blob_dir) if other is None else other)
        return copy(cluster, place, Bars(console), current_only=current_only, verify=verify)
