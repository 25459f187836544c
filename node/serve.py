"""`python -m raftstorage.node.serve`: one node in the foreground that needs to be told its directory and no more.

An empty directory begins a cluster of one. A directory that has been a node goes on as that node, whether it had a
port before or was `embedded:` in an application. Options that are not known here are the node's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before grpc is imported: see node/__main__.py

from raftstorage.node.alone import begun_alone
from raftstorage.node.identity import DirectoryError
from raftstorage.node.main import EXIT_DIRECTORY, EXIT_OPTIONS, failed, main
from raftstorage.node.options import OptionError, split_address

LISTEN = "127.0.0.1:7441"
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - looked for, not bound


def arguments(directory: Path, listen: str, advertise: str) -> list[str]:
    """What `python -m raftstorage.node` is to be told. OptionError; DirectoryError."""
    host, port = split_address(listen)
    if not advertise and host in _ANYWHERE:
        raise OptionError(f"--listen {listen}: clients need an address to dial; name it with --advertise")
    advertise = advertise or listen
    if split_address(advertise)[1] == 0:
        raise OptionError(f"port {port} cannot be dialled: name one with --listen or --advertise")
    cluster_id, node_id = begun_alone(directory)
    return [
        *("--id", str(node_id), "--dir", str(directory), "--cluster-id", cluster_id),
        *("--listen", listen, "--member", f"{node_id}={advertise}", "--ready", "text"),
    ]


def _serve(
    context: typer.Context,
    directory: Annotated[Path, typer.Option("--dir")],
    listen: Annotated[str, typer.Option()] = LISTEN,
    advertise: Annotated[str, typer.Option()] = "",
) -> int:
    try:
        told = arguments(directory, listen, advertise)
    except OptionError as error:
        return failed(EXIT_OPTIONS, error)
    except DirectoryError as error:
        return failed(EXIT_DIRECTORY, error)
    return main([*told, *context.args])


def run(words: Sequence[str]) -> int:
    """The process's exit status, as `main`'s."""
    application = typer.Typer(add_completion=False)
    application.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_serve)
    return int(typer.main.get_command(application).main(list(words), standalone_mode=False) or 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
