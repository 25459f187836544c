"""`raftstorage log`, `raftstorage show` and `raftstorage undo`."""

from __future__ import annotations

import itertools
import json
from typing import Annotated

import typer
from raftstorage.ops.clients import open_client
from raftstorage.ops.console import guard, print_json
from raftstorage.ops.looking.names import parse_moment, parse_oid, parse_tid
from raftstorage.ops.status import DEFAULT_ADDRESSES

_Addresses = Annotated[str, typer.Option(help="Some nodes, host:port,host:port,..., or embedded:DIR.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Wait = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the cluster.")]


@guard
def log(
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="At most so many; 0: all.")] = 20,
    user: Annotated[str, typer.Option(help="A part of the user's name.")] = "",
    since: Annotated[str, typer.Option(help="From this time (ISO 8601, UTC) or tid on.")] = "",
    until: Annotated[str, typer.Option(help="Up to this time or tid.")] = "",
    oid: Annotated[str, typer.Option(help="Only what changed this object.")] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is committed from now on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object in each line.")] = False,
    addresses: _Addresses = DEFAULT_ADDRESSES,
    wait_timeout: _Wait = 10.0,
) -> None:
    """List transactions: tid, time, user, description; the newest first, but with --follow last."""
    first = parse_moment(since) if since else b"\0" * 8
    last = parse_moment(until) if until else b"\xff" * 8
    only = parse_oid(oid) if oid else None
    with open_client(addresses, wait_timeout, "log", read_only=True) as storage:
        from raftstorage.ops.looking import log as module

        wanted = module.Wanted(user, first, last, only)
        follower = module.Follower(storage) if follow else None
        found = module.newest(storage, wanted, count or None)
        if follower is not None:
            before = reversed([each for each in found if each.tid <= follower.begins_behind])
            found = itertools.chain(before, follower.follow(wanted))
        for each in found:
            typer.echo(json.dumps(module.as_json(each)) if as_json else module.line(each))


@guard
def show(
    name: Annotated[
        str, typer.Argument(metavar="OID|TID", help="16 hexadecimal digits; of an oid also 0x1f, or a number.")
    ],
    at: Annotated[str, typer.Option(help="The object as it was at this time (ISO 8601, UTC) or tid.")] = "",
    revisions: Annotated[int, typer.Option(min=1, help="How much of an object's history.")] = 20,
    as_json: _Json = False,
    addresses: _Addresses = DEFAULT_ADDRESSES,
    wait_timeout: _Wait = 10.0,
) -> None:
    """Show an object (class, references, sizes, history) or a transaction with its records. Imports no class."""
    moment = parse_moment(at) if at else None
    parse_oid(name)
    with open_client(addresses, wait_timeout, "show", read_only=True) as storage:
        from raftstorage.ops.looking import show as module

        found = module.look(storage, name, at=moment, revisions=revisions)
        if as_json:
            print_json(found)
        else:
            typer.echo("\n".join(module.lines(found)))


@guard
def undo(
    tids: Annotated[list[str], typer.Argument(metavar="TID...", help="As `log` prints them.")],
    user: Annotated[str, typer.Option(help="Who does it, for the new transaction.")] = "",
    note: Annotated[str, typer.Option(help="Why, for the new transaction.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whether it can be done.")] = False,
    addresses: _Addresses = DEFAULT_ADDRESSES,
    wait_timeout: _Wait = 10.0,
) -> None:
    """Take transactions back in a new one: all of them, or none with the reason and exit status 1."""
    wanted = [parse_tid(tid) for tid in tids]
    with open_client(addresses, wait_timeout, "undo") as storage:
        from raftstorage.ops.looking import undo as module

        tid, changed = module.undo(storage, wanted, user=user, note=note, dry_run=dry_run)
        if tid is None:
            typer.echo(f"can be undone: {len(changed)} objects would change")
        else:
            typer.echo(f"undone by {tid.hex()}: {len(changed)} objects changed")
