"""`raftstorage pack`."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from raftstorage.ops import packing
from raftstorage.ops.console import guard, print_json
from raftstorage.ops.status import DEFAULT_ADDRESSES
from rich.console import Console

#: Old revisions are gone, but the garbage could not be told from what is needed.
EXIT_NOT_COLLECTED = 3


@guard
def pack(
    addresses: Annotated[
        str, typer.Option(help="Some nodes, host:port,host:port,... or embedded:DIR.")
    ] = DEFAULT_ADDRESSES,
    days: Annotated[
        float | None, typer.Option(min=0, help="Keep what was current so many days ago, and newer. Default: 0.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--time", help="Keep what was current then: 2026-01-31T12:00, or seconds since 1970."),
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect/--no-collect", help="Remove objects that nothing refers to, too.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a leader.")] = 30.0,
) -> None:
    """Forget revisions that were replaced or deleted before some time, on all nodes; they cannot be undone then.

    Waits until the leader is done; the others do the same beside. Interrupted, it goes on in the cluster. Exit
    status: 0 done, 1 refused or no leader, 2 asked wrongly, 3 packed, but garbage could not be collected.
    """
    seconds = packing.time_to_pack_to(days, at, time.time())
    with packing.Bar(Console(stderr=True)) as bar:
        state = packing.pack(addresses, seconds, collect, timeout, bar.told)
    if as_json:
        print_json(packing.as_json(state))
    else:
        packing.show(state, Console())
    if state.problem:
        raise typer.Exit(EXIT_NOT_COLLECTED)
