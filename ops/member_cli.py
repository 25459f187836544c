"""`raftstorage member ...` and `raftstorage transfer-leader`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from raftstorage.ops import members
from raftstorage.ops.console import guard, print_json
from raftstorage.ops.status import DEFAULT_ADDRESSES, split_addresses
from rich.console import Console

member_app = typer.Typer(help="See and change who is a member of a cluster.", no_args_is_help=True)

_Addresses = Annotated[str, typer.Option(help="Some nodes, host:port,host:port,...")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the change.")]
_NodeId = Annotated[int, typer.Argument(metavar="ID", min=1)]


def _change(addresses: str, timeout: float, as_json: bool, **wanted: Any) -> None:
    _show(members.change(split_addresses(addresses), timeout, **wanted), as_json)


def _show(reply: Any, as_json: bool) -> None:
    if as_json:
        print_json(members.as_json(reply))
    else:
        members.show(reply, Console())


@member_app.command("list")
@guard
def list_(addresses: _Addresses = DEFAULT_ADDRESSES, as_json: _Json = False, timeout: _Timeout = 10.0) -> None:
    """Show the members, as the leader knows them."""
    _show(members.members(split_addresses(addresses), timeout), as_json)


@member_app.command()
@guard
def add(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Of a node that `serve --standby` runs.")],
    learner: Annotated[bool, typer.Option("--learner", help="It follows the log and never votes.")] = False,
    addresses: _Addresses = DEFAULT_ADDRESSES,
    as_json: _Json = False,
    timeout: _Timeout = 60.0,
) -> None:
    """Let a waiting node in. It becomes a learner now and, but for --learner, a voter when it has caught up."""
    split_addresses(address)
    _change(addresses, timeout, as_json, **{"add_learner" if learner else "add": address})


@member_app.command()
@guard
def remove(
    node: _NodeId, addresses: _Addresses = DEFAULT_ADDRESSES, as_json: _Json = False, timeout: _Timeout = 60.0
) -> None:
    """Take a node out of the cluster for good; its id is never used again. Stop its process afterwards."""
    _change(addresses, timeout, as_json, remove=node)


@member_app.command()
@guard
def leave(
    leaving: Annotated[list[str], typer.Argument(metavar="HOST:PORT...", help="Where nodes are that are to go.")],
    addresses: _Addresses = DEFAULT_ADDRESSES,
    as_json: _Json = False,
    timeout: _Timeout = 300.0,
) -> None:
    """Take the nodes at these addresses out of the cluster. For scripts: who is no member is no error."""
    for address in leaving:
        split_addresses(address)
    _show(members.leave(split_addresses(addresses), timeout, leaving), as_json)


@member_app.command()
@guard
def promote(
    node: _NodeId, addresses: _Addresses = DEFAULT_ADDRESSES, as_json: _Json = False, timeout: _Timeout = 60.0
) -> None:
    """Give a learner that has caught up a vote."""
    _change(addresses, timeout, as_json, promote=node)


@member_app.command()
@guard
def demote(
    node: _NodeId, addresses: _Addresses = DEFAULT_ADDRESSES, as_json: _Json = False, timeout: _Timeout = 60.0
) -> None:
    """Take a voter's vote; it goes on as a learner, which serves reads."""
    _change(addresses, timeout, as_json, demote=node)


@member_app.command()
@guard
def replace(
    old: Annotated[int, typer.Argument(metavar="OLD", min=1, help="Who goes.")],
    by: Annotated[int, typer.Argument(metavar="BY", min=1, help="A learner that has caught up.")],
    addresses: _Addresses = DEFAULT_ADDRESSES,
    as_json: _Json = False,
    timeout: _Timeout = 60.0,
) -> None:
    """Put one node in the place of another in one change.

    A node whose disk is lost needs no such command: start it with an empty directory, its old address and --join.
    """
    _change(addresses, timeout, as_json, replace={"old": old, "by": by})


@guard
def transfer_leader(
    to: Annotated[int, typer.Option(min=0, help="To this node; 0: the voter that is furthest.")] = 0,
    addresses: _Addresses = DEFAULT_ADDRESSES,
    timeout: _Timeout = 10.0,
) -> None:
    """Hand leadership to another voter."""
    leader = members.transfer(split_addresses(addresses), timeout, to)
    Console().print(f"node {leader} leads", highlight=False)
