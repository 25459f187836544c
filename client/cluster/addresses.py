"""Addresses of nodes as people write them."""

from __future__ import annotations

from collections.abc import Iterable


def parse_address(text: str) -> str:
    """`host:port` or `[ipv6]:port`, normalized. ValueError for anything else."""
    text = text.strip()
    host, separator, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host.startswith("[") and host.endswith("]")
    valid = (
        separator and bare and (":" in bare) == bracketed and not any(c.isspace() or c in "/@,[]" for c in bare)
    )
    if not valid or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"not an address of the form host:port: {text!r}")
    return f"{host}:{int(port)}"


def parse_addresses(addresses: str | Iterable[str]) -> tuple[str, ...]:
    """A comma-separated string, or several addresses; repeated ones once. ValueError when one is malformed or
    there is none."""
    parts = addresses.split(",") if isinstance(addresses, str) else list(addresses)
    found = dict.fromkeys(parse_address(part) for part in parts)
    if not found:
        raise ValueError("at least one address is needed")
    return tuple(found)
