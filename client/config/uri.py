"""Resolvers for zodburi: `raftstorage://host:port,host:port/?wait=no` and `raftstorage+embedded:///directory`.

What is not ClientStorage's is the database's, and zodburi looks at it: `database_name`, `connection_pool_size`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from .options import OPTIONS, servers

if TYPE_CHECKING:
    from ..storage import ClientStorage

Resolved = tuple[Callable[[], "ClientStorage"], dict[str, str]]


def resolve_cluster(uri: str) -> Resolved:
    """A function that opens the storage, and the arguments for a database. ValueError says what is wrong."""
    place, query = _split(uri, "raftstorage://")
    nodes, _, path = place.partition("/")
    if path:
        raise ValueError(f"{uri}: a cluster has one database, so there is no path: {path!r}")
    return _resolve(servers([nodes]), query, uri)


def resolve_embedded(uri: str) -> Resolved:
    """Likewise, for a database in a directory."""
    directory, query = _split(uri, "raftstorage+embedded://")
    if not directory:
        raise ValueError(f"{uri}: no directory")
    return _resolve(f"embedded:{os.path.normpath(directory)}", query, uri)


def _split(uri: str, scheme: str) -> tuple[str, str]:
    if not uri.startswith(scheme):
        raise ValueError(f"{uri}: not of the form {scheme}...")
    place, _, query = uri.removeprefix(scheme).partition("?")
    return place, query


def _resolve(addresses: str | tuple[str, ...], query: str, uri: str) -> Resolved:
    database = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    options = {}
    for name, convert in OPTIONS.items():
        if name in database:
            try:
                options[name] = convert(database.pop(name))
            except ValueError as error:
                raise ValueError(f"{uri}: {name}: {error}") from None

    def open_storage() -> ClientStorage:
        from ..storage import ClientStorage

        return ClientStorage(addresses, **options)

    return open_storage, database
