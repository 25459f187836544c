"""`raftstorage import` and `raftstorage export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from raftstorage.ops.console import guard, print_json
from raftstorage.ops.errors import require_zodb
from raftstorage.ops.status import DEFAULT_ADDRESSES
from rich.console import Console

if TYPE_CHECKING:
    from raftstorage.ops.moving.copying import Outcome

#: How many of what did not come over are shown, one a line; all of them with --json.
SHOWN = 20
#: Exit status when the copy holds all that could be read, and that was not everything.
INCOMPLETE = 3

_Where = "host:port,host:port,... or embedded:DIR."
_BlobDir = Annotated[
    Path | None, typer.Option("--blob-dir", help="The directory of the blobs that belong to a Data.fs.")
]
_Current = Annotated[
    bool, typer.Option("--current", help="Only what is current now, with its transactions; no history.")
]
_Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Compare every record and blob of both sides in the end, or nothing. Else: what this run brought.",
    ),
]
_Wait = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the cluster.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@guard
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A Data.fs, a ZConfig file with a <zodb> or storage section, or a zodburi URI."
        ),
    ],
    to: Annotated[str, typer.Option("--to", help=_Where)] = DEFAULT_ADDRESSES,
    blob_dir: _BlobDir = None,
    current: _Current = False,
    verify: _Verify = None,
    as_json: _Json = False,
    wait_timeout: _Wait = 30.0,
) -> None:
    """Copy a database into a cluster: every transaction, with its tid and metadata.

    A cluster that has some of it already gets what is new; any other that is not empty is refused. What is damaged
    in a Data.fs is left out and told, by offset; the exit status is 3 then.
    """
    require_zodb("raftstorage import")
    from raftstorage.ops.transfer import import_database

    _check_addresses(to)
    outcome = import_database(
        source,
        to,
        Console(stderr=True),
        blob_dir=blob_dir,
        current_only=current,
        verify=verify,
        wait_timeout=wait_timeout,
    )
    _show(outcome, "imported", as_json)


@guard
def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A Data.fs, made if missing; or a ZConfig file or zodburi URI of a storage that can restore.",
        ),
    ],
    from_: Annotated[str, typer.Option("--from", help=_Where)] = DEFAULT_ADDRESSES,
    blob_dir: _BlobDir = None,
    current: _Current = False,
    verify: _Verify = None,
    as_json: _Json = False,
    wait_timeout: _Wait = 30.0,
) -> None:
    """Copy a cluster's database, as of now, into a Data.fs or another storage, or what is new in it."""
    require_zodb("raftstorage export")
    from raftstorage.ops.transfer import export_database

    _check_addresses(from_)
    outcome = export_database(
        target,
        from_,
        Console(stderr=True),
        blob_dir=blob_dir,
        current_only=current,
        verify=verify,
        wait_timeout=wait_timeout,
    )
    _show(outcome, "exported", as_json)


def _check_addresses(text: str) -> None:
    """ValueError."""
    from raftstorage.client.cluster.addresses import parse_addresses

    if not text.startswith("embedded:"):
        parse_addresses(text)


def _show(outcome: Outcome, done: str, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(outcome))
    else:
        copied, compared = outcome.copied, outcome.compared
        typer.echo(
            f"{done}: {copied.transactions} transactions, {copied.records} records"
            + (f", {copied.blobs} blobs" if copied.blobs else "")
            + (f", behind {outcome.had.hex()}" if outcome.had.strip(b"\0") else "")
            + f", up to {outcome.last.hex()}"
        )
        if compared.transactions:
            typer.echo(
                f"compared: {compared.transactions} transactions, {compared.records} records are equal"
                + (f", and {compared.blobs} blobs" if compared.blobs else "")
            )
        for note in outcome.notes:
            typer.echo(f"note: {note}", err=True)
        for problem in outcome.problems[:SHOWN]:
            typer.echo(f"left out: {problem}", err=True)
        if len(outcome.problems) > SHOWN:
            typer.echo(f"and {len(outcome.problems) - SHOWN} more", err=True)
    if outcome.problems:
        raise typer.Exit(INCOMPLETE)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "had": outcome.had.hex(),
        "last": outcome.last.hex(),
        "copied": {name: getattr(outcome.copied, name) for name in outcome.copied.__slots__},
        "compared": {name: getattr(outcome.compared, name) for name in outcome.compared.__slots__},
        "problems": outcome.problems,
        "notes": outcome.notes,
    }
